"""Ordinary torch: the distributions, network and losses that dppo's closed forms must equal.

Nothing here is dppo's: torch.distributions, torch.nn modules and loss expressions as the papers write them. All in
float64, so that a difference is the closed form's own rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, Normal, kl_divergence

from dppo.models.seams import ActionDistribution

torch.set_num_threads(1)  # these are small numbers, and other tests may run beside

SPACES: dict[str, spaces.Space] = {
    "Discrete": spaces.Discrete(4),
    "MultiDiscrete": spaces.MultiDiscrete([2, 4, 3]),
    "MultiBinary": spaces.MultiBinary(3),
    "Box": spaces.Box(-2.0, 3.0, (2,), np.float32),
}
"""An action space for each of the four distributions."""


def random_space(name: str, rng: np.random.Generator) -> spaces.Space:
    """An action space of a random size."""
    sizes = rng.integers(2, 6, size=rng.integers(1, 4))
    return {
        "Discrete": spaces.Discrete(int(sizes[0])),
        "MultiDiscrete": spaces.MultiDiscrete(sizes),
        "MultiBinary": spaces.MultiBinary(len(sizes)),
        "Box": spaces.Box(-1.0, 2.0, (len(sizes),), np.float32),
    }[name]


def random_actions(space: spaces.Space, batch: int, rng: np.random.Generator) -> np.ndarray:
    """[B, *act] actions in the policy's own units."""
    if isinstance(space, spaces.Discrete):
        return rng.integers(space.n, size=batch)
    if isinstance(space, spaces.MultiDiscrete):
        return rng.integers(space.nvec, size=(batch, len(space.nvec)))
    if isinstance(space, spaces.MultiBinary):
        return rng.integers(2, size=(batch, *space.shape), dtype=np.int8)
    assert isinstance(space, spaces.Box)
    return rng.standard_normal((batch, *space.shape), dtype=np.float32)


# -- distributions: independent parts, one per column of the actions --------------------


def leaves(space: spaces.Space) -> list[tuple[tuple[str, ...], spaces.Space]]:
    """The plain spaces within a space, in its order, with the fields that lead there."""
    if isinstance(space, spaces.Dict):
        inner = list(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        inner = [(str(i), part) for i, part in enumerate(space.spaces)]
    else:
        return [((), space)]
    return [((name, *path), leaf) for name, part in inner for path, leaf in leaves(part)]


def is_continuous(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and space.dtype.kind == "f"


def sizes(space: spaces.Space) -> list[int]:
    """How many logits each categorical of a plain space has."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.reshape(-1).tolist()
    if isinstance(space, spaces.Box) and not is_continuous(space):
        return (space.high.astype(int) - space.low + 1).reshape(-1).tolist()
    return []


def network_outputs(space: spaces.Space) -> int:
    """Of a plain space."""
    return sum(sizes(space)) or int(np.prod(space.shape))


def columns_of(space: spaces.Space, actions: np.ndarray) -> np.ndarray:
    """[B, C] float64, all numbers of actions [B], whatever fields they lie in."""
    columns = []
    for path, _ in leaves(space):
        part = actions
        for name in path:
            part = part[name]
        columns.append(part.reshape(len(actions), -1).astype(np.float64))
    return np.concatenate(columns, axis=1)


def parts(space: spaces.Space, head: Tensor) -> list[Distribution]:
    """One torch distribution per column of the actions. The head of a Dict or a Tuple has the outputs of all parts,
    then the log deviations of all.
    """
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        each = [leaf for _, leaf in leaves(space)]
        outputs = [network_outputs(leaf) for leaf in each]
        log_stds = [n if is_continuous(leaf) else 0 for leaf, n in zip(each, outputs, strict=True)]
        pieces = head.split([*outputs, *log_stds], dim=1)
        pairs = zip(pieces[: len(each)], pieces[len(each) :], strict=True)
        heads = [torch.cat(pair, dim=1) for pair in pairs]
        return [part for leaf, own in zip(each, heads, strict=True) for part in parts(leaf, own)]
    if isinstance(space, spaces.Box) and not is_continuous(space):
        return [Categorical(logits=h) for h in head.split(sizes(space), dim=1)]
    if isinstance(space, spaces.Discrete):
        return [Categorical(logits=head)]
    if isinstance(space, spaces.MultiDiscrete):
        return [Categorical(logits=h) for h in head.split(space.nvec.tolist(), dim=1)]
    if isinstance(space, spaces.MultiBinary):
        return [Bernoulli(logits=logit) for logit in head.unbind(1)]
    mean, log_std = head.chunk(2, dim=1)
    return [Normal(m, s) for m, s in zip(mean.unbind(1), log_std.exp().unbind(1), strict=True)]


def log_prob(space: spaces.Space, head: Tensor, actions: np.ndarray) -> Tensor:
    """[B] of actions [B, *act]."""
    columns = torch.from_numpy(columns_of(space, actions)).unbind(1)
    return torch.stack([p.log_prob(a) for p, a in zip(parts(space, head), columns, strict=True)]).sum(0)


def entropy(space: spaces.Space, head: Tensor) -> Tensor:
    """[B]."""
    return torch.stack([p.entropy() for p in parts(space, head)]).sum(0)


def kl(space: spaces.Space, old: Tensor, new: Tensor) -> Tensor:
    """[B] KL[old | new]."""
    pairs = zip(parts(space, old), parts(space, new), strict=True)
    return torch.stack([kl_divergence(p, q) for p, q in pairs]).sum(0)


# -- the network --------------------


class ActorCritic(nn.Module):
    """Two towers and, for a Box, a log standard deviation; takes over the parameters of a flat vector."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], vector: np.ndarray, activation: str = "tanh") -> None:
        super().__init__()
        self.shapes = shapes
        self.towers = nn.ModuleList(self._tower(head, activation) for head in ("policy", "value"))
        self.log_std = nn.Parameter(torch.zeros(shapes["log_std"])) if "log_std" in shapes else None
        self.double()
        sizes = [int(np.prod(shape)) for shape in shapes.values()]
        pieces = torch.from_numpy(vector.astype(np.float64)).split(sizes)
        with torch.no_grad():
            for (name, shape), piece in zip(shapes.items(), pieces, strict=True):
                parameters = self._parameters_of(name)
                for parameter, values in zip(parameters, piece.reshape(len(parameters), -1), strict=True):
                    matrix = name.endswith("weight")
                    parameter.copy_(values.reshape(shape[-2:]).T if matrix else values)  # nn.Linear keeps [out, in]

    def _tower(self, head: str, activation: str) -> nn.Sequential:
        names = [name for name in self.shapes if name.startswith("hidden") and name.endswith("weight")]
        nonlinearity = nn.Tanh if activation == "tanh" else nn.ReLU
        layers = [[nn.Linear(*self.shapes[name][-2:]), nonlinearity()] for name in [*names, f"{head}.weight"]]
        return nn.Sequential(*list(itertools.chain(*layers))[:-1])

    def _parameters_of(self, name: str) -> list[nn.Parameter]:
        """Of both towers for a hidden layer, else one."""
        if name == "log_std":
            assert self.log_std is not None
            return [self.log_std]
        *where, kind = name.split(".")
        if where[0] == "hidden":
            layers = [tower[2 * int(where[1])] for tower in self.towers]
        else:
            layers = [self.towers[where[0] == "value"][-1]]
        return [getattr(layer, kind) for layer in layers]

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """[B, D] -> head [B, K], value [B]."""
        head, value = self.towers[0](inputs), self.towers[1](inputs)[:, 0]
        if self.log_std is not None:
            head = torch.cat((head, self.log_std.expand_as(head)), dim=1)
        return head, value

    def flat_gradient(self) -> np.ndarray:
        """[P] what autograd has left in the parameters, in the order of the flat vector."""
        gradients = []
        for name in self.shapes:
            for parameter in self._parameters_of(name):
                assert parameter.grad is not None
                matrix = name.endswith("weight")
                gradients.append((parameter.grad.T if matrix else parameter.grad).reshape(-1).numpy())
        return np.concatenate(gradients)


# -- losses, as the papers write them; sums over the samples --------------------


def ppo_clip(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Schulman et al. 2017, eq. 7."""
    return -torch.min(ratio * advantages, torch.clamp(ratio, 1 - clip, 1 + clip) * advantages).sum()


def ppo_kl(ratio: Tensor, advantages: Tensor, kl: Tensor, coef: float, target: float, hinge: float) -> Tensor:
    """Heess et al. 2017, algorithm 1: the penalty, and xi max(0, KL - 2 KL_target)^2 on the mean KL."""
    mean = -(ratio * advantages).mean() + coef * kl.mean() + hinge * torch.relu(kl.mean() - 2 * target) ** 2
    return len(kl) * mean


def value_loss(value: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the squared error; clipped as in OpenAI Baselines' ppo2 where clip > 0."""
    plain = (value - returns) ** 2
    if clip == 0:
        return 0.5 * plain.sum()
    clipped = (old + torch.clamp(value - old, -clip, clip) - returns) ** 2
    return 0.5 * torch.max(plain, clipped).sum()


def tensors(*arrays: np.ndarray) -> Sequence[Tensor]:
    """In float64."""
    return [torch.from_numpy(np.asarray(a, np.float64)) for a in arrays]


def assert_same(
    distribution: ActionDistribution, space: spaces.Space, old: np.ndarray, new: np.ndarray, actions: np.ndarray
) -> None:
    """Compares log-probabilities, entropies and KL [B] with torch's, for heads [B, K] of an old and a new policy."""
    torch_old, torch_new = tensors(old, new)
    found, found_entropy, _ = distribution.evaluate(new, actions)
    np.testing.assert_allclose(found, log_prob(space, torch_new, actions), rtol=1e-6)
    np.testing.assert_allclose(found_entropy, entropy(space, torch_new), rtol=1e-6)
    np.testing.assert_allclose(distribution.kl(old, new), kl(space, torch_old, torch_new), rtol=1e-6)
