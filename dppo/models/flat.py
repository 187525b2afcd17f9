"""The one idea: all parameters of a policy are views into one vector, all gradients into a second.

MPI moves the vectors without a copy, the optimiser is a handful of operations on them, a checkpoint is two or three of
them, and "are all ranks equal?" is one hash.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from math import prod

import numpy as np


class FlatParameters:
    """Two contiguous float32 buffers and the named views into them.

    vector: [P] the parameters
    summed: [P gradient | metric sums] what one update adds up over ranks, in one piece
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], num_sums: int) -> None:
        self.shapes = shapes
        self.size = sum(prod(shape) for shape in shapes.values())
        self.vector = np.zeros(self.size, np.float32)
        self.summed = np.zeros(self.size + num_sums, np.float32)
        self.gradient = self.summed[: self.size]
        self.sums = self.summed[self.size :]
        self.parameters = self._views(self.vector)
        self.gradients = self._views(self.gradient)
        self._bounds: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def bound(self, name: str, low: float, high: float) -> None:
        """From here on `keep_within_bounds` keeps the parameter `name` in [low, high]."""
        # arrays: a number would be made one at each call
        self._bounds.append((self.parameters[name], np.array(low, np.float32), np.array(high, np.float32)))

    def keep_within_bounds(self) -> None:
        """Moves what the last step has carried out of its bounds back to them."""
        for values, low, high in self._bounds:
            np.maximum(values, low, out=values)
            np.minimum(values, high, out=values)

    def _views(self, buffer: np.ndarray) -> dict[str, np.ndarray]:
        views, start = {}, 0
        for name, shape in self.shapes.items():
            views[name] = buffer[start : start + prod(shape)].reshape(shape)
            start += prod(shape)
        return views

    def fingerprint(self) -> str:
        """A hash of the parameters: equal on two ranks if and only if every bit of them is."""
        return hashlib.sha256(self.vector.tobytes()).hexdigest()[:16]

    def first_not_finite(self, vector: np.ndarray) -> str | None:
        """As `first_not_finite`, by the names of the parameters that `vector` [P] lies beside."""
        return first_not_finite(self.shapes, vector)


def is_finite(vector: np.ndarray) -> bool:
    """Whether every entry of `vector` [n] is finite.

    One product tells: whatever is not finite makes it infinite or NaN. It may overflow without one, which vdot does not
    warn of; then each entry is looked at.
    """
    return math.isfinite(np.vdot(vector, vector)) or bool(np.isfinite(vector).all())


def first_not_finite(shapes: Mapping[str, tuple[int, ...]], vector: np.ndarray) -> str | None:
    """Where `vector` [P] is not finite first, such as "policy.weight[3, 1] is nan"; None where all of it is finite.

    Args:
      shapes: of the parameters, by name, in the order in which they lie in `vector`.
    """
    bad = np.flatnonzero(~np.isfinite(vector))
    if not len(bad):
        return None
    start = int(bad[0])
    value = vector[start]
    for name, shape in shapes.items():
        if start < prod(shape):
            place = ", ".join(map(str, np.unravel_index(start, shape)))
            return f"{name}[{place}] is {value}" if shape else f"{name} is {value}"
        start -= prod(shape)
    return f"entry {bad[0]} is {value}"
