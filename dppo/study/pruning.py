"""The recorder of a trial that a pruner may stop: rank 0 tells the study the run's return so far, and asks."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from dppo.study.journal import PRUNED, REPORTS, Study
from dppo.study.search import JOURNAL, read_search
from dppo.study.spec import COPY, read_sweep
from dppo.study.trials import returns_in, trial_folders


class Pruning:
    """Reports the mean return at equal steps of all trials: that of each evaluation, or REPORTS times in a run that of
    the last 100 episodes. A trial with several seeds reports the mean over the seeds so far. A run that its pruner has
    stopped is stopped again where it is resumed.
    """

    def __init__(self) -> None:
        self._study: Study | None = None
        self._trial = self._last = self._first = 0
        self._interval = 1.0
        self._by_evaluations = self._is_pruned = False
        self._before: list[float] = []
        self._total_steps = 0

    def start(self, run: Any) -> None:
        """Finds the study and the trial that the run directory belongs to. Raises ValueError where it is none."""
        folder, self._trial = trial_of(run.run_dir)
        search = read_search(read_sweep(folder / COPY, folder), folder / COPY)
        self._study = Study(folder, search)
        self._is_pruned = bool(self._study.trial(self._trial).user_attrs.get(PRUNED))
        folders = trial_folders(folder, search, self._trial)
        earlier = folders[: [place.name for place in folders].index(run.run_dir.name)]
        self._before = [returns[-1] for returns in map(returns_in, earlier) if returns]
        self._total_steps = run.config["total_steps"]
        every = run.config.get("eval", {}).get("every")
        self._by_evaluations = bool(every)
        self._interval = every or self._total_steps / REPORTS
        self._first = len(earlier) * math.ceil(self._total_steps / self._interval)
        self._last = int(run.env_steps // self._interval)

    def iteration(self, line: dict[str, Any]) -> bool:
        """Reports training's return, if it is time to. Returns whether the run should end."""
        return self._is_pruned if self._by_evaluations else self._report(line, "return_mean_100")

    def evaluation(self, line: dict[str, Any]) -> bool:
        """Reports an evaluation's return. Returns whether the run should end."""
        return self._report(line, "return_mean")

    def checkpoint(self, path: Path) -> None:
        """Does nothing."""

    def end(self, summary: dict[str, Any]) -> None:
        """Does nothing."""

    def _report(self, line: dict[str, Any], key: str) -> bool:
        steps, value = line["env_steps"], line.get(key)
        at = int(steps // self._interval)
        if self._is_pruned or at <= self._last or value is None or steps >= self._total_steps:
            return self._is_pruned
        assert self._study is not None
        self._last = at
        so_far = [*self._before, value]
        mean = math.fsum(so_far) / len(so_far)
        if self._study.report(self._trial, self._first + at, -mean if self._study.search.minimises else mean):
            self._study.note(self._trial, PRUNED, True)
            self._is_pruned = True
        return self._is_pruned


def trial_of(run_dir: Path) -> tuple[Path, int]:
    """Returns the sweep's folder and the number of the trial that a run directory belongs to."""
    for folder in (run_dir, run_dir.parent):
        found = re.fullmatch(r"trial_(\d{4,})", folder.name)
        if found and (folder.parent / JOURNAL).is_file():
            return folder.parent, int(found[1])
    raise ValueError(f"{run_dir} is no run of a search: dppo.sweep gives this recorder to the runs of its trials")
