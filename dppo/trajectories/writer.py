"""A worker's trajectory writer, which gathers rollouts and makes segments of them.

    RUN/trajectories/rank_00003/seg_000012.h5

A segment is built in memory and becomes visible in one step. Thus no file is ever half written, and the HDF5 library,
which dies on a full disk, never writes to one.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from dppo.data import Rollout
from dppo.errors import DumpError
from dppo.seams import Sealed
from dppo.trajectories.buffer import RolloutBuffer
from dppo.trajectories.disk import Disk
from dppo.trajectories.format import end_row, segment_files, segment_path, written_steps
from dppo.trajectories.segment import MAX_BYTES, SegmentBuilder
from dppo.trajectories.segment import Labels as Labels


class Answers:
    """The messages of a worker to rank 0."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._waiting: list[Sealed] = []
        self._problem_told = self._refusal_told = False

    def take(self) -> list[Sealed]:
        """Returns the messages that were not taken before."""
        out, self._waiting = self._waiting, []
        return out

    def sealed(self, row: int, next_segment: int | None, end_row: int = 0) -> None:
        """Adds the answer to a `seal`."""
        self._waiting.append(Sealed(self._rank, row, next_segment, end_row))

    def problem(self, text: str, *, failed: bool = False) -> None:
        """Adds a message about the first problem; ignores later ones."""
        if not self._problem_told:
            self._problem_told = True
            self._waiting.append(Sealed(self._rank, None, None, 0, text, failed))

    def refusal(self, text: str) -> None:
        """Adds a message when the disk begins to refuse, and when it no longer does ("")."""
        if self._refusal_told != bool(text):
            self._refusal_told = bool(text)
            self._waiting.append(Sealed(self._rank, None, None, refusal=text))


class TrajectoryWriter:
    """Gathers a worker's rollouts and makes segments of them; a thread writes each once it is built.

    Args:
      seed_of: (index of an environment, number of an episode) -> the episode's seed; None where episodes have none.
      has_raw_actions: whether actions as sampled differ from actions as sent.
      max_bytes: the most bytes of this worker's folder; None: no limit.
      required: whether the first error counts. Otherwise a segment that a full disk refuses waits in memory, and the
        rollouts after it wait too, until they have KEPT_WAITING times a segment's bytes.
      wait_s: the most seconds to wait at the end for a disk that refuses.
    """

    FULL = 0.7
    """Share of `segment_bytes` at which a segment is sealed: with its image and what HDF5 needs, a worker's memory then
    grows by twice `segment_bytes` at most.
    """
    KEPT_OPEN = 2
    """The number of last rollouts that are not sealed for their size: a checkpoint may end before them."""
    KEPT_WAITING = 4

    def __init__(
        self,
        labels: Labels,
        seed_of: Callable[[int, int], int] | None,
        *,
        has_raw_actions: bool,
        segment_bytes: int,
        every: int = 1,
        compression: str = "gzip",
        max_bytes: float | None = None,
        required: bool = False,
        wait_s: float = 10.0,
    ) -> None:
        import h5py  # noqa: F401  before training: it takes 0.2 s

        self._labels, self._required = labels, required
        self._segment_bytes = min(int(self.FULL * segment_bytes), MAX_BYTES // 2)
        self._max_bytes, self._wait_s = max_bytes, wait_s
        self._builder = SegmentBuilder(labels, seed_of, every=every, compression=compression)
        self._buffer = RolloutBuffer(
            [column for column in written_steps() if has_raw_actions or column.name != "actions_raw"], every
        )
        self._disk = Disk(is_patient=not required)
        self._answers = Answers(labels.rank)
        self._orders: deque[int] = deque()  # answered when the segment that is being written is done
        self._failure: str | None = None
        self._is_behind = False
        with contextlib.suppress(OSError):  # later it is not made again: then it was moved
            labels.run_dir.mkdir(parents=True, exist_ok=True)
        visible = segment_files(labels.folder)
        self._next_segment = max(visible, default=-1) + 1
        self._sealed_row = self._sent_row = end_row(labels.folder)  # the latter includes the one being written
        self._written_bytes = sum(path.stat().st_size for path in visible.values())

    def add(self, rollout: Rollout) -> None:
        """Adds a rollout that was reported to rank 0; does nothing if it was added before. Raises DumpError where a
        segment could not be written, and segments are required.
        """
        if self._failure is not None and self._required:
            raise DumpError(self._failure)
        is_kept = self._buffer.add(rollout)
        if is_kept and self._buffer.num_bytes >= self._segment_bytes and len(self._buffer) > self.KEPT_OPEN:
            self._seal_until(self._buffer.end_row(self.KEPT_OPEN))

    def seal(self, row: int) -> None:
        """Makes everything before `row`, the end of a rollout, visible; `answers` says when that is done."""
        if self._sent_row > row:
            self._answers.sealed(row, None)
            return
        self._seal_until(row)
        self._orders.append(row)

    def answers(self) -> list[Sealed]:
        """Returns the messages since the last call; never waits."""
        if not self._disk.is_busy:
            self._finish_last()
            if self._orders:  # orders that came while the disk refused
                self._seal_until(self._orders[-1])
        elif self._disk.refusal is not None:
            self._answers.refusal(self._disk.refusal)
            self._answer_orders()
        return self._answers.take()

    def settle(self, row: int | None) -> list[Sealed]:
        """Seals like `seal`, waits, and returns the answers; `row` None: everything. A repeated call gives the same."""
        until, deadline = self._buffer.next_row if row is None else row, time.monotonic() + self._wait_s
        self.seal(until)
        self._wait_until(deadline)
        while self._buffer.has(until):  # rollouts that waited behind a segment that the disk refused
            self._seal_until(until)
            self._wait_until(deadline)
        return self.answers()

    def wait(self) -> None:
        """Waits until nothing is being written, or the disk has refused for too long."""
        self._wait_until(time.monotonic() + self._wait_s)

    def close(self) -> None:
        """Closes the writer. Rollouts that are not sealed belong to no boundary."""
        self.wait()
        self._disk.close()

    def _wait_until(self, deadline: float) -> None:
        self._disk.wait(deadline)
        self._finish_last()

    @property
    def _path(self) -> Path:
        return segment_path(self._labels.folder, self._next_segment)

    def _seal_until(self, row: int) -> None:
        """Builds a segment of the rollouts before `row` and sends it to the disk; several segments if many waited."""
        while self._buffer.has(row):
            if self._disk.refuses():
                self._is_behind = True
                if self._buffer.num_bytes <= self.KEPT_WAITING * self._segment_bytes:
                    return
                self._disk.give_up()  # memory has no more room, either
            self._finish_last()
            self._send(row)
        self._is_behind = False

    def _send(self, row: int) -> None:
        """Builds and sends one segment of the rollouts before `row`: of all of them, unless they have waited."""
        parts = self._buffer.take(row, self._segment_bytes if self._is_behind else math.inf)
        end = parts[-1].end_row
        try:
            image = self._builder.build(parts, self._next_segment, self._sealed_row)
        except Exception as error:  # from h5py, or for lack of memory: the dump is lost, not the run
            self._note_failure(error)
            return
        if self._max_bytes is not None and self._written_bytes + len(image) > self._max_bytes:
            self._buffer.stop()
            self._answers.problem(f"trajectories: {self._path} would pass --trajectories.max-gb; no more are written")
            return
        self._disk.start(self._path, image)
        self._sent_row = end

    def _finish_last(self) -> None:
        """Waits for the segment that is being written, if there is one, and answers the orders that wait for it."""
        try:
            num_bytes = self._disk.finish()
        except Exception as error:
            self._note_failure(error)
            self._sent_row = self._sealed_row
        else:
            if num_bytes is not None:
                self._written_bytes += num_bytes
                self._next_segment += 1
                self._sealed_row = self._sent_row
                self._answers.refusal("")
        self._answer_orders()

    def _answer_orders(self) -> None:
        """Answers the orders for which nothing more can be done now."""
        while self._orders and (self._disk.refusal is not None or not self._buffer.has(self._orders[0])):
            self._answers.sealed(self._orders.popleft(), self._next_segment, self._sealed_row)

    def _note_failure(self, error: Exception) -> None:
        self._failure = f"trajectories: {self._path} could not be written: {str(error) or type(error).__name__}"
        self._answers.problem(self._failure, failed=True)
