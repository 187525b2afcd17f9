"""Evaluations while training, on rank 0: when one is due, which ones wait, which is the best, and whether the run ends.

Nothing here depends on how fast evaluations are: every one that is due is played, and what follows from it for the run
is decided at the next one that is due, for whose predecessors rank 0 waits. So a run's numbers are the same on every
machine, and a resumed run decides as one that was never stopped.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from dppo.cluster.signals import Preemption
from dppo.config import Config, EvalConfig
from dppo.errors import MovedError
from dppo.files import RETRY_S
from dppo.rundir import paths
from dppo.rundir.checkpoint import read_manifest, remove_folder
from dppo.rundir.evaluations import (
    best_of,
    evaluated,
    read_evaluations,
    return_of,
    settle_best,
    waiting,
    write_evaluated,
)
from dppo.rundir.metrics_file import MetricsFile
from dppo.rundir.runfiles import RunFiles
from dppo.rundir.summary import FINISHED, PREEMPTED, TARGET

MOST_WAITING = 3
"""The most evaluations that are under way or wait. Rank 0 waits before a further one: their checkpoints take room."""
RESTARTS = 3
"""How often in a row the process that plays is started again, before the run goes on without evaluations."""
LOOK_S, WAIT_S, TELL_S = 0.05, 0.05, 60.0
"""Seconds between two looks for a result, of one look while rank 0 waits, and until it says that it waits."""
LAST_WAIT = 0.5
"""The share of the grace period that a run whose training is over may wait for its last evaluations."""


class Stop(NamedTuple):
    """The end of a run."""

    exit: str
    """One of the states of a run that has ended."""
    setting: str
    """The name of the setting by which it ends."""


def is_due(env_steps: int, last: int, every: int) -> bool:
    """Returns whether a boundary at `env_steps` is the first one at or past a multiple of `every`.

    Args:
      last: the steps of the last boundary that was due; 0: none was.
    """
    return env_steps // every > last // every


def early_end(settings: EvalConfig, lines: Sequence[dict[str, Any]]) -> Stop | None:
    """Returns why a run ends after the evaluations `lines`, which are in the order of their steps; None: it goes on."""
    returns = [-math.inf if (value := return_of(line)) is None else value for line in lines]
    best = max(returns, default=-math.inf)
    if settings.target_return is not None and best >= settings.target_return:
        return Stop(TARGET, "eval.target-return")
    if settings.patience and returns and len(returns) - 1 - returns.index(best) >= settings.patience:
        return Stop(FINISHED, "eval.patience")
    return None


def end_at(settings: EvalConfig, lines: Sequence[dict[str, Any]], env_steps: int, stop: Stop | None) -> Stop | None:
    """Returns why a run ends at a boundary, whose evaluations, as far as they were due, are in `lines`.

    Args:
      stop: why it ends without evaluations; None: it does not.
    """
    if stop is None:
        is_decided_here = any(line["env_steps"] == env_steps for line in lines)
        return early_end(settings, _before(lines, env_steps)) if is_decided_here else None
    # training is over: the target counts, and patience has nothing left to spare
    early = early_end(settings, _before(lines, env_steps + 1))
    return early if stop.exit == FINISHED and early is not None and early.exit == TARGET else stop


def end_on_disk(run_dir: Path, settings: EvalConfig, env_steps: int, stop: Stop | None) -> Stop | None:
    """Returns why a run whose newest checkpoint is at `env_steps` has ended; None if it has not, or if evaluations that
    are due are missing. `stop` is as for `end_at`.
    """
    if not settings.every:
        return stop
    if waiting(run_dir, env_steps):
        return None
    return end_at(settings, read_evaluations(run_dir), env_steps, stop)


def _before(lines: Sequence[dict[str, Any]], env_steps: int) -> list[dict[str, Any]]:
    return [line for line in lines if line["env_steps"] < env_steps]


class Plays(Protocol):
    """A process that plays the episodes of one evaluation at a time."""

    @property
    def is_busy(self) -> bool: ...

    def begin(self, checkpoint: Path) -> None:
        """Begins to play a checkpoint; starts the process where none is there."""

    def result(self, wait_s: float) -> dict[str, Any] | None:
        """Returns the figures of the evaluation under way; None: they are not there yet. Waits `wait_s` at most.

        Raises:
          PlayingError: the process has failed.
        """

    def close(self) -> None: ...


class PlayingError(Exception):
    """Raised where the process that plays has failed; the text says how.

    Args:
      is_final: whether it would fail again.
    """

    def __init__(self, text: str, *, is_final: bool = False) -> None:
        super().__init__(text)
        self.is_final = is_final


@dataclass(slots=True)
class _Waiting:
    """A checkpoint that waits for its evaluation."""

    env_steps: int
    iteration: int
    state: dict[str, Any] | None
    """The learner's state, until it is on the disk."""
    folder: Path | None
    writing: Future[Path] | None = None
    failed_at: float | None = None
    """When its checkpoint could not be written for the first time."""


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
        self._run_dir, self._settings, self._files, self._process = run_dir, config.eval, files, process
        self._patience_s, self._preemption = config.checkpoint.patience_s, preemption
        self._on_result, self._warn = on_result, warn
        self._is_on = self._settings.every > 0
        self.heartbeat: Callable[[str], None] = lambda phase: None
        """The rank's heartbeat, called while rank 0 itself waits."""
        self.waited_until = 0.0
        """The time.monotonic() at which rank 0 has last ceased to wait for an evaluation."""
        self.stopped_by: str | None = None
        """The setting of evaluations by which the run has ended."""
        self._lines: list[dict[str, Any]] = []
        self._queue = deque[_Waiting]()
        self._file: MetricsFile | None = None
        self._failures, self._next_look, self._said = 0, 0.0, False
        if self._is_on or (run_dir / paths.EVALUATIONS).exists():
            self._file = MetricsFile(run_dir / paths.EVALUATIONS, iteration)
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
                self._queue.append(_Waiting(steps, iteration, None, folder))
        with contextlib.suppress(OSError):  # the next result tries it again
            settle_best(self._run_dir, self._lines, [w.env_steps for w in self._queue])

    @property
    def _last(self) -> int:
        """The steps of the last evaluation that was due."""
        return max((*(line["env_steps"] for line in self._lines), *(w.env_steps for w in self._queue)), default=0)

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
                self._settle_writes()
            return None
        if self._last < env_steps:
            self._add(state)
        if not self._wait(0, LAST_WAIT):
            self._settle_writes()
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
        if not self._is_on:
            return
        numbers = state["numbers"]
        self._queue.append(_Waiting(numbers["env_steps"], numbers["iteration"], state, None))
        self._write(self._queue[-1])

    def _write(self, due: _Waiting) -> None:
        """Has the thread that writes checkpoints write this one: before any that has seen its boundary."""
        state = due.state
        assert state is not None
        due.writing = self._files.meanwhile(lambda: write_evaluated(self._run_dir, state))

    def _wait(self, most: int, share: float = 0.0) -> bool:
        """Waits until at most `most` evaluations are left. Returns False if it has ceased to wait because the run was
        asked to leave, and this share of the grace period has passed.
        """
        since = time.monotonic()
        while len(self._queue) > most:
            if self._preemption.past(share):
                return False
            self.heartbeat("evaluation")
            self._advance(WAIT_S)
            self.waited_until = time.monotonic()
            if not self._said and self.waited_until - since > TELL_S:
                self._said = True
                self._warn(
                    f"training waits for the evaluation of {self._queue[0].env_steps if self._queue else 0:,} steps:"
                    " fewer --eval.episodes, or a larger --eval.every, would cost less"
                )
        return True

    def _settle_writes(self) -> None:
        """Waits until the checkpoints that wait are on the disk: the run's own comes next, which has seen them."""
        for due in self._queue:
            if due.writing is not None:
                with contextlib.suppress(Exception):  # a resume will not find this one, and the next one is due at once
                    due.writing.result()

    # -- results --------------------

    def poll(self) -> None:
        """Takes in results that have come; never waits."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_S
            self._flush()
            if self._queue:
                self._advance(0.0)

    def _advance(self, wait_s: float) -> None:
        first = self._queue[0]
        if first.folder is None and not self._is_written(first):
            time.sleep(wait_s)
            return
        assert first.folder is not None
        try:
            if not self._process.is_busy:
                self._process.begin(first.folder)
            result = self._process.result(wait_s)
        except PlayingError as error:
            self._on_failure(first, error)
            return
        if result is not None:
            self._failures = 0
            self._queue.popleft()
            self._on_figures(first, result)
            if self._queue:
                self._advance(0.0)

    def _is_written(self, due: _Waiting) -> bool:
        now = time.monotonic()
        if due.writing is None:
            if due.failed_at is not None and now - due.failed_at > self._patience_s:
                self._give_up("their checkpoints cannot be written (--checkpoint.patience-s)")
            elif now >= self._next_write:
                self._write(due)
            return False
        if not due.writing.done():
            return False
        writing, due.writing = due.writing, None
        try:
            due.folder, due.state = writing.result(), None
        except OSError:
            due.failed_at, self._next_write = due.failed_at or now, now + RETRY_S
        return due.folder is not None

    _next_write = 0.0

    def _on_figures(self, done: _Waiting, figures: dict[str, Any]) -> None:
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
        file, lines, pending = self._file, list(self._lines), [w.env_steps for w in self._queue]

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

    # -- failures and the end --------------------

    def _on_failure(self, due: _Waiting, error: PlayingError) -> None:
        self._failures += 1
        text = f"the evaluation of {due.env_steps:,} steps has failed: {error}"
        if error.is_final or self._failures > RESTARTS:
            self._give_up(text)
        else:
            self._warn(f"{text}\nit is played again ({self._failures} of {RESTARTS} times)")

    def _give_up(self, why: str) -> None:
        self._is_on = False
        self._process.close()
        ends = " and cannot be ended by --eval.target-return or --eval.patience" if self._ends_early else ""
        self._warn(f"{why}\ntraining goes on without evaluations{ends}; python -m dppo.evaluate plays its checkpoints")
        self._settle_writes()
        while self._queue:
            due = self._queue.popleft()
            remove_folder(due.folder or self._run_dir / paths.EVALUATED / paths.checkpoint_name(due.env_steps))

    def close(self) -> None:
        """Ends the process, and writes what could not be written before."""
        self._process.close()
        file, self._file, self._is_on = self._file, None, False
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
