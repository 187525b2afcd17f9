"""Networks as a user might write them for observations of any space, for `--model.factory
tests.models.structured_networks:NAME`: functions and classes of (observation_space, action_heads).

REFUSED says why dppo cannot train some; TRAINABLE it can, on observations of SPACE.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import nn

SPACE = spaces.Dict({
    "image": spaces.Box(0, 255, (4, 4, 1), np.uint8),
    "vector": spaces.Box(-1.0, 1.0, (2,), np.float32),
    "place": spaces.Tuple([spaces.Discrete(100, start=5), spaces.MultiBinary(2)]),
})  # fmt: skip
"""The space that `Plain` and its kin observe."""


class Plain(nn.Module):
    """Uses every leaf of SPACE."""

    def __init__(self, observation_space: spaces.Dict, action_heads: Any) -> None:
        super().__init__()
        place: Any = observation_space["place"]
        self.image, self.vector = nn.Linear(16, 8), nn.Linear(2, 8)
        self.first, self.bits = nn.Embedding(int(place[0].n), 8), nn.Linear(2, 8)
        self.policy, self.value = nn.Linear(8, sum(head.size for head in action_heads)), nn.Linear(8, 1)
        self.build()

    def build(self) -> None:
        """What else it has."""

    def features(self, observations: Any) -> torch.Tensor:
        number, bits = observations["place"]
        image = self.image(observations["image"].flatten(1).float() / 255)
        return image + self.vector(observations["vector"]) + self.first(number) + self.bits(bits)

    def forward(self, observations: Any) -> Any:
        features = torch.tanh(self.features(observations))
        return self.policy(features), self.value(features)[:, 0]


class Constants(Plain):
    """Buffers of several types, one drawn at random; -inf is a number like others here."""

    def build(self) -> None:
        self.register_buffer("drawn", torch.randn(8))
        self.register_buffer("from_numpy", torch.tensor(np.random.randn(), dtype=torch.float64))  # noqa: NPY002
        self.register_buffer("order", torch.randperm(8), persistent=False)
        self.register_buffer("allowed", torch.tensor([0.0] * 7 + [-torch.inf]))
        self.register_buffer("on", torch.tensor(data=True))

    def features(self, observations: Any) -> torch.Tensor:
        features = super().features(observations)[:, self.order] * self.drawn + self.from_numpy.float()
        return features + torch.softmax(self.allowed, 0) * self.on


class Lazy(Plain):
    """Shapes that the first forward finds out, and a buffer that it makes."""

    def build(self) -> None:
        self.image = nn.LazyLinear(8)  # type: ignore[assignment]
        self.register_buffer("positions", None)

    def features(self, observations: Any) -> torch.Tensor:
        if self.positions is None:
            self.positions = torch.arange(8.0)
        return super().features(observations) + self.positions


class FrozenBatchNorm(Plain):
    """As of a network that was trained before: in eval mode it is a constant scale."""

    def build(self) -> None:
        self.norm = nn.BatchNorm1d(8).eval()

    def features(self, observations: Any) -> torch.Tensor:
        out: torch.Tensor = self.norm(super().features(observations))
        return out


class WeightNorm(Plain):
    """Has a norm and a direction in place of a weight."""

    def build(self) -> None:
        self.image = nn.utils.parametrizations.weight_norm(self.image)


class Expanded(Plain):
    """A buffer whose elements share memory."""

    def build(self) -> None:
        self.register_buffer("same", torch.ones(1).expand(8))

    def features(self, observations: Any) -> torch.Tensor:
        return super().features(observations) + self.same


class PartOnly(Plain):
    """Pops what it uses from its dict, and has no value to learn."""

    def forward(self, observations: Any) -> Any:
        features = torch.tanh(self.vector(observations.pop("vector")))
        return self.policy(features), torch.zeros(len(features))


class Table(Plain):
    """Looks up pixels in a table of few values, as a grid world's image has them."""

    def build(self) -> None:
        self.table = nn.Embedding(4, 8)

    def features(self, observations: Any) -> torch.Tensor:
        return super().features(observations) + self.table(observations["image"].long().flatten(1)).mean(1)


class Wide(Plain):
    """Has a further parameter with a default."""

    def __init__(self, observation_space: spaces.Dict, action_heads: Any, width: int = 3) -> None:
        super().__init__(observation_space, action_heads)
        self.extra = nn.Linear(width, width)


def by_keyword(*, action_heads: Any, observation_space: spaces.Dict) -> nn.Module:
    """The order of the parameters does not count; the space is the factory's own copy."""
    net = Plain(observation_space, action_heads)
    observation_space.spaces.clear()
    return net


TRAINABLE = [Plain, Constants, Lazy, FrozenBatchNorm, WeightNorm, Expanded, PartOnly, Table, Wide, by_keyword]


# -- what dppo cannot train --------------------


class Counts(Plain):
    """A buffer of the number of forwards."""

    def build(self) -> None:
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, observations: Any) -> Any:
        self.calls += 1
        return super().forward(observations)


class CountsWhileLearning(Counts):
    def forward(self, observations: Any) -> Any:
        return super().forward(observations) if torch.is_grad_enabled() else Plain.forward(self, observations)


class Replaces(Plain):
    """The value stays, the memory does not."""

    def build(self) -> None:
        self.register_buffer("scale", torch.ones(8))

    def features(self, observations: Any) -> torch.Tensor:
        self.scale = self.scale * 1.0
        return super().features(observations) * self.scale


class Forgets(Plain):
    def build(self) -> None:
        self.register_buffer("once", torch.ones(8))

    def features(self, observations: Any) -> torch.Tensor:
        self.once = None
        return super().features(observations)


class ActingBatchNorm(Plain):
    def build(self) -> None:
        self.norm = nn.BatchNorm1d(8)

    def features(self, observations: Any) -> torch.Tensor:
        out: torch.Tensor = self.norm(super().features(observations))
        return out


class LazyBatchNorm(ActingBatchNorm):
    def build(self) -> None:
        self.norm = nn.LazyBatchNorm1d()


class RunningInstanceNorm(Plain):
    def build(self) -> None:
        self.norm = nn.InstanceNorm1d(8, track_running_stats=True)

    def features(self, observations: Any) -> torch.Tensor:
        out: torch.Tensor = self.norm(super().features(observations)[:, :, None].expand(-1, -1, 2))[:, :, 0]
        return out


class SpectralNorm(Plain):
    """Its power iteration goes on with each forward."""

    def build(self) -> None:
        self.image = nn.utils.parametrizations.spectral_norm(self.image)


class Dropout(Plain):
    def build(self) -> None:
        self.drop = nn.Dropout(0.5)

    def features(self, observations: Any) -> torch.Tensor:
        out: torch.Tensor = self.drop(super().features(observations))
        return out


class Halves(Plain):
    def build(self) -> None:
        self.register_buffer("scale", torch.ones(8, dtype=torch.bfloat16))


class Sparse(Plain):
    def build(self) -> None:
        self.register_buffer("graph", torch.eye(3).to_sparse())


class Elsewhere(Plain):
    def build(self) -> None:
        self.register_buffer("scale", torch.ones(8, device="meta"))


class OfAParameter(Plain):
    def build(self) -> None:
        self.register_buffer("scale", 2 * self.vector.weight[:, 0])


class TiedToAParameter(Plain):
    def build(self) -> None:
        self.register_buffer("kept", self.vector.weight.data)

    def features(self, observations: Any) -> torch.Tensor:
        return super().features(observations) + observations["vector"] @ self.kept.T


class SpoilsTheImage(Plain):
    def features(self, observations: Any) -> torch.Tensor:
        observations["image"] //= 2
        return super().features(observations)


class SpoilsABit(Plain):
    def features(self, observations: Any) -> torch.Tensor:
        observations["place"][1][0] += 1.0
        return super().features(observations)


class MeanImage(Plain):
    def features(self, observations: Any) -> torch.Tensor:
        image = observations["image"].float()
        return super().features({**observations, "image": image - image.mean(0)})


class MissesALeaf(Plain):
    def features(self, observations: Any) -> torch.Tensor:
        return super().features({**observations, "vector": observations["velocity"]})


class TakesATensor(Plain):
    def features(self, observations: Any) -> torch.Tensor:
        return self.vector(observations)


class ForgetsToConvert(Plain):
    def features(self, observations: Any) -> torch.Tensor:
        return super().features(observations) + self.image(observations["image"].flatten(1))


class WrongShape(Plain):
    def forward(self, observations: Any) -> Any:
        head, value = super().forward(observations)
        return head, value[:, None]


class Double(Plain):
    def build(self) -> None:
        self.double()

    def features(self, observations: Any) -> torch.Tensor:
        vector, (number, bits) = observations["vector"].double(), observations["place"]
        image = self.image(observations["image"].flatten(1).double())
        return image + self.vector(vector) + self.first(number) + self.bits(bits.double())


class Tied(Plain):
    def build(self) -> None:
        self.bits.weight = nn.Parameter(self.vector.weight.detach())


class Huge(Plain):
    def build(self) -> None:
        self.table = nn.Embedding(10_000_000, 64)


def many_layers(observation_space: spaces.Dict, action_heads: Any) -> nn.Module:
    net = Plain(observation_space, action_heads)
    shared = nn.Parameter(torch.empty(300_000_000))
    net.a, net.b = nn.ParameterList([shared]), nn.ParameterList([nn.Parameter(torch.empty(300_000_000))])
    return net


def one_name_is_wrong(observation_space: spaces.Dict, heads: Any) -> nn.Module:
    return Plain(observation_space, heads)


def one_too_many(observation_space: spaces.Dict, action_heads: Any, width: int) -> nn.Module:
    return Plain(observation_space, action_heads)


def three_numbers(size: int, outputs: int, width: int) -> nn.Module:
    raise AssertionError("it is not called")


def raises(observation_space: spaces.Dict, action_heads: Any) -> nn.Module:
    raise KeyError("camera")


def gives_nothing(observation_space: spaces.Dict, action_heads: Any) -> None:
    """Returns None."""


made = nn.Linear(2, 2)  # draws when this module is imported: only the first time in a process
number = 3

SHAPES = r"forward of \{image: \[\d, 4, 4, 1\] uint8, place: \(\[\d\] int64, \[\d, 2\]\), vector: \[\d, 2\]\}"
FORMS = r"a factory has the parameters observation_space and action_heads, or takes two numbers"
CHANGES = "forward changes the buffer {}, which must be a constant"
REFUSED = {
    "Counts": CHANGES.format("calls"),
    "CountsWhileLearning": CHANGES.format("calls"),
    "Replaces": CHANGES.format("scale"),
    "Forgets": CHANGES.format("once"),
    "ActingBatchNorm": r"batch normalisation \(norm\) .*use LayerNorm or GroupNorm",
    "LazyBatchNorm": r"batch normalisation \(norm\) .*use LayerNorm or GroupNorm",
    "RunningInstanceNorm": CHANGES.format(r"norm\.running_mean"),
    "SpectralNorm": CHANGES.format(r"image\.parametrizations\.weight\.0\._[uv]"),
    "Dropout": r"dropout \(drop\) .*leave it out, or set its p to 0; LayerNorm .*entropy bonus",
    "Halves": "the buffer scale is torch.bfloat16, .*float32",
    "Sparse": "the buffer graph is torch.sparse_coo",
    "Elsewhere": "all buffers must be on the CPU, and scale is on meta",
    "OfAParameter": r"the buffer scale requires a gradient, .*torch\.nn\.Parameter, or detach",
    "TiedToAParameter": r"the buffer kept and the parameter vector\.weight share memory: clone",
    "SpoilsTheImage": r"changes its argument \(image\) in place",
    "SpoilsABit": r"changes its argument \(place/1\) in place",
    "MeanImage": "depends on the others in its batch",
    "MissesALeaf": rf"{SHAPES} raised KeyError: 'velocity'",
    "TakesATensor": rf"{SHAPES} raised TypeError",
    "ForgetsToConvert": rf"{SHAPES} raised RuntimeError",
    "WrongShape": rf"{SHAPES} must give \(head \[2, 3\], value \[2\]\), but gave \[\(2, 3\), \(2, 1\)\]",
    "Double": "all parameters must be float32",
    "Tied": "share memory",
    "Huge": r"the weight of a Embedding is \[10000000, 64\], and at most 500,000,000 can be trained",
    "many_layers": r"it makes 600,\d{3},\d{3} parameters, and at most 500,000,000 can be trained",
    "one_name_is_wrong": rf"its parameters are observation_space, heads; {FORMS}",
    "one_too_many": rf"its parameters are observation_space, action_heads, width; {FORMS}",
    "three_numbers": rf"its parameters are size, outputs, width; {FORMS}",
    "raises": "it raised KeyError: 'camera'",
    "gives_nothing": "it gave a NoneType, not a torch.nn.Module",
    "made": rf"it is a Linear, not a function or class that makes a network; {FORMS}",
    "number": rf"it is a int, not a function .*{FORMS}",
}
"""name -> what its refusal says."""


class OnProbe(nn.Module):
    """For ProbeInputs: an image and a vector, with a constant buffer that is drawn at random."""

    def __init__(self, observation_space: spaces.Dict, action_heads: Any) -> None:
        super().__init__()
        pixels, numbers = (int(np.prod(observation_space[name].shape or ())) for name in ("image", "vector"))
        self.body = nn.Sequential(nn.Linear(pixels + numbers, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.policy, self.value = nn.Linear(64, sum(head.size for head in action_heads)), nn.Linear(64, 1)
        self.register_buffer("drawn", 1 + 0.1 * torch.randn(pixels + numbers))

    def forward(self, observations: Any) -> Any:
        image = observations["image"].flatten(1) / 255
        features = self.body(torch.cat([image, observations["vector"]], 1) * self.drawn.float())
        return self.policy(features), self.value(features)[:, 0]


class Everything(nn.Module):
    """For any space: a layer for the numbers of each leaf, a table for each index, and a constant buffer that is drawn
    at random.
    """

    def __init__(self, observation_space: spaces.Space[Any], action_heads: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.add(observation_space, at_top=True)
        self.policy, self.value = nn.Linear(8, sum(head.size for head in action_heads)), nn.Linear(8, 1)
        self.register_buffer("drawn", torch.randn(8))

    def add(self, space: Any, *, at_top: bool = False) -> None:
        """Makes layers in the order in which `parts` meets their leaves."""
        if isinstance(space, spaces.Dict):
            for name, part in space.items():
                if not (at_top and name == "action_mask"):
                    self.add(part)
        elif isinstance(space, spaces.Tuple):
            for part in space:
                self.add(part)
        elif isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            sizes = np.asarray(getattr(space, "nvec", getattr(space, "n", None))).reshape(-1)
            self.layers.append(nn.Embedding(int(max(sizes, default=1)), 8))
        else:
            self.layers.append(nn.Linear(int(np.prod(space.shape)), 8))

    def parts(self, observations: Any) -> list[torch.Tensor]:
        if isinstance(observations, torch.Tensor):
            return [observations.reshape(len(observations), -1)]
        inner = observations.values() if isinstance(observations, dict) else observations
        return [tensor for part in inner for tensor in self.parts(part)]

    def forward(self, observations: Any) -> Any:
        features = self.drawn
        for layer, tensor in zip(self.layers, self.parts(observations), strict=True):
            if isinstance(layer, nn.Embedding):
                features = features + layer(tensor).sum(1)
            else:
                features = features + layer(tensor / 255 if tensor.dtype == torch.uint8 else tensor)
        features = torch.tanh(features)
        return self.policy(features), self.value(features)[:, 0]


class LooksElsewhere(OnProbe):
    """Its space has no camera."""

    def forward(self, observations: Any) -> Any:
        return super().forward({"image": observations["camera"], "vector": observations["vector"]})


class CountsProbes(OnProbe):
    """Counts its forwards in a buffer."""

    def __init__(self, observation_space: spaces.Dict, action_heads: Any) -> None:
        super().__init__(observation_space, action_heads)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, observations: Any) -> Any:
        self.calls += 1
        return super().forward(observations)


class Unseeded(OnProbe):
    """Draws its buffer from a generator that no seed decides, so each process draws other numbers."""

    def __init__(self, observation_space: spaces.Dict, action_heads: Any) -> None:
        super().__init__(observation_space, action_heads)
        self.drawn[:] = torch.from_numpy(np.random.default_rng().standard_normal(len(self.drawn)).astype(np.float32))


class WithOtherConstants(OnProbe):
    """Differs in its buffers alone."""

    def __init__(self, observation_space: spaces.Dict, action_heads: Any) -> None:
        super().__init__(observation_space, action_heads)
        self.drawn = self.drawn.double()
        self.register_buffer("more", torch.zeros(3))
