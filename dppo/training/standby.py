"""What a rank keeps for the case that others die: reports, boundaries, and the mirror of the server's state.

A standby costs at most one copy of the state per iteration, and exists only if deaths can be survived.
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
    """Number of updates that were made before the copy."""
    iteration: int
    """Number of iterations that were finished before the copy."""
    state: np.ndarray
    """uint8, packed; empty in sync/allreduce, where every worker has the state."""
    counters: dict[str, Any]
    """The tracker's counters at the last boundary."""

    def to_message(self) -> np.ndarray:
        """Returns the mirror as uint8."""
        header = np.array([self.updates, self.iteration, len(self.state)], np.int64).view(np.uint8)
        counters = np.frombuffer(pickle.dumps(self.counters, protocol=5), np.uint8)
        return np.concatenate((header, self.state, counters))

    @classmethod
    def from_message(cls, message: np.ndarray) -> Mirror:
        """Reads what `to_message` has returned."""
        updates, iteration, size = message[: 8 * _HEADER].view(np.int64).tolist()
        rest = message[8 * _HEADER :]
        return cls(updates, iteration, rest[:size], pickle.loads(rest[size:].tobytes()))


class Standby:
    """One rank's standby. Its contents stay until newer ones replace them, so that a regrouping can be repeated."""

    REPORTS, HEADS = 16, 4

    def __init__(self) -> None:
        self.replay = Replay()
        self.reports: deque[Report] = deque(maxlen=self.REPORTS)
        """The last reports, which rank 0 may have counted or not."""
        self.boundary: np.ndarray | None = None
        """The packed state at the last boundary (sync/allreduce, a worker that computes)."""
        self.boundary_heads: dict[int, np.ndarray] = {}
        """iteration -> head of the packed state at the iteration's end, for the iterations that rank 0 may not have
        closed (sync/allreduce).
        """
        self.totals: np.ndarray | None = None
        """The statistics of the iteration under way, added up (sync/p2p)."""
        self._mirror: np.ndarray | None = None

    def add_report(self, report: Report) -> None:
        """Keeps the report that is sent to rank 0 now. It replaces an earlier report of the same rollout."""
        if self.reports and self.reports[-1].first_row == report.first_row:
            self.reports.pop()
        self.reports.append(report)
        self.replay.extend(report)

    def pass_boundary(self, iteration: int, state: np.ndarray, head_bytes: int) -> None:
        """Keeps `state` [all_bytes] uint8, not written again, the packed state after `iteration` iterations
        (sync/allreduce).
        """
        self.boundary = state
        self.boundary_heads[iteration] = state[:head_bytes].copy()
        for old in [i for i in self.boundary_heads if i <= iteration - self.HEADS or i > iteration]:
            del self.boundary_heads[old]

    @property
    def mirror(self) -> Mirror | None:
        """The newest mirror that has come, if this rank is or was a standby."""
        return None if self._mirror is None else Mirror.from_message(self._mirror)

    def keep_mirror(self, message: np.ndarray) -> None:
        """Keeps a mirror that came from the server; it is read when it is needed."""
        self._mirror = message
