"""Saves a run on rank 0: checkpoints and summary.json at a boundary, in a thread, once trajectories are written.

A boundary is a moment between two iterations. A checkpoint of it waits until each worker has sealed the trajectories
that the boundary has seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dppo.cluster.signals import Preemption
from dppo.cluster.timeline import DISK, Timeline
from dppo.config import Config
from dppo.data import Report
from dppo.errors import Failure
from dppo.rundir.checkpoint import Checkpoint, write_checkpoint
from dppo.rundir.runfiles import TRAJECTORIES, RunFiles
from dppo.rundir.states import remove_states
from dppo.rundir.summary import FAILED, PREEMPTED, RUNNING, Summary, read_summary
from dppo.seams import Sealed
from dppo.training.replay import Replay
from dppo.trajectories.commits import Dumps

SETTLE_S = 5.0
"""Seconds without a further death after which a checkpoint is made of a run that has lost ranks."""
LAST_ATTEMPT = 0.8
"""The share of the grace period after which a disk that refuses the last checkpoint is not tried again."""


@dataclass(slots=True)
class Boundary:
    """The contents of a checkpoint and a summary at a moment between two iterations."""

    state: dict[str, Any]
    counters: dict[str, Any]
    replays: dict[int, Replay]
    """worker -> replay of its environments."""
    summary: Summary
    rows: dict[int, int]
    """worker -> first row that the boundary has not seen, for the workers that are present."""


class CheckpointSaver:
    """Saves boundaries.

    Args:
      boundary: the boundary at which the run begins or continues.
      wall_s: returns the seconds since the run's start, of all attempts.
      warn: shows a line.
      first_rank: the rank of worker 0.
      next_segments: rank -> number of its next segment of trajectories, if the run continues.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Config,
        files: RunFiles,
        preemption: Preemption,
        boundary: Boundary,
        wall_s: Callable[[], float],
        warn: Callable[[str], None],
        *,
        first_rank: int,
        next_segments: dict[int, int],
    ) -> None:
        self._run_dir, self._files, self._preemption, self._warn = run_dir, files, preemption, warn
        self._wall_s, self._first_rank, self._config = wall_s, first_rank, config.checkpoint
        dumps, required = config.trajectories.enabled, config.trajectories.required
        self.dumps = Dumps[Boundary](run_dir, first_rank, next_segments, required=required) if dumps else None
        self.boundary = boundary
        """The last boundary."""
        self.heartbeat: Callable[[str], None] = lambda phase: None
        """The rank's heartbeat, called while rank 0 itself waits for the disk."""
        self.timeline: Timeline | None = None
        """Notes the writing of checkpoints; None: nobody asks."""
        self.has_ended = False
        self._exit, self._is_concluded = RUNNING, False
        self._next_checkpoint = boundary.state["numbers"]["env_steps"] + self._config.every
        self.summary = boundary.summary
        self._settled_at = 0.0  # time.monotonic() from which the ranks count as the ones that are left
        self._states = set[str]()  # names of the states that environments have saved, and that may still be there

    # -- checkpoints --------------------

    def write(self, boundary: Boundary) -> Path:
        """Writes a checkpoint of `boundary`, whole or not at all. Returns its folder."""
        ranks = {w + self._first_rank: replay.states() for w, replay in boundary.replays.items()}
        numbers = boundary.state["numbers"]
        named = {} if self.dumps is None else self.dumps.named({rank: row for rank, (row, _) in ranks.items()})
        checkpoint = Checkpoint(
            numbers["env_steps"], numbers["iteration"], boundary.state, boundary.counters, ranks,
            {rank: n.next_segment for rank, n in named.items()},
            {rank: n.missing_rows for rank, n in named.items() if n.missing_rows},
        )  # fmt: skip
        began = time.monotonic()
        name = write_checkpoint(self._run_dir, checkpoint, self._config.keep)
        if self.timeline is not None:
            self.timeline.add("checkpoint", began, time.monotonic(), track=DISK)
        return name

    def save_if_due(self) -> None:
        """Has a thread write the last boundary, if a checkpoint is due. Nobody waits for the disk."""
        env_steps = self.boundary.state["numbers"]["env_steps"]
        is_due = (
            bool(self._config.every) and env_steps >= self._next_checkpoint and time.monotonic() >= self._settled_at
        )
        if not (is_due or self._files.owes_checkpoint):
            return
        self._next_checkpoint = env_steps + self._config.every
        if self._files.is_writing:
            return  # the disk is slower than the interval: the next boundary will do
        if self.dumps is None:
            self._write_meanwhile(self.boundary)
        elif (late := self.dumps.expired()) is not None:
            self._warn("a worker does not write its trajectories: a checkpoint is made without its last ones")
            self._write_meanwhile(late)
        elif not self.dumps.is_waiting:
            self.dumps.ask(self.boundary, self.boundary.rows)

    def save_at_once(self) -> None:
        """Writes the last boundary now, because a run that was asked to leave may be killed before the next one. If
        there are trajectories, the boundary is written as soon as they are.
        """
        if self.dumps is not None:
            self.dumps.ask(self.boundary, self.boundary.rows)
        else:
            self._write_at_once(self.boundary)

    def _write_at_once(self, boundary: Boundary) -> None:
        self.heartbeat("checkpoint")
        if self._files.save(lambda: self.write(boundary)):
            self.update_summary(PREEMPTED)
        self._files.tell()

    def _write_meanwhile(self, boundary: Boundary) -> None:
        self._files.save_meanwhile(lambda: self.write(boundary))

    def _save_next_boundary_instead(self) -> None:
        assert self.dumps is not None
        self.dumps.give_up()
        self._next_checkpoint = 0

    # -- states that environments save themselves --------------------

    def note_states(self, report: Report) -> None:
        """Notes the states that a worker's environments have saved."""
        self._states.update(state.name for state in report.saved or () if state is not None)

    def remove_old_states(self) -> None:
        """Removes the noted states that the last boundary does not need, unless an older boundary is about to be saved.
        Checkpoints have their own.
        """
        if not self._states or self._files.is_writing or (self.dumps is not None and self.dumps.is_waiting):
            return
        needed = {name for replay in self.boundary.replays.values() for name in replay.saved_names}
        old, self._states = self._states - needed, self._states & needed
        if old:
            self._files.meanwhile(lambda: remove_states(self._run_dir, old))

    # -- trajectories --------------------

    def take_seal_orders(self) -> dict[int, int]:
        """Returns {worker: row}: the rows up to which trajectories must be written for a checkpoint that waits. Returns
        each order once.
        """
        return {} if self.dumps is None else self.dumps.take_orders()

    def on_sealed(self, answer: Sealed) -> None:
        """Takes in a worker's answer on what it has written of its trajectories."""
        assert self.dumps is not None
        known, waited = self.dumps.problem, self.dumps.is_waiting
        boundary = self.dumps.answer(answer)
        if answer.refusal is not None:
            refusal = self.dumps.refusal
            self._files.hear(TRAJECTORIES, None if refusal is None else OSError(refusal))
        self._files.lacks_steps = self.dumps.problem is not None
        if known is None and self.dumps.problem is not None and not self.dumps.ends_the_run:
            self._warn(f"{self.dumps.problem}{'' if self.has_ended else '; training goes on'}")
        if self.has_ended:
            return
        if boundary is None:
            if waited and not self.dumps.is_waiting and not self.dumps.ends_the_run:
                self._save_next_boundary_instead()
        elif self._preemption.requested:
            self._write_at_once(boundary)
        else:
            self._write_meanwhile(boundary)

    def regroup(self, workers: Sequence[int]) -> None:
        """Keeps only these workers, which are left. Nobody waits for what the others have not sealed.

        The next checkpoint comes once no rank was lost for `SETTLE_S`: where a whole job is being killed, its ranks die
        one after another, and the job that comes back continues as if none had.
        """
        self._settled_at = time.monotonic() + SETTLE_S
        self.boundary.rows = {w: row for w, row in self.boundary.rows.items() if w in workers}
        if self.dumps is not None and self.dumps.is_waiting:
            self._save_next_boundary_instead()

    # -- the end --------------------

    def finish(self, reason: str) -> None:
        """Ends the run at the last boundary; nothing is counted after it. If there are trajectories, `conclude` has to
        be called once they are written.

        Raises:
          SavingError: as `conclude`.
        """
        self.has_ended, self._exit = True, reason
        if self.dumps is None:
            self.conclude()
        else:
            self.dumps.ask(self.boundary, self.boundary.rows)

    def conclude(self) -> None:
        """Saves the last boundary and writes how the run ended; once. If required trajectories are lost, it does not
        save the boundary, because a resume makes them again. Waits for a full disk as long as that is allowed.

        Raises:
          SavingError: the boundary could not be saved in time.
        """
        if self._is_concluded:
            return
        self._is_concluded = True
        self.heartbeat("checkpoint")
        if self.dumps is not None and self.dumps.ends_the_run:
            self.boundary.summary.error = self.dumps.problem
            self.update_summary(FAILED)
        else:
            boundary = self.boundary
            self._files.finish(lambda: self.write(boundary), lambda: self.update_summary(self._exit), self._may_wait)
        self._files.close()

    def _may_wait(self) -> bool:
        self.heartbeat("checkpoint")
        return not self._preemption.past(LAST_ATTEMPT)

    def fail(self, failure: Failure) -> None:
        """Ends the run by an error: the summary says so, checkpoints stay as they are."""
        self.boundary.summary.error, self.boundary.summary.stalled = failure
        self.update_summary(FAILED)
        self._files.close()

    def update_summary(self, exit_reason: str) -> None:
        """Writes summary.json: the last boundary's summary, with the present state of the run."""
        self.summary = summary = self.boundary.summary
        said = read_summary(self._run_dir) if exit_reason == PREEMPTED else {}
        if said.get("exit") == FAILED and said.get("attempt") == summary.attempt:
            # another rank has said so, and ends the job: the signal is the launcher's
            exit_reason, summary.error = FAILED, said.get("error")
        summary.exit = exit_reason
        summary.preempted_by = self._preemption.reason if exit_reason == PREEMPTED else None
        summary.wall_s = self._wall_s()
        summary.steps_per_s = summary.env_steps / max(summary.train_s, 1e-9) if summary.train_s else 0.0
        self._files.write_summary(asdict(summary))
