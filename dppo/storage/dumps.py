"""Rank 0's side of trajectory dumps: a checkpoint waits until every worker has sealed what it has seen.

Uses the segments' paths and answers; the journal asks, the coordinators carry the orders, the links answer.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Generic, TypeVar

from dppo.storage.segments import end_row, next_segments, rank_folder
from dppo.storage.trajectory import Sealed

B = TypeVar("B")
PATIENCE_S = 60.0
"""A worker that is stuck in its environment does not keep the others' progress from being saved for longer."""


class Dumps(Generic[B]):
    """Which segments the next checkpoint names.

    Args:
      first_rank: of worker 0, at the start of the run.
      next_segments: by rank, of all that have written so far.
    """

    def __init__(self, run_dir: Path, first_rank: int, next_segments: dict[int, int]) -> None:
        self._run_dir, self._first_rank = run_dir, first_rank
        self.next_segments = dict(next_segments)
        self.problem: str | None = None
        """The first that a worker has told of."""
        self.failed = False
        """Something could not be written."""
        self._limits: dict[int, int] = {}
        self._missing: set[int] = set()
        self._orders: dict[int, int] = {}
        self._boundary: B | None = None
        self._since = 0.0

    @property
    def is_waiting(self) -> bool:
        """Whether a checkpoint waits, and may still."""
        return self._boundary is not None and time.monotonic() - self._since < PATIENCE_S

    def ask(self, boundary: B, limits: dict[int, int]) -> None:
        """`boundary` is to be saved once each worker has sealed its rows before `limits`."""
        self._boundary, self._since = boundary, time.monotonic()
        self._limits, self._orders, self._missing = dict(limits), dict(limits), set(limits)

    def take_orders(self) -> dict[int, int]:
        """{worker: row} that were not sent yet."""
        orders, self._orders = self._orders, {}
        return orders

    def answer(self, sealed: Sealed) -> B | None:
        """A worker's answer. The boundary, where it was the last one that was missing."""
        self._note(sealed)
        worker = sealed.rank - self._first_rank
        if sealed.row is None or self._limits.get(worker) != sealed.row or self._boundary is None:
            return None
        if sealed.next_segment is None:  # it was too far ahead: another boundary will do
            self.give_up()
            return None
        self.next_segments[sealed.rank] = sealed.next_segment
        self._missing.discard(worker)
        if self._missing:
            return None
        boundary = self._boundary
        self.give_up()
        return boundary

    def give_up(self) -> None:
        """Nothing is waited for."""
        self._boundary = None
        self._limits, self._orders, self._missing = {}, {}, set()

    def regrouped(self, workers: Iterable[int]) -> None:
        """Only these are left: nothing is waited for, and what the others have sealed by themselves counts."""
        self.give_up()
        left = {worker + self._first_rank for worker in workers}
        visible = next_segments(self._run_dir)
        self.next_segments |= {rank: number for rank, number in visible.items() if rank not in left}

    def close(self, answers: Iterable[Sealed]) -> None:
        """The run ends; all have sealed what belongs to its last boundary."""
        self.give_up()
        for sealed in answers:
            self._note(sealed)
            if sealed.next_segment is not None:
                self.next_segments[sealed.rank] = sealed.next_segment

    def _note(self, sealed: Sealed) -> None:
        self.problem, self.failed = self.problem or sealed.problem, self.failed or sealed.failed

    def end_row(self, worker: int) -> int:
        """The row behind all that this worker has sealed."""
        return end_row(rank_folder(self._run_dir, worker + self._first_rank))
