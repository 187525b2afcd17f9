"""Evaluations while training, on rank 0: when one is due, how many may wait, and whether the run ends.

Nothing here depends on how fast evaluations are: every one that is due is played, and what follows from it for the run
is decided at the next one that is due, for whose predecessors rank 0 waits. So a run's numbers are the same on every
machine, and a resumed run decides as one that was never stopped.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dppo.cluster.signals import Preemption
from dppo.config import Config
from dppo.errors import MovedError
from dppo.rundir import paths
from dppo.rundir.checkpoint import read_manifest, remove_folder
from dppo.rundir.evaluations import best_of, evaluated, read_evaluations, settle_best
from dppo.rundir.metrics_file import MetricsFile
from dppo.rundir.runfiles import RunFiles
from dppo.rundir.summary import PREEMPTED
from dppo.training.early_end import Stop, early_end, end_at, is_due
from dppo.training.evaluation_queue import EvaluationQueue, Plays, Waiting

MOST_WAITING = 3
"""The most evaluations that are under way or wait. Rank 0 waits before a further one: their checkpoints take room."""
LOOK_S, WAIT_S, TELL_S = 0.05, 0.05, 60.0
"""Seconds between two looks for a result, of one look while rank 0 waits, and until it says that it waits."""
LAST_WAIT = 0.5
"""The share of the grace period that a run whose training is over may wait for its last evaluations."""


class Evaluations:
    """The evaluations of a run.

    Args:
      iteration, env_steps: the boundary at which the run begins or continues: what comes after it comes again.
      process: plays the episodes.
      on_result: called with each new line of evaluations.jsonl.
      warn: shows a line.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Config,
        files: RunFiles,
        process: Plays,
        preemption: Preemption,
        on_result: Callable[[dict[str, Any]], None],
        warn: Callable[[str], None],
        *,
        iteration: int,
        env_steps: int,
    ) -> None:
        self._run_dir, self._settings, self._files, self._preemption = run_dir, config.eval, files, preemption
        self._on_result, self._warn = on_result, warn
        self._queue = EvaluationQueue(
            run_dir, files, process, config.checkpoint.patience_s, self._on_figures, warn, ends_early=self._ends_early
        )
        self.heartbeat: Callable[[str], None] = lambda phase: None
        """The rank's heartbeat, called while rank 0 itself waits."""
        self.waited_until = 0.0
        """The time.monotonic() at which rank 0 has last ceased to wait for an evaluation."""
        self.stopped_by: str | None = None
        """The setting of evaluations by which the run has ended."""
        self._lines: list[dict[str, Any]] = []
        self._file: MetricsFile | None = None
        self._next_look, self._said = 0.0, False
        if self._is_on or (run_dir / paths.EVALUATIONS).exists():
            self._file = MetricsFile(run_dir / paths.EVALUATIONS, iteration, env_steps)
            self._lines = read_evaluations(run_dir)
            self._find_waiting(env_steps)

    def _find_waiting(self, env_steps: int) -> None:
        """Takes up the evaluations that an earlier attempt, or a server that died, has left."""
        done = {line["env_steps"] for line in self._lines}
        for steps, folder in evaluated(self._run_dir).items():
            iteration = _iteration_of(folder) if steps not in done else 0
            if steps > env_steps or iteration is None:
                remove_folder(folder)
            elif steps not in done and self._is_on:
                self._queue.add(Waiting(steps, iteration, None, folder))
        with contextlib.suppress(OSError):  # the next result tries it again
            settle_best(self._run_dir, self._lines, self._queue.steps)

    @property
    def _is_on(self) -> bool:
        return self._settings.every > 0 and not self._queue.has_given_up

    @property
    def _last(self) -> int:
        """The steps of the last evaluation that was due."""
        return max((*(line["env_steps"] for line in self._lines), *self._queue.steps), default=0)

    @property
    def _ends_early(self) -> bool:
        return self._settings.target_return is not None or self._settings.patience > 0

    # -- boundaries --------------------

    def at_start(self, state: dict[str, Any], reason: str | None) -> str | None:
        """Decides at the boundary at which the run continues what was left open there. Returns why the run ends, as
        `at_boundary` does.
        """
        env_steps = state["numbers"]["env_steps"]
        if not self._is_on or env_steps == 0:
            return None
        if (reason is not None or self._ends_early) and not self._wait(0):
            return PREEMPTED
        return self._end_at(env_steps, reason)

    def at_boundary(self, state: dict[str, Any], reason: str | None) -> str | None:
        """Takes in a boundary: has its checkpoint evaluated if that is due, and decides whether the run ends.

        Args:
          state: the learner's state, which nobody changes any more.
          reason: why the run ends without evaluations; None: it does not.

        Returns:
          Why the run ends, else None.
        """
        env_steps = state["numbers"]["env_steps"]
        if not self._is_on:
            return reason
        self.poll()
        if is_due(env_steps, self._last, self._settings.every):
            if not self._ends_early or self._wait(0):
                early = early_end(self._settings, self._lines) if self._is_on else None
                if reason is None and early is not None:
                    reason, self.stopped_by = early
            self._wait(MOST_WAITING - 1)
            self._add(state)
        if reason is None:
            if self._preemption.requested:
                self._queue.settle_writes()
            return None
        if self._last < env_steps:
            self._add(state)
        if not self._wait(0, LAST_WAIT):
            self._queue.settle_writes()
            self.stopped_by = None  # the resume decides it again
            return PREEMPTED
        return self._end_at(env_steps, reason) if self.stopped_by is None else reason

    def _end_at(self, env_steps: int, reason: str | None) -> str | None:
        if not self._is_on:
            return reason
        end = end_at(self._settings, self._lines, env_steps, None if reason is None else Stop(reason, ""))
        if end is not None and end.setting:
            self.stopped_by = end.setting
        return None if end is None else end.exit

    def _add(self, state: dict[str, Any]) -> None:
        if self._is_on:
            numbers = state["numbers"]
            self._queue.add(Waiting(numbers["env_steps"], numbers["iteration"], state, None))

    def _wait(self, most: int, share: float = 0.0) -> bool:
        """Waits until at most `most` evaluations are left. Returns False if it has ceased to wait because the run was
        asked to leave, and this share of the grace period has passed.
        """
        since = time.monotonic()
        while len(self._queue) > most:
            if self._preemption.past(share):
                return False
            self.heartbeat("evaluation")
            self._queue.advance(WAIT_S)
            self.waited_until = time.monotonic()
            if self._queue and not self._said and self.waited_until - since > TELL_S:
                self._said = True
                self._warn(
                    f"training waits for the evaluation of {self._queue.steps[0]:,} steps:"
                    " fewer --eval.episodes, or a larger --eval.every, would cost less"
                )
        return True

    # -- results --------------------

    def poll(self) -> None:
        """Takes in results that have come; never waits."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_S
            self._flush()
            if self._queue:
                self._queue.advance(0.0)

    def _on_figures(self, done: Waiting, figures: dict[str, Any]) -> None:
        line = {
            "iteration": done.iteration,
            "env_steps": done.env_steps,
            "checkpoint": paths.checkpoint_name(done.env_steps),
            **figures,
        }
        line["best"] = best_of([*self._lines, line]) == done.env_steps
        self._lines.append(line)
        assert self._file is not None
        self._file.iteration(line)
        self._flush()
        file, lines, pending = self._file, list(self._lines), self._queue.steps

        def settle() -> None:
            """Names the best checkpoint, and removes those that nobody needs, once the results are safe."""
            if not file.is_behind:
                file.sync()
                settle_best(self._run_dir, lines, pending)

        self._files.meanwhile(settle)
        self._on_result(line)

    def _flush(self) -> None:
        if self._file is None or not self._file.is_behind:
            return
        try:
            self._file.flush()
        except (OSError, MovedError) as error:
            self._files.hear(paths.EVALUATIONS, error)
        else:
            self._files.hear(paths.EVALUATIONS, None)

    def close(self) -> None:
        """Ends the process, and writes what could not be written before."""
        self._queue.close()
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.flush()
            file.close()


def _iteration_of(folder: Path) -> int | None:
    """Returns the iteration of a checkpoint; None where it is damaged."""
    try:
        return int(read_manifest(folder)["iteration"])
    except (ValueError, KeyError, TypeError):
        return None
