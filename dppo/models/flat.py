"""Keeps all parameters of a policy as views into one vector, and all gradients as views into a second.

MPI moves the vectors without a copy, the optimiser is a handful of operations on them, a checkpoint is two or three of
them, and one hash answers "are all ranks equal?".
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from math import prod

import numpy as np

MOST_PARAMETERS = 5 * 10**8


class FlatParameters:
    """Two contiguous float32 buffers and the named views into them.

    vector: [P] the parameters
    summed: [P gradient | metric sums] what one update adds up over ranks, in one piece
    constants: arrays of any type that a network needs beside its parameters, and that nothing changes
    """

    def __init__(
        self, shapes: dict[str, tuple[int, ...]], num_sums: int, constants: Mapping[str, np.ndarray] | None = None
    ) -> None:
        self.shapes, self.constants = shapes, dict(constants or {})
        self.size = sum(prod(shape) for shape in shapes.values())
        self.vector = np.zeros(self.size, np.float32)
        self.version = 0
        """Number of changes of the parameters."""
        self.summed = np.zeros(self.size + num_sums, np.float32)
        self.gradient = self.summed[: self.size]
        self.sums = self.summed[self.size :]
        self.parameters = self._views(self.vector)
        self.gradients = self._views(self.gradient)
        self._bounds: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def bound(self, name: str, low: float, high: float) -> None:
        """Has `keep_within_bounds` keep the parameter `name` in [low, high] from here on."""
        # arrays: each call would make one of a number
        self._bounds.append((self.parameters[name], np.array(low, np.float32), np.array(high, np.float32)))

    def keep_within_bounds(self) -> None:
        """Moves parameters that the last step has carried out of their bounds back to these. Ends a step."""
        for values, low, high in self._bounds:
            np.maximum(values, low, out=values)
            np.minimum(values, high, out=values)
        self.touch()

    def assign(self, vector: np.ndarray) -> None:
        """Takes over other parameters, [P]."""
        self.vector[:] = vector
        self.touch()

    def touch(self) -> None:
        """Notes that the parameters have changed. Whoever writes to them calls it: a network on a GPU has copies."""
        self.version += 1

    def _views(self, buffer: np.ndarray) -> dict[str, np.ndarray]:
        views, start = {}, 0
        for name, shape in self.shapes.items():
            views[name] = buffer[start : start + prod(shape)].reshape(shape)
            start += prod(shape)
        return views

    def check_constants(self, saved: Mapping[str, np.ndarray]) -> None:
        """Raises ValueError if these are not arrays of the same names, types and shapes as the constants."""
        there, here = ({n: f"{a.dtype} {a.shape}" for n, a in arrays.items()} for arrays in (saved, self.constants))
        if there != here:
            raise ValueError(f"the checkpoint holds a network with the buffers {there}, this one has {here}")

    def set_constants(self, saved: Mapping[str, np.ndarray]) -> None:
        """Takes over another network's constants. Raises ValueError as `check_constants`."""
        self.check_constants(saved)
        for name, array in saved.items():
            self.constants[name][...] = array
        self.touch()

    def fingerprint(self) -> str:
        """Returns a hash: equal on two ranks if and only if every bit of the parameters and constants is."""
        digest = hashlib.sha256(self.vector.tobytes())
        for array in self.constants.values():
            digest.update(array.tobytes())
        return digest.hexdigest()[:16]

    def first_not_finite(self, vector: np.ndarray) -> str | None:
        """Calls the function `first_not_finite` for `vector` [P], with the names of these parameters."""
        return first_not_finite(self.shapes, vector)


def is_finite(vector: np.ndarray) -> bool:
    """Returns whether every entry of `vector` [n] is finite.

    One product tells: an entry that is not finite makes it infinite or NaN. The product of finite entries may overflow,
    without a warning by vdot; then each entry is looked at.
    """
    return math.isfinite(np.vdot(vector, vector)) or bool(np.isfinite(vector).all())


def first_not_finite(shapes: Mapping[str, tuple[int, ...]], vector: np.ndarray) -> str | None:
    """Says where `vector` [P] is not finite first, as "policy.weight[3, 1] is nan". Returns None where all is finite.

    Args:
      shapes: the shapes of the parameters, by name, in the order in which they lie in `vector`.
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
