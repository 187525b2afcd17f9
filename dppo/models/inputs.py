"""Turns raw observations into the network's inputs, leaf by leaf, and keeps the moments that normalise them.

| leaf | inputs |
|---|---|
| Box of numbers, not with three axes | each element normalised by its running moments |
| Box with three axes: an image | channels first, scaled to [0, 1] where it has bounds; to an encoder |
| Discrete, MultiDiscrete, of at most 64 values | one-hot, `start` respected |
| the same, of more values | its index, to an embedding |
| MultiBinary | 0 or 1 |
| `action_mask` of a Dict | nothing: it says which actions are legal |

Images and indices are taken from the raw observations when a network runs: a rollout holds an image once, as uint8.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from dppo.algo.moments import LARGE, RunningMoments, normalise
from dppo.config import MomentsConfig
from dppo.envs.leaves import ArrayType, Leaf, array_type, leaves

MOST_ONE_HOT = 64
"""The most values of a choice that become one input each."""
UNBOUNDED = 1e6
"""The bound from which on an image of signed numbers counts as unbounded."""
MASK = "action_mask"
"""The leaf of a Dict that says which actions are legal, as Gymnasium's users call it."""


class Numbers:
    """A leaf of numbers: `width` inputs, of which `moments` is the part of the running moments."""

    def __init__(self, leaf: Leaf, start: int, cfg: MomentsConfig) -> None:
        self.leaf, self.width = leaf, int(np.prod(leaf.shape, dtype=int))
        self.moments = slice(start, start + self.width)
        self.is_normalised, self.clip = cfg.observations, cfg.clip
        self._is_flat = not leaf.path and len(leaf.shape) == 1

    def freeze(self, moments: RunningMoments) -> None:
        """Fixes the moments that `write` uses."""
        self.mean = moments.frozen_mean[self.moments]
        is_small = np.abs(self.mean).max(initial=0.0) <= LARGE
        self.shift = self.mean.astype(np.float32) if is_small else self.mean
        self.inverse_std = (1.0 / moments.now.std()[self.moments]).astype(np.float32)

    def rows(self, observations: np.ndarray) -> np.ndarray:
        """Returns this leaf's part of observations [B, *obs], flattened to [B, width]."""
        if self._is_flat:
            return observations
        array = self.leaf.of(observations)
        # the width is told: of no rows it cannot be found out
        return array if array.ndim == 2 else array.reshape(len(array), self.width)

    def write(self, observations: np.ndarray, out: np.ndarray) -> None:
        """Writes the inputs of observations [B, *obs] into `out` [B, width] float32."""
        rows = self.rows(observations)
        if self.is_normalised:
            shift = self.mean if rows.dtype.itemsize > 4 else self.shift
            normalise(rows, shift, self.inverse_std, self.clip, out)
        else:
            out[...] = rows


class OneHot:
    """A leaf of choices: one input for each value of each of its elements."""

    def __init__(self, leaf: Leaf) -> None:
        space: Any = leaf.space
        sizes = np.array(_sizes(leaf), np.int64)
        self.leaf, self.width = leaf, int(sizes.sum())
        self._first = np.cumsum(sizes) - sizes - np.asarray(space.start).reshape(-1)

    def write(self, observations: np.ndarray, out: np.ndarray) -> None:
        """Writes the inputs of observations [B, *obs] into `out` [B, width] float32."""
        values = self.leaf.of(observations)
        chosen = values.reshape(len(values), len(self._first)) + self._first
        out[...] = 0.0
        out[np.arange(len(values))[:, None], chosen] = 1.0


class Bits:
    """A leaf of bits: one input each."""

    def __init__(self, leaf: Leaf) -> None:
        self.leaf, self.width = leaf, int(np.prod(leaf.shape, dtype=int))

    def write(self, observations: np.ndarray, out: np.ndarray) -> None:
        """Writes the inputs of observations [B, *obs] into `out` [B, width] float32."""
        bits = self.leaf.of(observations)
        out[...] = bits.reshape(len(bits), self.width)


class Indices:
    """A leaf of choices of which some have many values: `sizes` has the number of values of each element."""

    def __init__(self, leaf: Leaf) -> None:
        self.leaf, self.sizes = leaf, _sizes(leaf)
        space: Any = leaf.space
        self._start = np.asarray(space.start).reshape(-1)

    def rows(self, observations: np.ndarray) -> np.ndarray:
        """Returns the indices of observations [B, *obs], [B, elements] int64, each from 0."""
        values = self.leaf.of(observations)
        return (values.reshape(len(values), len(self.sizes)) - self._start).astype(np.int64, copy=False)


class Image:
    """A leaf of images. The axis of channels is the shorter one of the first and the last, the last of equal ones."""

    def __init__(self, leaf: Leaf) -> None:
        self.leaf = leaf
        first, middle, last = leaf.shape
        self.is_channels_first = first < last
        self.shape = (first, middle, last) if self.is_channels_first else (last, first, middle)
        """Channels, height and width."""
        space: Any = leaf.space
        low, high = float(space.low.min()), float(space.high.max())
        # some environments write "unbounded" as a huge number
        is_bounded = low < high and (leaf.dtype.kind in "bu" or max(-low, high) < UNBOUNDED)
        self.low, self.scale = (low, 1.0 / (high - low)) if is_bounded else (0.0, 1.0)

    def of(self, observations: np.ndarray) -> np.ndarray:
        """Returns the raw images in observations [B, *obs], [B, channels, height, width]: a view."""
        images = self.leaf.of(observations)
        return images if self.is_channels_first else images.transpose(0, 3, 1, 2)


def _sizes(leaf: Leaf) -> list[int]:
    """Returns the number of values of each element of a leaf of choices."""
    space: Any = leaf.space
    sizes = np.asarray(space.n if isinstance(space, spaces.Discrete) else space.nvec)
    return [int(size) for size in sizes.reshape(-1)]


class Inputs(RunningMoments):
    """The inputs of a network for the observations of a space, and the moments of the numbers in them.

    `freeze` fixes the moments that acting, advantages and gradients of one iteration use.
    """

    def __init__(self, space: gymnasium.Space[Any], cfg: MomentsConfig) -> None:
        self.observation_type = array_type(space)
        self.vector_leaves: list[tuple[slice, Numbers | OneHot | Bits]] = []
        self.index_leaves: list[Indices] = []
        self.images: list[Image] = []
        self.size = num_moments = 0
        """D, the number of vector inputs."""
        for leaf in leaves(space):
            if leaf.path == (MASK,):
                continue
            if isinstance(leaf.space, spaces.Box) and len(leaf.shape) == 3 and 0 not in leaf.shape:
                self.images.append(Image(leaf))
            elif isinstance(leaf.space, spaces.Discrete | spaces.MultiDiscrete) and any(
                size > MOST_ONE_HOT for size in _sizes(leaf)
            ):
                self.index_leaves.append(Indices(leaf))
            else:
                part = _vector(leaf, num_moments, cfg)
                num_moments += part.width if isinstance(part, Numbers) else 0
                self.vector_leaves.append((slice(self.size, self.size + part.width), part))
                self.size += part.width
        self._numbers = [part for _, part in self.vector_leaves if isinstance(part, Numbers)]
        self._only = self.vector_leaves[0][1].write if len(self.vector_leaves) == 1 else None
        self.choices = [size for part in self.index_leaves for size in part.sizes]
        """The number of values of each choice that is embedded."""
        self.is_raw = bool(self.images or self.index_leaves)
        """Whether networks take raw observations apart by `vectors`, `indices` and `images`; else they take vectors."""
        self.type: ArrayType = self.observation_type if self.is_raw else ((self.size,), np.dtype(np.float32))
        """Shape and type of what a network takes for one observation."""
        super().__init__(num_moments)
        self.freeze()

    def freeze(self) -> None:
        super().freeze()
        for part in self._numbers:
            part.freeze(self)

    def use_raw(self) -> None:
        """Has the network take raw observations, whatever they are."""
        self.is_raw, self.type = True, self.observation_type

    def __call__(self, observations: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Turns raw observations [B, *obs] into what a network takes: vectors [B, D] float32, in `out` if given, or the
        raw observations.
        """
        return observations if self.is_raw else self.vectors(observations, out)

    def vectors(self, observations: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Returns the vector inputs of raw observations [B, *obs], [B, D] float32, in `out` if given."""
        if out is None:
            out = np.empty((len(observations), self.size), np.float32)
        if self._only is not None:
            self._only(observations, out)
        else:
            for columns, part in self.vector_leaves:
                part.write(observations, out[:, columns])
        return out

    def indices(self, observations: np.ndarray) -> np.ndarray:
        """Returns the choices that are embedded, [B, len(choices)] int64, each from 0."""
        if not self.index_leaves:
            return np.empty((len(observations), 0), np.int64)
        return np.concatenate([part.rows(observations) for part in self.index_leaves], axis=1)

    def normalised(self, observations: np.ndarray) -> dict[tuple[str, ...], np.ndarray]:
        """Returns the leaves of numbers in observations [B, *obs], by path: normalised, [B, *shape] float32."""
        out = {}
        for part in self._numbers:
            rows = np.empty((len(observations), part.width), np.float32)
            part.write(observations, rows)
            out[part.leaf.path] = rows.reshape(len(observations), *part.leaf.shape)
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


def _vector(leaf: Leaf, num_moments: int, cfg: MomentsConfig) -> Numbers | OneHot | Bits:
    if isinstance(leaf.space, spaces.Discrete | spaces.MultiDiscrete):
        return OneHot(leaf)
    return Bits(leaf) if isinstance(leaf.space, spaces.MultiBinary) else Numbers(leaf, num_moments, cfg)
