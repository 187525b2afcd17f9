"""The one idea: all parameters of a policy are views into one vector, all gradients into a second.

Uses NumPy only. MPI moves the vectors without a copy, the optimiser is a handful of operations on them, a checkpoint
is two or three of them, and "are all ranks equal?" is one hash.
"""

from __future__ import annotations

import hashlib
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

    def _views(self, buffer: np.ndarray) -> dict[str, np.ndarray]:
        views, start = {}, 0
        for name, shape in self.shapes.items():
            views[name] = buffer[start : start + prod(shape)].reshape(shape)
            start += prod(shape)
        return views

    def fingerprint(self) -> str:
        """A hash of the parameters: equal on two ranks if and only if every bit of them is."""
        return hashlib.sha256(self.vector.tobytes()).hexdigest()[:16]
