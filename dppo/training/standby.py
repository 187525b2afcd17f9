"""What a rank keeps for the case that others die: reports, boundaries, and the copy of the server's state that a
standby holds.

It costs a copy of the state per iteration at most, and exists only where deaths can be survived.
"""

from __future__ import annotations

import pickle
from collections import deque
from typing import Any, NamedTuple

import numpy as np

from dppo.data import Report
from dppo.training.replay import Replay

_HEADER = 3


class Mirror(NamedTuple):
    """The standby's copy of what only the server knows."""

    updates: int
    """Made when it was copied."""
    iteration: int
    """Finished by then."""
    state: np.ndarray
    """uint8, packed; empty in sync/allreduce, where every worker has the state."""
    counters: dict[str, Any]
    """The tracker's, at the last boundary."""

    def to_message(self) -> np.ndarray:
        """uint8."""
        header = np.array([self.updates, self.iteration, len(self.state)], np.int64).view(np.uint8)
        counters = np.frombuffer(pickle.dumps(self.counters, protocol=5), np.uint8)
        return np.concatenate((header, self.state, counters))

    @classmethod
    def from_message(cls, message: np.ndarray) -> Mirror:
        """The inverse of `to_message`."""
        updates, iteration, size = message[: 8 * _HEADER].view(np.int64).tolist()
        rest = message[8 * _HEADER :]
        return cls(updates, iteration, rest[:size], pickle.loads(rest[size:].tobytes()))


class Standby:
    """One rank's. What is in it stays until something newer replaces it, so that a regrouping can be begun again."""

    REPORTS, HEADS = 16, 4

    def __init__(self) -> None:
        self.replay = Replay()
        self.reports: deque[Report] = deque(maxlen=self.REPORTS)
        """The last ones: rank 0 may have counted them or not."""
        self.boundary: np.ndarray | None = None
        """sync/allreduce, a worker that computes: its packed state at the last boundary."""
        self.boundary_heads: dict[int, np.ndarray] = {}
        """sync/allreduce: iteration -> counters and metrics at its end; of those that rank 0 may not have closed."""
        self.totals: np.ndarray | None = None
        """sync/p2p: the statistics of the iteration under way, added up."""
        self._mirror: np.ndarray | None = None

    def add_report(self, report: Report) -> None:
        """Keeps the report of a rollout that rank 0 is sent now. A report that is kept already is replaced."""
        if self.reports and self.reports[-1].first_row == report.first_row:
            self.reports.pop()
        self.reports.append(report)
        self.replay.extend(report)

    def pass_boundary(self, iteration: int, state: np.ndarray, head_bytes: int) -> None:
        """sync/allreduce: `state` [all_bytes] uint8, not written again, is that after `iteration` iterations."""
        self.boundary = state
        self.boundary_heads[iteration] = state[:head_bytes].copy()
        for old in [i for i in self.boundary_heads if i <= iteration - self.HEADS or i > iteration]:
            del self.boundary_heads[old]

    @property
    def mirror(self) -> Mirror | None:
        """The newest copy that has come, if this rank is or was a standby."""
        return None if self._mirror is None else Mirror.from_message(self._mirror)

    def keep_mirror(self, message: np.ndarray) -> None:
        """It came from the server; it is read when it is needed."""
        self._mirror = message
