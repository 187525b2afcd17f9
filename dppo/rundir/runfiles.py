"""Writes rank 0's files during training, on a disk that may be full, or fail, for a while: metrics.jsonl, TensorBoard's
events, checkpoints and summary.json.

Whatever the disk refuses is kept and tried again. A line says so once, and another one when all is written. A
checkpoint that has been due for too long ends the run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from dppo.config import CheckpointConfig
from dppo.errors import DisplacedError, MovedError, SavingError
from dppo.files import RETRY_S
from dppo.rundir import paths
from dppo.rundir.checkpoint import remove_leftovers
from dppo.rundir.metrics_file import MetricsFile
from dppo.rundir.recorders import Recorders, read_json
from dppo.rundir.summary import write_summary
from dppo.rundir.tensorboard import TensorBoard

T = TypeVar("T")
METRICS, CHECKPOINT, SUMMARY, EVENTS = paths.METRICS, "a checkpoint", paths.SUMMARY, "TensorBoard's events"
TRAJECTORIES = paths.TRAJECTORIES
LOOK_S = 0.1
"""Seconds between two looks while something waits for the disk."""


class RunFiles:
    """The files of a run that rank 0 writes.

    Args:
      last_iteration: the iteration beyond which lines of metrics.jsonl come again.
      first_step: the step where this attempt starts.

    Raises:
      OSError: metrics.jsonl cannot be opened.
    """

    def __init__(
        self,
        run_dir: Path,
        config: CheckpointConfig,
        warn: Callable[[str], None],
        *,
        last_iteration: int,
        first_step: int,
        tensorboard: bool,
    ) -> None:
        self._run_dir, self._patience_s, self._warn = run_dir, config.patience_s, warn
        self._metrics = MetricsFile(run_dir / paths.METRICS, last_iteration)
        self.recorders = Recorders(warn)
        """What hears of the run in addition to metrics.jsonl."""
        if tensorboard:
            self.recorders.add(TensorBoard(run_dir / paths.TENSORBOARD, first_step, partial(self.hear, EVENTS)))
        self._summary: dict[str, Any] | None = None  # not written yet
        self._last_summary: dict[str, Any] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[Path] | None = None
        self._refused: dict[str, Exception] = {}
        self._refused_at, self._said = 0.0, False
        self._late_since: float | None = None  # when a checkpoint became overdue
        self._closed = False
        self._start, self._num_starts = self._newest_start()
        self._is_displaced = False
        self.lacks_steps = False
        """Whether some steps of trajectories were given up."""

    # -- writing --------------------

    def log(self, line: dict[str, Any]) -> None:
        """Writes an iteration's line, and whatever else waits, then tells the recorders. Raises DisplacedError where
        another start has taken over the run directory.
        """
        self._require_own_run()
        self._metrics.iteration(line)
        self._flush()
        self.recorders.iteration(line)

    @property
    def best_return(self) -> float | None:
        """The best mean return of the lines of metrics.jsonl that were there at the start."""
        return self._metrics.best_return

    def _newest_start(self) -> tuple[int, int]:
        """Returns the inode of versions.json, which every start of the run replaces, and how many starts it names."""
        path = self._run_dir / paths.VERSIONS
        starts = read_json(path).get("attempts")
        return path.stat().st_ino if path.exists() else 0, len(starts) if isinstance(starts, list) else 0

    def _require_own_run(self) -> None:
        """A node that was cut off from the others goes on with its ranks, while the batch system starts the job again
        elsewhere. Where both reach the run directory, it belongs to the newer start.
        """
        with contextlib.suppress(OSError):  # the disk's trouble is not this function's
            path = self._run_dir / paths.VERSIONS
            if not self._is_displaced and path.stat().st_ino != self._start:
                self._start, num_starts = self._newest_start()
                self._is_displaced = num_starts > self._num_starts
        if self._is_displaced:
            raise DisplacedError(
                f"another start of this run has begun in {self._run_dir}: this one, whose nodes were cut off, ends"
            )

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Replaces summary.json, now or later."""
        self._last_summary = summary
        if not self._is_displaced:
            self._summary = summary
            self._flush_summary()

    def save(self, write: Callable[[], Path]) -> bool:
        """Writes a checkpoint now, by `write`, which returns its folder. Returns whether it was written."""
        self._take_result(wait=True)
        with self._noted(CHECKPOINT):
            folder = self._save(write)
        if CHECKPOINT in self._refused:
            return False
        self.recorders.checkpoint(folder)
        return True

    def save_meanwhile(self, write: Callable[[], Path]) -> None:
        """Writes a checkpoint in a thread, so that the caller does not wait for the disk."""
        self._take_result(wait=True)
        self._writing = self._writer.submit(self._save, write)

    def meanwhile(self, work: Callable[[], T]) -> Future[T]:
        """Does something else in the thread that writes checkpoints. Returns its result, which is there later."""
        return self._writer.submit(work)

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._writing is not None and not self._writing.done()

    @property
    def owes_checkpoint(self) -> bool:
        """Whether a checkpoint could not be written, and it is time to try again."""
        self._take_result(wait=False)
        return CHECKPOINT in self._refused and time.monotonic() >= self._refused_at + RETRY_S

    def finish(self, write: Callable[[], Path], summary: Callable[[], None], may_wait: Callable[[], bool]) -> None:
        """Writes the last checkpoint, and then the last summary. Waits for the disk while `may_wait` allows it. Raises
        SavingError where the disk has refused the files for too long, or another start has the run directory.
        """
        saved, since = False, None
        while True:
            self._require_own_run()
            saved = saved or self.save(write)
            if saved:
                summary()
            self._flush()
            left = [what for what in (CHECKPOINT, METRICS, SUMMARY) if what in self._refused]
            if not left:
                return
            self._late_since = since = since or self._late_since or self._refused_at
            self.look()
            until = time.monotonic() + RETRY_S
            while time.monotonic() < until:
                if not may_wait():
                    raise SavingError(f"the run could not be saved before it had to leave: {self._reason(left[0])}")
                time.sleep(LOOK_S)

    def close(self) -> None:
        """Tries to write everything a last time, and warns of what is still missing then."""
        if self._closed:
            return
        self._closed = True
        self._take_result(wait=True)
        self._writer.shutdown()
        self._flush()
        self._metrics.close()
        self.recorders.end(self._last_summary)
        if missing := [self._reason(what) for what in (METRICS, SUMMARY, EVENTS) if what in self._refused]:
            self._warn(f"{'; '.join(missing)}: what it lacks is lost")
        elif CHECKPOINT not in self._refused:
            self._tell_well()

    def hear(self, what: str, error: Exception | None) -> None:
        """Notes what the disk says to others that write into the run directory."""
        with self._noted(what):
            if error is not None:
                raise error

    # -- what the disk says --------------------

    def look(self) -> None:
        """Says whether the disk can be written, where that has changed. Raises SavingError where no checkpoint could be
        written for too long.
        """
        self._take_result(wait=False)
        now = time.monotonic()
        if self._late_since is not None and now - self._late_since >= self._patience_s:
            what = next(w for w in (CHECKPOINT, METRICS, *self._refused) if w in self._refused)
            raise SavingError(
                f"nothing could be saved for {now - self._late_since:.0f} s (--checkpoint.patience-s):"
                f" {self._reason(what)}"
            )
        if self._refused:
            self.tell()
        elif now - self._refused_at >= RETRY_S:
            self._tell_well()

    def tell(self) -> None:
        """Says what the disk refuses, unless it has said so before."""
        if self._refused and not self._said:
            self._said = True
            self._warn(f"{self._reason(next(iter(self._refused)))}; it is tried again")

    def _tell_well(self) -> None:
        if self._said:
            self._said = False
            but = ", but for trajectories" if self.lacks_steps else ""
            self._warn(f"{self._run_dir} can be written again; what had waited is there{but}")

    def _reason(self, what: str) -> str:
        error = self._refused[what]
        return f"{what} could not be written: {str(error) or type(error).__name__}"

    @contextlib.contextmanager
    def _noted(self, what: str) -> Any:
        """Notes whether the block could write `what`."""
        try:
            yield
        except Exception as error:  # a thread may bring an error of any kind
            self._refused[what], self._refused_at = error, time.monotonic()
        else:
            self._refused.pop(what, None)
        is_late = CHECKPOINT in self._refused or isinstance(self._refused.get(METRICS), MovedError)
        self._late_since = (self._late_since or self._refused_at) if is_late else None

    def _flush(self) -> None:
        if self._is_displaced:
            return
        with self._noted(METRICS):
            self._metrics.flush()
        self._flush_summary()

    def _flush_summary(self) -> None:
        if self._summary is not None:
            with self._noted(SUMMARY):
                write_summary(self._run_dir, self._summary)
                self._summary = None

    def _save(self, write: Callable[[], Path]) -> Path:
        """Writes a checkpoint after the lines that it has seen (a resume would miss them), unless the run was moved."""
        self._require_own_run()
        self._metrics.flush()
        self._metrics.sync()
        try:
            return write()
        except OSError:
            remove_leftovers(self._run_dir)  # other files need the room
            raise

    def _take_result(self, *, wait: bool) -> None:
        if self._writing is None or not (wait or self._writing.done()):
            return
        writing, self._writing = self._writing, None
        with self._noted(CHECKPOINT):
            folder = writing.result()
        if CHECKPOINT not in self._refused:
            self.recorders.checkpoint(folder)
