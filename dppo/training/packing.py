"""How the state travels in one piece: [numbers int64 | reals float64 | parameters float32 | optimiser float32].

The later parts may be left out: a server's workers do not need the optimiser's statistics, and rank 0 needs only the
head of a boundary that has passed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

COUNTERS = ("version", "iteration", "round", "updates", "env_steps", "steps_learnt_from")
NUMBERS = (*COUNTERS, "optimizer_steps")
ROUNDING = 1e-5
"""The largest rounding, relative to the largest entry; a step on a sum that a death has spoilt differs by more."""


class Parts(NamedTuple):
    """Views into a packed state."""

    numbers: np.ndarray
    """[len(NUMBERS)] int64."""
    reals: np.ndarray
    """[3 + 2 metrics + moments] float64: the KL penalty's weight, the last KL, the learning rate that schedules begin
    with; the metrics of the last iteration, and the sums of the one under way."""
    parameters: np.ndarray
    """[P] float32."""
    optimizer: np.ndarray
    """[K P] float32, or empty."""


class Layout:
    """The places of the parts in a packed state, for a network of `optimizer_shape` [K, P] statistics."""

    def __init__(self, num_reals: int, optimizer_shape: tuple[int, int]) -> None:
        self._optimizer_shape = optimizer_shape
        self.head_bytes = 8 * (len(NUMBERS) + num_reals)
        """Bytes up to the parameters: counters, metrics and moments."""
        self.core_bytes = self.head_bytes + 4 * optimizer_shape[1]
        """Bytes without the optimiser's statistics."""
        self.all_bytes = self.core_bytes + 4 * optimizer_shape[0] * optimizer_shape[1]

    def parts(self, message: np.ndarray) -> Parts:
        """Returns views into `message`, uint8 of core_bytes or all_bytes."""
        a, b, c = 8 * len(NUMBERS), self.head_bytes, self.core_bytes
        return Parts(
            message[:a].view(np.int64), message[a:b].view(np.float64), message[b:c].view(np.float32),
            message[c:].view(np.float32),
        )  # fmt: skip

    def differ_by_rounding(self, one: np.ndarray, other: np.ndarray) -> bool:
        """Returns whether two packed states are equal, except for last bits that differ between two CPUs."""
        mine, others = self.parts(one), self.parts(other)
        arrays, counterparts = (
            [parts.parameters, *parts.optimizer.reshape(self._optimizer_shape)] for parts in (mine, others)
        )
        return bool(
            np.array_equal(mine.numbers, others.numbers)
            and np.allclose(mine.reals, others.reals, rtol=ROUNDING, equal_nan=True)
            and all(
                np.abs(a - b).max() <= ROUNDING * min(np.abs(a).max(), np.abs(b).max())
                for a, b in zip(arrays, counterparts, strict=True)
            )
        )


def moment_of(message: np.ndarray) -> tuple[int, int]:
    """Returns (iteration, version) of a packed state."""
    numbers = message[: 8 * len(NUMBERS)].view(np.int64)
    return int(numbers[NUMBERS.index("iteration")]), int(numbers[NUMBERS.index("version")])


def is_boundary(message: np.ndarray) -> bool:
    """Returns whether a packed state is between two iterations."""
    return not message[: 8 * len(NUMBERS)].view(np.int64)[NUMBERS.index("round")]
