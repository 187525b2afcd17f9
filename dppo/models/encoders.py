"""The torch network for observations with images or many-valued choices: encoders, then the towers of the MLP.

Each image has an encoder of its own; its features, the embeddings of choices and the vector inputs are concatenated
before the towers. With `model.shared`, the policy and the value use the same encoders, which then run once per row.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from dppo.algo.sequences import Packing, pack
from dppo.models.cores import Core
from dppo.models.torch_network import MOST_ROWS, TorchNetwork, make_towers, orthogonal_, to_array

if TYPE_CHECKING:
    from dppo.config import ModelConfig
    from dppo.models.flat import FlatParameters
    from dppo.models.inputs import Inputs

EMBEDDING = 32
"""Features of a many-valued choice."""
LEAST_NATURE = 36
"""The least height and width of an image for the Nature encoder: its three convolutions leave nothing of a smaller one.
"""

_NO_STATES = torch.empty((0, 0))
_NO_CHOICES = torch.empty((0, 0), dtype=torch.int64)

Parts = tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]
"""The parts of a network's inputs: vectors [B, D] float32, choices [B, C] int64, images [B, channels, height, width]
float32 each."""


def nature(channels: int, height: int, width: int) -> tuple[nn.Module, int]:
    """Makes the encoder of three convolutions. Returns it and its number of features.

    Source: Mnih et al. 2015, methods (model architecture).
    """
    layers = [
        nn.Conv2d(channels, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3, 1), nn.ReLU()
    ]  # fmt: skip
    return _with_features(layers, (channels, height, width), 512), 512


class _Residual(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(torch.relu(self.first(torch.relu(x))))


def impala(channels: int, height: int, width: int) -> tuple[nn.Module, int]:
    """Makes the residual encoder of three sections. Returns it and its number of features.

    Source: Espeholt et al. 2018 (IMPALA), figure 3, the large architecture without its LSTM.
    """
    layers: list[nn.Module] = []
    before = channels
    for section in (16, 32, 32):
        layers += [nn.Conv2d(before, section, 3, padding=1), nn.MaxPool2d(3, 2, padding=1)]
        layers += [_Residual(section), _Residual(section)]
        before = section
    return _with_features([*layers, nn.ReLU()], (channels, height, width), 256), 256


def small(channels: int, height: int, width: int) -> tuple[nn.Module, int]:
    """Makes an encoder for images that are too small for the others' strides. Returns it and its number of features.

    Source: three convolutions, as in torch-ac's starter files for MiniGrid (Willems 2018), here without pooling.
    """
    layers: list[nn.Module] = []
    for before, after in ((channels, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    return _with_features(layers, (channels, height, width), 128), 128


def _with_features(layers: list[nn.Module], shape: tuple[int, int, int], size: int) -> nn.Module:
    """Appends the dense layer that turns what the convolutions give for images of `shape` into `size` features."""
    convolutions = nn.Sequential(*layers, nn.Flatten())
    return nn.Sequential(convolutions, nn.Linear(_num_outputs(layers, shape), size), nn.ReLU())


def _num_outputs(layers: list[nn.Module], shape: tuple[int, int, int]) -> int:
    """Returns how many numbers the layers give for an image. A run on the device "meta" would tell it as well, but it
    imports torch's compiler, which takes each rank a second.
    """
    channels, *sides = shape
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            channels = layer.out_channels
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            kernel, stride, padding = (
                value if isinstance(value, int) else int(value[0])
                for value in (layer.kernel_size, layer.stride, layer.padding)
            )
            sides = [(side + 2 * padding - kernel) // stride + 1 for side in sides]
    return channels * math.prod(sides)


ENCODERS: dict[str, Callable[[int, int, int], tuple[nn.Module, int]]] = {"nature": nature, "impala": impala}


def make_encoder(name: str, shape: tuple[int, int, int]) -> tuple[nn.Module, int]:
    """Makes the encoder `model.encoder` for images [channels, height, width]. Returns it and its number of features.

    Raises:
      ValueError: the images are too small for it.
    """
    is_small = min(shape[1:]) < LEAST_NATURE
    if name == "auto":
        return (small if is_small else nature)(*shape)
    if name == "nature" and is_small:
        raise ValueError(
            f"model.encoder=nature needs images of at least {LEAST_NATURE} x {LEAST_NATURE}, and these are"
            f" {shape[1]} x {shape[2]}: use model.encoder=auto or impala"
        )
    return ENCODERS[name](*shape)


class _Torso(nn.Module):
    """Encoders of all images, embeddings of all choices, and the core, for both towers or for one."""

    def __init__(self, inputs: Inputs, cfg: ModelConfig) -> None:
        super().__init__()
        made = [make_encoder(cfg.encoder, image.shape) for image in inputs.images]
        self.encoders = nn.ModuleList(module for module, _ in made)
        self.embeddings = nn.ModuleList(nn.Embedding(size, EMBEDDING) for size in inputs.choices)
        self.size = inputs.size + sum(size for _, size in made) + EMBEDDING * len(self.embeddings)
        self.uses_bf16 = cfg.bf16
        for module in self.encoders.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                orthogonal_(module, math.sqrt(2.0))
        self.core: Core | None = None
        self.state_size = 0
        if cfg.core is not None:
            self.core = Core(cfg.core, self.size, cfg.core_size)
            self.size, self.state_size = cfg.core_size, self.core.state_size

    def forward(self, parts: Parts, states: torch.Tensor, packing: Packing | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the features [B, size] of samples, and the new states: see `Core.forward`."""
        vectors, choices, images = parts
        in_bf16 = torch.autocast(vectors.device.type, torch.bfloat16) if self.uses_bf16 else contextlib.nullcontext()
        with in_bf16:
            features = [encoder(image) for encoder, image in zip(self.encoders, images, strict=True)]
        features = [feature.float() for feature in features]
        features += [embedding(choices[:, i]) for i, embedding in enumerate(self.embeddings)]
        joined = torch.cat([vectors, *features], dim=1)
        return (joined, states) if self.core is None else self.core(joined, states, packing)


@contextlib.contextmanager
def in_float32(module: nn.Module) -> Iterator[None]:
    """Has the encoders in a module compute in float32, whatever `model.bf16` says."""
    torsos = [torso for torso in module.modules() if isinstance(torso, _Torso) and torso.uses_bf16]
    for torso in torsos:
        torso.uses_bf16 = False
    try:
        yield
    finally:
        for torso in torsos:
            torso.uses_bf16 = True


class EncodedModule(nn.Module):
    """The default network with all that the plain MLP lacks: encoders of images, embeddings of choices, memory.

    Args:
      inputs: the parts of an observation.
      num_outputs: the number of the policy's outputs.
    """

    def __init__(self, inputs: Inputs, num_outputs: int, cfg: ModelConfig) -> None:
        super().__init__()
        self.is_shared = cfg.shared
        torsos = [_Torso(inputs, cfg) for _ in range(1 if cfg.shared else 2)]
        self.torsos = nn.ModuleList(torsos)
        size = torsos[0].size
        self.state_size = sum(torso.state_size for torso in torsos)
        parts = [f"{cfg.encoder} encoder"] * bool(inputs.images) + ["embeddings"] * bool(inputs.choices)
        parts += [f"{cfg.core} of {cfg.core_size}"] * (cfg.core is not None)
        self.description = " and ".join(parts) + " of policy and value" * cfg.shared + " in bfloat16" * cfg.bf16
        """A phrase for the log."""
        self.policy_tower, self.value_tower = make_towers(size, cfg.hidden, num_outputs, cfg.activation)

    def policy(self, parts: Parts) -> torch.Tensor:
        """Returns the policy's outputs [B, K'] of a network without memory."""
        outputs: torch.Tensor = self.policy_tower(self.torsos[0](parts, _NO_STATES, None)[0])
        return outputs

    def without_memory(self, parts: Parts) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the policy's outputs [B, K'] and the values [B] of a network without memory."""
        features = [torso(parts, _NO_STATES, None)[0] for torso in self.torsos]
        return self.policy_tower(features[0]), self.value_tower(features[-1])[:, 0]

    def value(self, parts: Parts, states: torch.Tensor) -> torch.Tensor:
        """Returns the values [B] after one step from states [B, S]."""
        mine = states.chunk(len(self.torsos), dim=1)[-1]
        values: torch.Tensor = self.value_tower(self.torsos[-1](parts, mine, None)[0])[:, 0]
        return values

    def forward(
        self, parts: Parts, states: torch.Tensor, packing: Packing | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns the policy's outputs [B, K'], the values [B], and the new states: see `Core.forward`."""
        before = states.chunk(len(self.torsos), dim=1)
        run = [torso(parts, mine, packing) for torso, mine in zip(self.torsos, before, strict=True)]
        outputs, values = self.policy_tower(run[0][0]), self.value_tower(run[-1][0])[:, 0]
        return outputs, values, torch.cat([after for _, after in run], dim=1)


class EncodedNetwork(TorchNetwork):
    """`EncodedModule` behind the seam of networks. It takes raw observations [B, *obs], or vectors [B, D] if these are
    all that the inputs have.
    """

    def __init__(self, flat: FlatParameters, module: EncodedModule, inputs: Inputs) -> None:
        super().__init__(flat, module)
        self._encoded, self._inputs = module, inputs
        self.state_size = module.state_size
        self._acts_on_values = module.is_shared or module.state_size > 0

    def act(self, inputs: np.ndarray, states: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        parts = self._argument(inputs)
        with torch.no_grad():
            if not self._acts_on_values:
                return to_array(self._encoded.policy(parts)), None
            outputs, values, after = self._encoded(parts, self._states(states, len(inputs)))
        if states is not None:
            states[...] = to_array(after)
        return to_array(outputs), to_array(values)

    def value(self, inputs: np.ndarray, states: np.ndarray | None = None) -> np.ndarray:
        before = self._states(states, len(inputs))
        with torch.no_grad():
            pieces = [slice(i, i + MOST_ROWS) for i in range(0, len(inputs), MOST_ROWS)]
            return np.concatenate(
                [to_array(self._encoded.value(self._argument(inputs[piece]), before[piece])) for piece in pieces]
            )

    def forward(
        self, inputs: np.ndarray, states: np.ndarray | None = None, firsts: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        before, packing = self._states(states, len(inputs)), None
        if self.state_size and firsts is not None:
            packing = pack(firsts)
            before = before[torch.from_numpy(packing.starts)]
        outputs, values, _ = self._encoded(self._argument(inputs), before, packing)
        self._outputs = (outputs, values)
        return to_array(outputs), to_array(values)

    def _states(self, states: np.ndarray | None, rows: int) -> torch.Tensor:
        return self._tensor(np.zeros((rows, self.state_size), np.float32) if states is None else states)

    def _argument(self, inputs: np.ndarray) -> Parts:
        if not self._inputs.is_raw:
            return self._tensor(inputs), _NO_CHOICES, []
        images = []
        for image in self._inputs.images:
            # convolutions take three quarters of the time with the channels last in memory; and one new array in place
            # of three, as the kernel has to clear the pages of each
            pixels = self._tensor(image.of(inputs))  # as they are: bytes are a quarter of the way to a GPU
            pixels = pixels.to(torch.float32, memory_format=torch.channels_last, copy=True)
            images.append(pixels.sub_(image.low).mul_(image.scale))
        vectors, indices = self._inputs.vectors(inputs), self._inputs.indices(inputs)
        return self._tensor(vectors), self._tensor(indices), images
