"""The trials of a search: Optuna's study in the sweep's folder, on which several processes may work at a time.

    DIR/study.journal         the study: a file of Optuna's, to which all append under its lock
    DIR/trial_0007/           the run directory of trial 7; DIR/trial_0007/seed_1/ where a trial has several seeds
    DIR/workers/task_002      locked by the process that makes trials as this worker, as long as it lives

A trial belongs to the worker that has begun it. If a worker dies, another one, or itself when it is started again,
resumes the trial's run.
"""

from __future__ import annotations

import math
import os
import socket
import time
from pathlib import Path

from dppo.cluster.slurm import in_queue, this_allocation
from dppo.errors import UsageError
from dppo.files import number_in
from dppo.rundir.evaluations import read_evaluations, return_of
from dppo.rundir.runs import read_curve
from dppo.rundir.summary import ENDED, TARGET, read_summary
from dppo.study.journal import OWNER, PRUNED, REASON, Study, locked
from dppo.study.local import BROKEN, DONE, Job, Outcome
from dppo.study.lock import lock
from dppo.study.search import BEST_RETURN, STEPS, Search, Value
from dppo.study.spec import COPY, config_of

WORKERS = "workers"
LATE = 2.0
"""A run that has not reached the target counts as this many times its steps (PAR2, as in algorithm configuration)."""
ASK_EVERY_S = 5.0
"""Seconds between two questions for a trial to run, where there was none."""
ALIVE_EVERY_S, DEAD_AFTER_S = 30.0, 300.0
"""Seconds between two signs of life of a worker; seconds without one after which a worker on another host is dead."""


def trial_folders(folder: Path, search: Search, number: int) -> list[Path]:
    """Returns the run directories of a trial, one for each seed."""
    trial = folder / f"trial_{number:04}"
    return [trial] if len(search.seeds) == 1 else [trial / f"seed_{seed}" for seed in search.seeds]


class Trials:
    """The trials that this process makes, as a worker of the study.

    Args:
      worker: the worker's name, which no other process has: see `enlist`.
    """

    def __init__(self, folder: Path, search: Search, worker: str) -> None:
        self._folder, self._search, self._worker = folder, search, worker
        self._study = Study(folder, search)
        self._idle: list[int] = []
        """Trials of which a seed has ended and the next one waits."""
        self._held: set[int] = set()
        """All trials that this process has begun or taken over."""
        self._running: dict[str, int] = {}
        self._alive_at = self._ask_at = -math.inf
        self.failed: dict[str, str] = {}
        """The reason for each run of this process that has not ended by itself."""

    def next(self) -> Job | None:
        while (number := self._next_number()) is not None:
            try:
                return self._job(number)
            except UsageError as error:  # settings that are allowed alone, but not together
                self._fail(number, str(error))
        return None

    def ended(self, job: Job, outcome: Outcome) -> None:
        number = self._running.pop(job.name)
        if outcome.state == BROKEN:
            self._fail(number, outcome.text)
        elif outcome.state != DONE:
            self.failed[job.name] = outcome.text
        elif self._study.trial(number).user_attrs.get(PRUNED):
            self._study.prune(number)
        elif any(not has_ended(folder) for folder in trial_folders(self._folder, self._search, number)):
            self._idle.append(number)
        else:
            self._tell(number)

    def stopped(self, job: Job) -> None:
        self._running.pop(job.name)

    def alive(self) -> None:
        if time.monotonic() - self._alive_at > ALIVE_EVERY_S:
            self._alive_at = time.monotonic()
            os.utime(self._folder / WORKERS / self._worker)

    @property
    def left(self) -> int:
        return self._search.trials - sum(trial.state.is_finished() for trial in self._study.trials())

    def counts(self) -> str:
        done = [trial for trial in self._study.trials() if trial.state.is_finished()]
        counted = {word: sum(t.state.name == word.upper() for t in done) for word in ("pruned", "fail")}
        of_them = "".join(f", {count} {word.replace('fail', 'failed')}" for word, count in counted.items() if count)
        best = self._study.best()
        so_far = f"; the best so far is trial {best.number} with {best.value:.6g}" if best else ""
        return f"{len(done)} of {self._search.trials} trials have ended{of_them}{so_far}"

    # -- parts --------------------

    def _next_number(self) -> int | None:
        if self._idle:
            return self._idle.pop(0)
        if time.monotonic() < self._ask_at:
            return None
        with locked((self._folder / COPY).resolve()):
            number = self._left_behind()
            number = self._study.begin() if number is None else number
            if number is None:
                self._ask_at = time.monotonic() + ASK_EVERY_S
                return None
            self._held.add(number)
            self._study.note(number, OWNER, self._worker)
        return number

    def _left_behind(self) -> int | None:
        """Returns a trial that was begun, and that nobody runs; None where there is none."""
        for trial in self._study.trials():
            if trial.state.name == "RUNNING" and trial.number not in self._held:
                owner = str(trial.user_attrs.get(OWNER, ""))
                if owner == self._worker or not is_alive(self._folder, owner, self._worker):
                    return int(trial.number)
        return None

    def _job(self, number: int) -> Job:
        params: dict[str, Value] = self._study.trial(number).params
        folders = trial_folders(self._folder, self._search, number)
        at = next((i for i, folder in enumerate(folders) if not has_ended(folder)), len(folders) - 1)
        seed = self._search.seeds[at]
        settings = self._search.settings(params, seed)
        name = f"trial {number}" + (f", seed {seed}" if len(folders) > 1 else "")
        self._running[name] = number
        varied = {key: self._search.space[key].setting(value) for key, value in params.items()}
        return Job(name, folders[at], settings, varied, config_of(settings))

    def _tell(self, number: int) -> None:
        values = [value_of(folder, self._search) for folder in trial_folders(self._folder, self._search, number)]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            self._fail(number, "no episode has ended, so there is no return")
        else:
            self._study.tell(number, sum(known) / len(known))

    def _fail(self, number: int, reason: str) -> None:
        self.failed[f"trial {number}"] = reason
        self._study.note(number, REASON, reason)
        self._study.fail(number)


def value_of(folder: Path, search: Search) -> float | None:
    """Returns the value of a run that has ended; None where no episode has.

    With --eval.every the return is that of an evaluation, otherwise the mean of the last 100 training episodes.
    """
    summary = read_summary(folder)
    if search.optimise == STEPS:
        steps = float(number_in(summary, "env_steps"))
        return steps if summary.get("exit") == TARGET else LATE * steps
    returns = returns_in(folder)
    if not returns:
        return None
    return max(returns) if search.optimise == BEST_RETURN else returns[-1]


def returns_in(folder: Path) -> list[float]:
    """Returns the mean returns of a run's evaluations or, without any, those of its iterations."""
    if evaluations := read_evaluations(folder):
        return [value for value in map(return_of, evaluations) if value is not None]
    return [float(value) for value in read_curve(folder)[1]]


def has_ended(folder: Path) -> bool:
    return read_summary(folder).get("exit") in ENDED


# -- workers --------------------


def enlist(folder: Path, worker: str) -> int | None:
    """Makes this process the worker of this name. Returns the descriptor that keeps others from it; None where another
    process is this worker.
    """
    (folder / WORKERS).mkdir(parents=True, exist_ok=True)
    path = folder / WORKERS / worker
    descriptor = lock(path)
    if descriptor is not None:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{socket.gethostname()} {this_allocation().job_id or ''}\n".encode(), 0)
    return descriptor


def is_alive(folder: Path, worker: str, this: str) -> bool:
    """Returns whether the process lives that is this worker, or Slurm starts its job again. Not all file systems tell
    one host of another's lock, so that a worker on another host must be silent for a while as well; the file server's
    clock counts.

    Args:
      this: the worker that asks, and that gives a sign of life meanwhile.
    """
    path, own = folder / WORKERS / worker, folder / WORKERS / this
    if not worker or not path.is_file():
        return False
    descriptor = lock(path)
    if descriptor is None:
        return True
    os.close(descriptor)
    host, _, job_id = path.read_text(errors="replace").strip().partition(" ")
    if job_id and job_id != this_allocation().job_id and in_queue(job_id):
        return True
    if host == socket.gethostname():
        return False
    os.utime(own)
    return own.stat().st_mtime - path.stat().st_mtime < DEAD_AFTER_S
