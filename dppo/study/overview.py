"""Sums up the runs of a folder: what each setting has reached, and which runs need attention."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dppo.errors import UsageError
from dppo.rundir.runs import Run, find_runs, newest_speed, read_curve, read_run
from dppo.rundir.summary import PREEMPTED, RUNNING
from dppo.study.results import Setting, by_setting
from dppo.study.search_section import StudyData, read_study
from dppo.study.spec import COPY, Sweep, config_of, read_sweep, submit_line, task_folder

AT_WORK = (RUNNING, PREEMPTED)
"""States in which a job has the run, or gets it back: look at the queue before you submit another job."""

BEHIND = 0.5
"""A run is behind whose speed is below this part of the median of its setting."""


class Problem(NamedTuple):
    """A run that has not ended by itself."""

    run: str
    task: int | None
    state: str
    reason: str
    repair: str


class Report(NamedTuple):
    """Everything that a report says."""

    settings: list[Setting]
    problems: list[Problem]
    notes: list[str]
    study: StudyData | None = None
    """The study of a search, whose trials are the runs."""

    @property
    def is_under_way(self) -> bool:
        """Whether a run has not said that it ended: it goes on, or was killed."""
        return any(run.state == RUNNING for setting in self.settings for run in setting.runs)


def make_report(folder: Path) -> Report:
    """Reads all runs below `folder`. Raises UsageError where no run is there, or none can be read."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; give a sweep's, one with run directories, or a run directory")
    sweep, notes = _sweep_of(folder)
    tasks = {task_folder(folder, task): task for task in range(len(sweep.varied) if sweep else 0)}
    found = find_runs(folder)
    runs = [read_run(place) for place in dict.fromkeys((*tasks, *found))]
    if all(run.state == "missing" for run in runs):
        raise UsageError(f"{folder} holds no run: no folder in it has a config.toml and a summary.json")
    if sweep:
        runs = [_as_expected(run, sweep, tasks.get(run.folder)) for run in runs]
        others = [place for place in found if place not in tasks and sweep.search is None]
        notes += [f"{place} is no task of {folder / 'sweep.toml'}; it counts all the same" for place in others]
    study = _study_of(folder, sweep, notes)
    drawn = list(study.search.space) if study else list(sweep.varied[0]) if sweep and sweep.varied else []
    settings = by_setting(runs, drawn)
    if not settings:
        raise UsageError(f"no run in {folder} can be read: {runs[0].folder}: {runs[0].reason}")
    for setting in settings:
        if silent := len(setting.ended) - len(setting.returns):
            notes.append(f"{setting.label}: in {silent} of the runs that ended no episode did; they have no return")
        if waiting := _waiting(setting):
            notes.append(waiting)
        notes += _behind(setting)
    problems = [_problem(run, tasks.get(run.folder), folder, study) for run in runs if not run.ended]
    return Report(settings, problems, notes, study)


def _study_of(folder: Path, sweep: Sweep | None, notes: list[str]) -> StudyData | None:
    """Returns the study of a search; None where there is none, or a note says why it cannot be read."""
    try:
        return read_study(folder) if sweep and sweep.search is not None else None
    except UsageError as error:
        notes.append(f"the study is not in this report: {error}")
        return None


def _behind(setting: Setting) -> list[str]:
    """Names the runs under way that are far slower than the others of their setting."""
    speeds = {run.folder: newest_speed(run.folder) for run in setting.runs}
    known = [speed for speed in speeds.values() if speed]
    usual = float(np.median(known)) if known else 0.0
    return [
        f"{run.folder} is behind: {speed:,.0f} steps/s, and the median of its setting is {usual:,.0f}"
        for run in setting.runs
        if run.state == RUNNING and (speed := speeds[run.folder]) and speed < BEHIND * usual
    ]


def _waiting(setting: Setting) -> str:
    """Says how long environments of several ranks wait for their workers; "" where no run knows."""
    of_several = [run.folder for run in setting.runs if run.config is not None and run.config.env_ranks > 1]
    shares = [float(np.median(w)) for _, w, _ in (read_curve(f, "env_waiting_per_s") for f in of_several) if len(w)]
    if not shares:
        return ""
    share = f"{np.median(shares):.0%} of the time (medians of iterations and runs)"
    return f"{setting.label}: the ranks of an environment wait for their worker {share}"


def _sweep_of(folder: Path) -> tuple[Sweep | None, list[str]]:
    path = folder / "sweep.toml"
    if not os.path.lexists(path):
        return None, []
    try:
        return read_sweep(path, folder), []
    except UsageError as error:
        return None, [f"{error}; so nobody knows which tasks are missing"]


def _as_expected(run: Run, sweep: Sweep, task: int | None) -> Run:
    """Adds the settings that the sweep gives a run whose own settings cannot be read."""
    if task is None or run.config is not None:
        return run
    try:
        return run._replace(config=config_of(sweep.settings(task)))
    except UsageError as error:
        return run._replace(reason=f"its settings are wrong: {error}")


def _problem(run: Run, task: int | None, sweep_dir: Path, study: StudyData | None) -> Problem:
    if study:
        again = f"python -m dppo.sweep {shlex.quote(str(sweep_dir / COPY))} {shlex.quote(str(sweep_dir))} --run"
        return Problem(
            str(run.folder), None, run.state, run.reason, f"{again}, or its job array, goes on with the study"
        )
    if task is None:
        repair = f"python -m dppo.run --resume --run-dir {shlex.quote(str(run.folder))}, under the mpirun of its start"
        if run.is_damaged:
            repair = "start it again in another --run-dir"
    else:
        repair = submit([task], sweep_dir)
        if run.config is None:
            repair = f"correct {sweep_dir / 'sweep.toml'}, then {repair}"
        elif run.is_damaged:
            repair = f"move {run.folder} away, then {repair}"
    if run.state == RUNNING:
        repair = f"look whether its job is still in squeue; only if it is not: {repair}"
    elif run.state == PREEMPTED:
        repair = f"its job comes back by itself; only if squeue does not list it: {repair}"
    return Problem(str(run.folder), task, run.state, run.reason, repair)


def submit(tasks: list[int], sweep_dir: Path) -> str:
    """Returns the line that submits these tasks of the sweep whose copy is kept in `sweep_dir`."""
    return submit_line(tasks, sweep_dir / "sweep.toml", sweep_dir)
