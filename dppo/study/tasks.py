"""The tasks of a sweep as runs on this machine: those that have not ended yet."""

from __future__ import annotations

from pathlib import Path

from dppo.rundir.summary import ENDED, read_summary
from dppo.study.local import Job, Outcome
from dppo.study.spec import Sweep, config_of, task_folder


class Tasks:
    """The runs of a sweep that are left, in the order of their numbers."""

    def __init__(self, sweep: Sweep, sweep_dir: Path) -> None:
        folders = {task: task_folder(sweep_dir, task) for task in range(len(sweep.varied))}
        left = [task for task, folder in folders.items() if read_summary(folder).get("exit") not in ENDED]
        self.total = len(folders)
        self.failed: dict[str, str] = {}
        self._sweep, self._folders = sweep, folders
        self._left = left[::-1]
        self._running = self._stopped = 0

    def next(self) -> Job | None:
        if not self._left:
            return None
        self._running += 1
        task = self._left.pop()
        settings = self._sweep.settings(task)
        return Job(f"task {task}", self._folders[task], settings, self._sweep.varied[task], config_of(settings))

    def ended(self, job: Job, outcome: Outcome) -> None:
        self._running -= 1
        if outcome.text:
            self.failed[job.name] = outcome.text

    def stopped(self, job: Job) -> None:
        self._running -= 1
        self._stopped += 1

    def alive(self) -> None:
        pass

    @property
    def left(self) -> int:
        return len(self._left) + self._stopped

    def counts(self) -> str:
        done = self.total - self.left - self._running - len(self.failed)
        others = ((self._running, "run"), (self.left, "wait"), (len(self.failed), "failed"))
        return f"{done} of {self.total} tasks have ended" + "".join(f", {n} {word}" for n, word in others if n)
