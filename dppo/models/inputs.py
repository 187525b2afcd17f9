"""Turns raw observations into the network's inputs, leaf by leaf, and keeps the moments that normalise them.

| leaf | inputs |
|---|---|
| Box of numbers, any shape but an image's | each element normalised by its running moments |
| Discrete, MultiDiscrete | one-hot, `start` respected |
| MultiBinary | 0 or 1 |
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from dppo.algo.moments import LARGE, RunningMoments, normalise
from dppo.config import MomentsConfig
from dppo.envs.leaves import Leaf, leaves

MOST_ONE_HOT = 64
"""The most values of a Discrete that become one input each."""


class _Numbers:
    """A leaf of numbers: `width` inputs, of which `moments` is the part of the running moments."""

    def __init__(self, leaf: Leaf, start: int) -> None:
        self.leaf, self.width = leaf, int(np.prod(leaf.shape, dtype=int))
        self.moments = slice(start, start + self.width)

    def freeze(self, moments: RunningMoments) -> None:
        """Fixes the moments that `normalised` uses."""
        self._mean = moments.frozen_mean[self.moments]
        is_small = np.abs(self._mean).max(initial=0.0) <= LARGE
        self._shift = self._mean.astype(np.float32) if is_small else self._mean
        self._inverse_std = (1.0 / moments.now.std()[self.moments]).astype(np.float32)

    def normalised(self, observations: np.ndarray, clip: float, out: np.ndarray | None) -> np.ndarray:
        """Returns the normalised numbers of observations [B, *obs], [B, width] float32, in `out` if given."""
        rows = self.rows(observations)
        return normalise(rows, self._mean if rows.dtype.itemsize > 4 else self._shift, self._inverse_std, clip, out)

    def rows(self, observations: np.ndarray) -> np.ndarray:
        """Returns this leaf's part of observations [B, *obs], flattened to [B, width]."""
        array = self.leaf.of(observations)
        return array if array.ndim == 2 else array.reshape(len(array), -1)


class _OneHot:
    """A leaf of choices: one input for each value of each of its elements."""

    def __init__(self, leaf: Leaf) -> None:
        space: Any = leaf.space
        sizes = np.asarray(space.n if isinstance(space, spaces.Discrete) else space.nvec).reshape(-1)
        self.leaf, self.width = leaf, int(sizes.sum())
        self._first = np.cumsum(sizes) - sizes - np.asarray(space.start).reshape(-1)

    def write(self, observations: np.ndarray, out: np.ndarray) -> None:
        """Writes the inputs of observations [B, *obs] into `out` [B, width] float32."""
        values = self.leaf.of(observations)
        chosen = values.reshape(len(values), -1) + self._first
        out[...] = 0.0
        out[np.arange(len(values))[:, None], chosen] = 1.0


class _Bits:
    """A leaf of bits: one input each."""

    def __init__(self, leaf: Leaf) -> None:
        self.leaf, self.width = leaf, int(np.prod(leaf.shape, dtype=int))

    def write(self, observations: np.ndarray, out: np.ndarray) -> None:
        """Writes the inputs of observations [B, *obs] into `out` [B, width] float32."""
        bits = self.leaf.of(observations)
        out[...] = bits.reshape(len(bits), -1)


class Inputs(RunningMoments):
    """The inputs of a network for the observations of a space; the moments of the numbers in them.

    `freeze` fixes the moments that acting, advantages and gradients of one iteration use.
    """

    def __init__(self, space: gymnasium.Space[Any], cfg: MomentsConfig) -> None:
        self._cfg = cfg
        self._parts: list[tuple[slice, _Numbers | _OneHot | _Bits]] = []
        self.size = num_moments = 0
        """D, the number of inputs."""
        for leaf in leaves(space):
            part = _part_of(leaf, num_moments)
            num_moments += part.width if isinstance(part, _Numbers) else 0
            self._parts.append((slice(self.size, self.size + part.width), part))
            self.size += part.width
        self._numbers = [part for _, part in self._parts if isinstance(part, _Numbers)]
        self._is_plain = len(self._parts) == len(self._numbers) == 1
        super().__init__(num_moments)
        self.freeze()

    def freeze(self) -> None:
        super().freeze()
        for part in self._numbers:
            part.freeze(self)

    def __call__(self, observations: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Turns raw observations [B, *obs] into inputs [B, D] float32, in `out` if given."""
        if self._is_plain:
            return self._of_numbers(self._numbers[0], observations, out)
        if out is None:
            out = np.empty((len(observations), self.size), np.float32)
        for columns, part in self._parts:
            if isinstance(part, _Numbers):
                self._of_numbers(part, observations, out[:, columns])
            else:
                part.write(observations, out[:, columns])
        return out

    def _of_numbers(self, part: _Numbers, observations: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        if self._cfg.observations:
            return part.normalised(observations, self._cfg.clip, out)
        rows = part.rows(observations)
        if out is None:
            return rows.astype(np.float32)
        out[...] = rows
        return out

    def numbers(self, observations: np.ndarray) -> np.ndarray:
        """Returns the numbers in observations [B, *obs] that have moments, [B, M] in their own type."""
        if len(self._numbers) == 1:
            return self._numbers[0].rows(observations)
        if not self._numbers:
            return np.empty((len(observations), 0))
        return np.concatenate([part.rows(observations) for part in self._numbers], axis=1)

    def deltas(self, observations: np.ndarray) -> np.ndarray:
        """Sums the numbers in observations [B, *obs] as `RunningMoments.deltas` does."""
        return super().deltas(self.numbers(observations))

    def problem(self) -> str | None:
        """Names the first moment that is not finite, with the repair. Returns None where all are finite."""
        bad = self.first_not_finite()
        if bad is None:
            return None
        part = next(part for part in self._numbers if bad < part.moments.stop)
        name = f"{part.leaf.name} " * bool(part.leaf.name) + str(bad - part.moments.start)
        return f"the moments of observation {name}; have the environment, or a wrapper, give smaller ones"


def _part_of(leaf: Leaf, num_moments: int) -> _Numbers | _OneHot | _Bits:
    if isinstance(leaf.space, spaces.Box) and len(leaf.shape) == 3:
        raise ValueError(
            f"observation space {leaf.space} is an image, which is not supported: put"
            " gymnasium.wrappers.FlattenObservation around the environment, or a wrapper that makes features of it"
        )
    if isinstance(leaf.space, spaces.Discrete | spaces.MultiDiscrete):
        return _OneHot(leaf)
    return _Bits(leaf) if isinstance(leaf.space, spaces.MultiBinary) else _Numbers(leaf, num_moments)
