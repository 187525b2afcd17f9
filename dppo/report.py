"""python -m dppo.report: sums up a sweep, or any folder of runs, and says which runs need attention."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dppo.console import escaped, markdown_table, say
from dppo.errors import EXIT_USAGE, UsageError, missing_package
from dppo.files import plain, replace_atomically
from dppo.rundir.runs import Run, find_runs, read_curve, read_run
from dppo.rundir.summary import PREEMPTED, RUNNING
from dppo.settings.commands import Parser
from dppo.study import curves
from dppo.study.results import Setting, by_setting, learning_curve
from dppo.study.search_section import StudyData, read_study
from dppo.study.search_section import text_lines as study_lines
from dppo.study.spec import COPY, Sweep, config_of, read_sweep, submit_line, task_folder

FIGURES = (
    "Figures are of the runs that ended by themselves: median and interquartile mean (IQM) over runs of the mean return"
    " of the last 100 training episodes, the IQM's 95% bootstrap interval, medians of environment steps and of training"
    " seconds. In the picture a setting has a value where at least half of its runs have one."
)


AT_WORK = (RUNNING, PREEMPTED)
"""States in which a job has the run, or gets it back: look at the queue before you submit another job."""


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
    problems = [_problem(run, tasks.get(run.folder), folder, study) for run in runs if not run.ended]
    return Report(settings, problems, notes, study)


def _study_of(folder: Path, sweep: Sweep | None, notes: list[str]) -> StudyData | None:
    """Returns the study of a search; None where there is none, or a note says why it cannot be read."""
    try:
        return read_study(folder) if sweep and sweep.search is not None else None
    except UsageError as error:
        notes.append(f"the study is not in this report: {error}")
        return None


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
        repair = _submit([task], sweep_dir)
        if run.config is None:
            repair = f"correct {sweep_dir / 'sweep.toml'}, then {repair}"
        elif run.is_damaged:
            repair = f"move {run.folder} away, then {repair}"
    if run.state == RUNNING:
        repair = f"look whether its job is still in squeue; only if it is not: {repair}"
    elif run.state == PREEMPTED:
        repair = f"its job comes back by itself; only if squeue does not list it: {repair}"
    return Problem(str(run.folder), task, run.state, run.reason, repair)


def _submit(tasks: list[int], sweep_dir: Path) -> str:
    """Returns the line that submits these tasks of the sweep whose copy is kept in `sweep_dir`."""
    return submit_line(tasks, sweep_dir / "sweep.toml", sweep_dir)


# -- as text --------------------


def text_lines(report: Report, folder: Path) -> list[str]:
    """Returns the report on `folder` as Markdown that reads well as plain text."""
    steps = "steps to target" if all(setting.has_target for setting in report.settings) else "steps"
    header = ("setting", "runs", "median", "IQM", "95% interval", steps, "seconds")
    lines = markdown_table(header, [_row(setting) for setting in report.settings], left=1)
    if report.study:
        lines = [*(escaped(line) for line in study_lines(report.study)), "", *lines]
    if report.notes:
        lines += ["", *(f"- {escaped(note)}" for note in report.notes)]
    if not report.problems:
        return [*lines, "", "All runs have ended by themselves."]
    lines += ["", f"{len(report.problems)} run(s) have not ended by themselves:", ""]
    for p in report.problems:
        name = p.run if p.task is None else f"task {p.task}"
        lines.append(f"- {escaped(f'{name} is {p.state}: {p.reason}. Repair: {p.repair}')}")
    again = [p.task for p in report.problems if p.task is not None and p.state not in AT_WORK]
    if len(again) > 1:
        lines += ["", f"All but those that run or come back by themselves: {escaped(_submit(again, folder))}"]
    return lines


def _row(setting: Setting) -> list[str]:
    interval, steps, seconds = setting.interval(), setting.median("env_steps"), setting.median("train_s")
    reached = f" ({setting.reached}/{len(setting.runs)})" if setting.has_target else ""
    return [
        escaped(setting.label),
        f"{len(setting.ended)}/{len(setting.runs)}",
        _number(setting.median_return()),
        _number(setting.iqm()),
        f"[{_number(interval[0])}, {_number(interval[1])}]" if interval else "–",
        ("not reached" if steps == math.inf else "–" if steps is None else f"{steps:,.0f}") + reached,
        "–" if seconds in (None, math.inf) else _number(seconds),
    ]


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 10 else f"{value:.3g}"


def as_json(report: Report, folder: Path) -> dict[str, Any]:
    """Returns the report as a JSON object; null for unknown values, and for steps and seconds of a missed target."""

    def finite(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    settings = [
        {
            "setting": s.label,
            "values": s.values,
            "env": s.env,
            "ended": len(s.ended),
            "runs": len(s.runs),
            "reached_target": s.reached if s.has_target else None,
            "returns": s.returns.tolist(),
            "return_median": s.median_return(),
            "return_iqm": s.iqm(),
            "return_interval": s.interval(),
            "env_steps": finite(s.median("env_steps")),
            "train_s": finite(s.median("train_s")),
            "run_dirs": [str(run.folder) for run in s.runs],
        }
        for s in report.settings
    ]
    problems = [problem._asdict() for problem in report.problems]
    return {"folder": str(folder), "settings": settings, "problems": problems, "notes": report.notes}


# -- the picture --------------------


def plot(report: Report, path: Path) -> tuple[bool, list[str]]:
    """Draws the best settings' learning curves. Returns whether that worked, and notes to show."""
    notes, drawn = [], []
    for setting in report.settings[: len(curves.COLOURS)]:
        read = [(run.folder, *read_curve(run.folder)) for run in setting.runs]
        notes += [f"{place}: {n} damaged line(s) of metrics.jsonl are not in the curve" for place, _, _, n in read if n]
        curve = learning_curve([(steps, returns) for _, steps, returns, _ in read])
        if curve is not None:
            drawn.append((setting.label, curve))
    if not drawn:
        return False, [*notes, "no plot: in no run has an episode ended"]
    try:
        curves.draw(path, drawn)
    except ImportError as error:
        return False, [*notes, f"no plot: {missing_package('Matplotlib', error)}"]
    if len(report.settings) > len(drawn):
        notes.append(f"{path.name} shows {len(drawn)} of {len(report.settings)} settings: the best that have a return")
    return True, notes


def _write(report: Report, folder: Path, *, with_plot: bool) -> list[str]:
    """Writes report.md and report.svg in `folder`. Returns notes to show."""
    drawn, notes = plot(report, folder / "report.svg") if with_plot else (False, [])
    text = [f"# {escaped(folder.resolve().name)}", "", *text_lines(report, folder), "", FIGURES, ""]
    if drawn:
        text += ["![Learning curves](report.svg)", ""]
    replace_atomically(folder / "report.md", "\n".join(text).encode())
    return notes


def _parser() -> Parser:
    parser = Parser(prog="python -m dppo.report", description="Sums up the runs of a sweep, or of any folder of runs.")
    parser.add_argument("folder", metavar="SWEEP_DIR", type=Path, help="searched for run directories at any depth")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output instead of the table")
    parser.add_argument("--no-plot", action="store_true", help="no SWEEP_DIR/report.svg")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    try:
        args = _parser().parse_args(argv)
        report = make_report(args.folder)
    except UsageError as error:
        say(plain(error))
        return EXIT_USAGE
    print(
        json.dumps(as_json(report, args.folder)) if args.json else "\n".join(text_lines(report, args.folder)),
        flush=True,
    )
    try:
        notes = _write(report, args.folder, with_plot=not args.no_plot)
    except OSError as error:
        notes = [f"report.md and report.svg cannot be written: {error}"]
    for note in notes:
        say(plain(note))
    return 0


if __name__ == "__main__":
    sys.exit(main())
