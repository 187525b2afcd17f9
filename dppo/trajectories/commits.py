"""Rank 0's side of trajectory dumps: a checkpoint waits until every worker has sealed what it has seen."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from dppo.data import Sealed
from dppo.trajectories.format import end_row, rank_folder, segments_until

B = TypeVar("B")
PATIENCE_S = 60.0
"""A worker that is stuck in its environment does not keep the others' progress from being saved for longer."""


class Named(NamedTuple):
    """What a checkpoint says of a rank's segments."""

    next_segment: int
    """Those below it hold what the checkpoint has seen."""
    missing_rows: int
    """Behind them, which no segment holds."""


class Dumps(Generic[B]):
    """Which segments the next checkpoint names.

    Args:
      first_rank: of worker 0, at the start of the run.
      next_segments: by rank, of those that took part in earlier attempts.
      required: nothing is saved once something could not be written.
    """

    def __init__(
        self, run_dir: Path, first_rank: int, next_segments: Mapping[int, int], *, required: bool = False
    ) -> None:
        self._run_dir, self._first_rank, self._required = run_dir, first_rank, required
        self._before = dict(next_segments)
        self.problem: str | None = None
        """The first that a worker has told of."""
        self._failed = False
        self._refused: dict[int, str] = {}  # by rank
        self._limits: dict[int, int] = {}
        self._answers: dict[int, Sealed] = {}
        self._orders: dict[int, int] = {}
        self._boundary: B | None = None
        self._since = 0.0

    @property
    def is_waiting(self) -> bool:
        """Whether a checkpoint waits."""
        return self._boundary is not None

    @property
    def ends_the_run(self) -> bool:
        """Something could not be written, and that was to end the run."""
        return self._required and self._failed

    @property
    def refusal(self) -> str | None:
        """What the disk says to a worker that asks it again."""
        return next(iter(self._refused.values()), None)

    def ask(self, boundary: B, limits: Mapping[int, int]) -> None:
        """`boundary` is to be saved once each worker has sealed its rows before `limits`."""
        self._boundary, self._since = boundary, time.monotonic()
        self._limits, self._orders, self._answers = dict(limits), dict(limits), {}

    def take_orders(self) -> dict[int, int]:
        """{worker: row} that were not sent yet."""
        orders, self._orders = self._orders, {}
        return orders

    def answer(self, sealed: Sealed) -> B | None:
        """A worker's answer. The boundary, where it was the last one that was missing."""
        self.problem, self._failed = self.problem or sealed.problem, self._failed or sealed.failed
        if sealed.refusal:
            self._refused[sealed.rank] = sealed.refusal
        elif sealed.refusal is not None:
            self._refused.pop(sealed.rank, None)
        worker = sealed.rank - self._first_rank
        if sealed.row is None or self._limits.get(worker) != sealed.row or self._boundary is None:
            return None
        if sealed.next_segment is None:  # it was too far ahead: another boundary will do
            self.give_up()
            return None
        self._answers[sealed.rank] = sealed
        return self._finished() if len(self._answers) == len(self._limits) else None

    def expired(self) -> B | None:
        """The boundary that waits, where that has taken too long: it is saved without those who do not answer."""
        late = self._boundary is not None and time.monotonic() - self._since > PATIENCE_S
        return self._finished() if late else None

    def _finished(self) -> B | None:
        boundary, self._boundary = self._boundary, None
        return None if self.ends_the_run else boundary

    def give_up(self) -> None:
        """Nothing is waited for."""
        self._boundary = None
        self._limits, self._orders = {}, {}

    def named(self, rows: Mapping[int, int]) -> dict[int, Named]:
        """{rank: what a checkpoint says of it}; of those that were asked and are silent, or dead, what is visible.

        Args:
          rows: by rank, what the checkpoint has seen.
        """
        out = {rank: Named(number, 0) for rank, number in self._before.items()}
        for rank, row in rows.items():
            sealed = self._answers.get(rank)
            if sealed is not None and sealed.row == row and sealed.next_segment is not None:
                number, end = sealed.next_segment, sealed.end_row
            else:
                number, end = segments_until(rank_folder(self._run_dir, rank), row)
            out[rank] = Named(number, row - end)
        return out

    def end_row(self, worker: int) -> int:
        """The row behind all that this worker has sealed."""
        return end_row(rank_folder(self._run_dir, worker + self._first_rank))
