"""Actions as operations of torch on a network's outputs, for export: what the distributions compute with NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from dppo.envs.leaves import Leaf, leaves
from dppo.models.distributions import MAX_LOGIT, Bernoulli, DiagGaussian, make_distribution
from dppo.models.gaussian import LOG_2PI

if TYPE_CHECKING:
    import gymnasium

    from dppo.models.distributions import Distribution

Taken = tuple[torch.Tensor, torch.Tensor]
"""Actions [B, *shape] as the environment wants them, of the space's type, and their log-probabilities [B]."""


class _Choices(nn.Module):
    """Of `Categorical` and `MultiCategorical`. The logits of C choices become [B, C, N], N those of the longest one, so
    that the graph does not grow with their number.
    """

    starts: torch.Tensor
    columns: torch.Tensor
    is_there: torch.Tensor

    def __init__(self, leaf: Leaf, choices: tuple[int, ...]) -> None:
        super().__init__()
        space: Any = leaf.space
        starts = np.asarray(space.start if hasattr(space, "start") else space.low)
        self.shape, self.dtype, self.size = leaf.shape, _torch_type(leaf.dtype), (len(choices), max(choices))
        columns = np.arange(max(choices)) + (np.cumsum(choices) - choices)[:, None]
        is_there = np.arange(max(choices)) < np.array(choices)[:, None]
        self.is_even = bool(is_there.all())
        self.register_buffer("starts", torch.from_numpy(starts.reshape(-1).astype(np.int64)))
        self.register_buffer("columns", torch.from_numpy(np.where(is_there, columns, 0).reshape(-1)))
        self.register_buffer("is_there", torch.from_numpy(is_there))

    def forward(self, outputs: torch.Tensor, mask: torch.Tensor | None, noise: torch.Tensor | None) -> Taken:
        if mask is not None:
            outputs = torch.where(mask, outputs, -torch.inf)
        logits = self._by_choice(outputs)
        scores = logits if noise is None else logits + self._by_choice(noise)
        index = scores.argmax(dim=2, keepdim=True)
        shifted = (logits - logits.amax(dim=2, keepdim=True)).clamp(min=-MAX_LOGIT)
        log_p = shifted - shifted.exp().sum(dim=2, keepdim=True).log()
        actions = index[:, :, 0] + self.starts
        return actions.to(self.dtype).reshape(-1, *self.shape), log_p.gather(2, index).sum(dim=(1, 2))

    def _by_choice(self, columns: torch.Tensor) -> torch.Tensor:
        """Returns columns [B, K] as [B, C, N], with -inf where a choice has fewer values."""
        if self.is_even:
            return columns.reshape(-1, *self.size)
        return torch.where(self.is_there, columns[:, self.columns].reshape(-1, *self.size), -torch.inf)


class _Bits(nn.Module):
    """Of `Bernoulli`."""

    def __init__(self, leaf: Leaf) -> None:
        super().__init__()
        self.shape, self.dtype = leaf.shape, _torch_type(leaf.dtype)

    def forward(self, outputs: torch.Tensor, mask: torch.Tensor | None, noise: torch.Tensor | None) -> Taken:
        bits = outputs > 0 if noise is None else noise < 0.5 * (1.0 + torch.tanh(0.5 * outputs))
        bounded = outputs.clamp(-MAX_LOGIT, MAX_LOGIT)
        log_prob = (bits.to(torch.float32) * bounded - nn.functional.softplus(bounded)).sum(dim=1)
        return bits.to(self.dtype).reshape(-1, *self.shape), log_prob


class _Normals(nn.Module):
    """Of `DiagGaussian`."""

    centre: torch.Tensor
    scale: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    std: torch.Tensor
    inverse_std: torch.Tensor

    def __init__(self, leaf: Leaf, distribution: DiagGaussian, log_std: np.ndarray) -> None:
        super().__init__()
        space: Any = leaf.space
        self.shape, self.dtype, self.is_scaled = leaf.shape, _torch_type(leaf.dtype), distribution.is_scaled
        wide = torch.promote_types(self.dtype, torch.float32)
        for name, array in {
            "centre": distribution.centre, "scale": distribution.scale, "low": space.low, "high": space.high,
            "std": np.exp(log_std), "inverse_std": np.exp(-log_std),
        }.items():  # fmt: skip
            self.register_buffer(name, torch.from_numpy(np.array(array)).to(wide if name in ("low", "high") else None))
        self.constant = float(np.sum(log_std, dtype=np.float64) + 0.5 * LOG_2PI * len(log_std))

    def forward(self, outputs: torch.Tensor, mask: torch.Tensor | None, noise: torch.Tensor | None) -> Taken:
        actions = outputs if noise is None else outputs + self.std * noise
        z = (actions - outputs) * self.inverse_std
        log_prob = -0.5 * (z * z).sum(dim=1) - self.constant
        scaled = self.centre + self.scale * actions if self.is_scaled else actions
        scaled = scaled.reshape(-1, *self.shape)
        clipped = torch.minimum(torch.maximum(scaled.to(self.low.dtype), self.low), self.high)
        return clipped.to(self.dtype), log_prob


class ActionTensors(nn.Module):
    """Turns a network's outputs into actions.

    Args:
      space: the action space.
      log_std: [A] float32, the log standard deviations of its Boxes of floats, in the order of its leaves.
    """

    def __init__(self, space: gymnasium.Space[Any], log_std: np.ndarray) -> None:
        super().__init__()
        self.leaves = nn.ModuleList()
        self._sizes: list[tuple[int, int, int]] = []  # of each leaf: outputs, masks, noise
        start = 0
        for leaf in leaves(space):
            distribution = make_distribution(leaf.space)
            end = start + distribution.log_std_size
            self.leaves.append(_leaf_tensors(leaf, distribution, log_std[start:end]))
            self._sizes.append((distribution.network_outputs, distribution.mask_size, distribution.noise_size))
            start = end

    def forward(
        self, outputs: torch.Tensor, mask: torch.Tensor | None, noise: torch.Tensor | None
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Takes actions.

        Args:
          outputs: [B, K'] of the network.
          mask: [B, M] bool: the legal choices; None: all are.
          noise: [B, noise_size] float32, of the kinds that the distribution names; None: the most probable action.

        Returns:
          The actions of each leaf of the space, [B, *shape], and the log-probabilities [B] of all leaves together.
        """
        of_outputs, of_masks, of_noise = zip(*self._sizes, strict=True)
        outs = outputs.split(of_outputs, dim=1)
        masks = [None] * len(outs) if mask is None else mask.split(of_masks, dim=1)
        noises = [None] * len(outs) if noise is None else noise.split(of_noise, dim=1)
        taken = [leaf(*given) for leaf, *given in zip(self.leaves, outs, masks, noises, strict=True)]
        log_prob = taken[0][1]
        for _, more in taken[1:]:
            log_prob = log_prob + more
        return [actions for actions, _ in taken], log_prob


def _leaf_tensors(leaf: Leaf, distribution: Distribution, log_std: np.ndarray) -> nn.Module:
    if isinstance(distribution, DiagGaussian):
        return _Normals(leaf, distribution, log_std)
    return _Bits(leaf) if isinstance(distribution, Bernoulli) else _Choices(leaf, distribution.choices)


def _torch_type(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
