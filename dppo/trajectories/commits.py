"""Rank 0's side of trajectory dumps: a checkpoint waits until every worker has sealed the rows that it covers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from dppo.seams import Sealed
from dppo.trajectories.format import end_row, rank_folder, segments_until

B = TypeVar("B")
PATIENCE_S = 60.0
"""Most seconds that a checkpoint waits for a worker stuck in its environment; then the others' progress is saved."""


class Named(NamedTuple):
    """A checkpoint's entry about a rank's segments."""

    next_segment: int
    """The number of the rank's next segment; lower ones hold rows that the checkpoint has seen."""
    missing_rows: int
    """The number of rows that the checkpoint has seen after its last named segment and that no segment holds."""


class Dumps(Generic[B]):
    """Decides which segments the next checkpoint names.

    Args:
      first_rank: the rank of worker 0 at the start of the run.
      next_segments: {rank: number of its next segment}, of the ranks of earlier attempts.
      required: whether nothing more is saved once a segment could not be written.
    """

    def __init__(
        self, run_dir: Path, first_rank: int, next_segments: Mapping[int, int], *, required: bool = False
    ) -> None:
        self._run_dir, self._first_rank, self._required = run_dir, first_rank, required
        self._before = dict(next_segments)
        self.problem: str | None = None
        """The first problem that a worker has reported."""
        self._failed = False
        self._refused: dict[int, str] = {}  # by rank
        self._limits: dict[int, int] = {}
        self._answers: dict[int, Sealed] = {}
        self._orders: dict[int, int] = {}
        self._boundary: B | None = None
        self._since = 0.0

    @property
    def is_waiting(self) -> bool:
        """Whether a checkpoint waits for workers."""
        return self._boundary is not None

    @property
    def ends_the_run(self) -> bool:
        """Whether a segment could not be written and the run must end because of it."""
        return self._required and self._failed

    @property
    def refusal(self) -> str | None:
        """The disk's error for a worker that is trying again; None where there is none."""
        return next(iter(self._refused.values()), None)

    def ask(self, boundary: B, limits: Mapping[int, int]) -> None:
        """Asks each worker to seal its rows before its limit, so that `boundary` can be saved."""
        self._boundary, self._since = boundary, time.monotonic()
        self._limits, self._orders, self._answers = dict(limits), dict(limits), {}

    def take_orders(self) -> dict[int, int]:
        """Returns the orders {worker: row} that were not sent yet."""
        orders, self._orders = self._orders, {}
        return orders

    def answer(self, sealed: Sealed) -> B | None:
        """Takes a worker's answer. Returns the boundary if this was the last answer that was missing."""
        self.problem, self._failed = self.problem or sealed.problem, self._failed or sealed.failed
        if sealed.refusal:
            self._refused[sealed.rank] = sealed.refusal
        elif sealed.refusal is not None:
            self._refused.pop(sealed.rank, None)
        worker = sealed.rank - self._first_rank
        if sealed.row is None or self._limits.get(worker) != sealed.row or self._boundary is None:
            return None
        if sealed.next_segment is None:  # the worker was too far ahead: a later boundary is saved instead
            self.give_up()
            return None
        self._answers[sealed.rank] = sealed
        return self._finished() if len(self._answers) == len(self._limits) else None

    def expired(self) -> B | None:
        """Returns the boundary if it has waited for too long: it is saved without the workers that do not answer."""
        late = self._boundary is not None and time.monotonic() - self._since > PATIENCE_S
        return self._finished() if late else None

    def _finished(self) -> B | None:
        boundary, self._boundary = self._boundary, None
        return None if self.ends_the_run else boundary

    def give_up(self) -> None:
        """Stops waiting, and drops the boundary."""
        self._boundary = None
        self._limits, self._orders = {}, {}

    def named(self, rows: Mapping[int, int]) -> dict[int, Named]:
        """Returns {rank: its entry in a checkpoint that has seen these rows of each}. The entry of a silent or dead
        rank follows from its visible segments.
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
        """Returns the row after all that this worker has sealed."""
        return end_row(rank_folder(self._run_dir, worker + self._first_rank))
