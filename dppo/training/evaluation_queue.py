"""Checkpoints that wait for their evaluation: each is written, and played by the process beside rank 0."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dppo.files import RETRY_S
from dppo.rundir import paths
from dppo.rundir.checkpoint import remove_folder
from dppo.rundir.evaluations import write_evaluated
from dppo.rundir.runfiles import RunFiles

RESTARTS = 3
"""How often in a row the process that plays is started again, before the run goes on without evaluations."""


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
class Waiting:
    """A checkpoint that waits for its evaluation."""

    env_steps: int
    iteration: int
    state: dict[str, Any] | None
    """The learner's state, until it is on the disk."""
    folder: Path | None
    writing: Future[Path] | None = None
    failed_at: float | None = None
    """When its checkpoint could not be written for the first time."""


class EvaluationQueue:
    """The checkpoints that wait, oldest first.

    Args:
      process: plays the episodes.
      patience_s: seconds after which a checkpoint that cannot be written is given up, and all evaluations with it.
      on_figures: called with each checkpoint that was played, and its figures.
      warn: shows a line.
      ends_early: whether evaluations may end the run.
    """

    def __init__(
        self,
        run_dir: Path,
        files: RunFiles,
        process: Plays,
        patience_s: float,
        on_figures: Callable[[Waiting, dict[str, Any]], None],
        warn: Callable[[str], None],
        *,
        ends_early: bool,
    ) -> None:
        self._run_dir, self._files, self._process, self._patience_s = run_dir, files, process, patience_s
        self._on_figures, self._warn, self._ends_early = on_figures, warn, ends_early
        self._waiting = deque[Waiting]()
        self._failures, self._next_write = 0, 0.0
        self.has_given_up = False
        """Whether nothing is evaluated any more."""

    @property
    def steps(self) -> list[int]:
        """The environment steps of the checkpoints that wait."""
        return [due.env_steps for due in self._waiting]

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, due: Waiting) -> None:
        """Appends a checkpoint, and has it written if it is not on the disk yet."""
        self._waiting.append(due)
        if due.folder is None:
            self._write(due)

    def _write(self, due: Waiting) -> None:
        """Has the thread that writes checkpoints write this one: before any that has seen its boundary."""
        state = due.state
        assert state is not None
        due.writing = self._files.meanwhile(lambda: write_evaluated(self._run_dir, state))

    def settle_writes(self) -> None:
        """Waits until the checkpoints that wait are on the disk: the run's own comes next, which has seen them."""
        for due in self._waiting:
            if due.writing is not None:
                with contextlib.suppress(Exception):  # a resume will not find this one, and the next one is due at once
                    due.writing.result()

    def advance(self, wait_s: float) -> None:
        """Does what can be done for the first checkpoint that waits. Waits for its figures, `wait_s` at most."""
        first = self._waiting[0]
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
            self._waiting.popleft()
            self._on_figures(first, result)
            if self._waiting:
                self.advance(0.0)

    def _is_written(self, due: Waiting) -> bool:
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

    def _on_failure(self, due: Waiting, error: PlayingError) -> None:
        self._failures += 1
        text = f"the evaluation of {due.env_steps:,} steps has failed: {error}"
        if error.is_final or self._failures > RESTARTS:
            self._give_up(text)
        else:
            self._warn(f"{text}\nit is played again ({self._failures} of {RESTARTS} times)")

    def _give_up(self, why: str) -> None:
        self.has_given_up = True
        self._process.close()
        ends = " and cannot be ended by --eval.target-return or --eval.patience" if self._ends_early else ""
        self._warn(f"{why}\ntraining goes on without evaluations{ends}; python -m dppo.evaluate plays its checkpoints")
        self.settle_writes()
        while self._waiting:
            due = self._waiting.popleft()
            remove_folder(due.folder or self._run_dir / paths.EVALUATED / paths.checkpoint_name(due.env_steps))

    def close(self) -> None:
        """Ends the process."""
        self._process.close()
