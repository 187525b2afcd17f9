"""The page of a folder of runs, or of several folders side by side: settings against returns, curves, runs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from dppo.rundir import paths
from dppo.rundir.runs import Run
from dppo.study.charts import Band, Chart, Interval, Intervals, Item, Line, thinned
from dppo.study.overview import Report
from dppo.study.page import Cell, Columns, Details, Html, Page, Section, Table, Text, number_cell
from dppo.study.results import Setting, learning_curve
from dppo.study.search_section import html_section
from dppo.study.spec import as_text
from dppo.study.statistics import bootstrap_interval, interquartile_mean

STEPS = "environment steps of all ranks"
RETURN = "mean return of the last 100 episodes"
DRAWN = 8
"""The most settings in one chart: as many as there are colours."""
OWN_CHARTS, ROWS = 24, 40
"""The most settings with a chart of their own; the most rows of a chart of intervals."""
RUN_PIXELS = 60
FIGURES = (
    "Returns are those of the runs that ended by themselves: interquartile mean (IQM) over runs of the mean return of"
    " the last 100 training episodes, with its 95% bootstrap interval. A dot is a run."
)
GOOD = {"finished": "good", "target": "good", "failed": "bad", "unreadable": "bad", "missing": "bad"}

Curve = Callable[[Path], tuple[np.ndarray, np.ndarray]]
"""Returns env_steps and return_mean_100 of a run's iterations."""


def folder_page(reports: Sequence[tuple[Path, Report]], curve: Curve, page: Path) -> Page:
    """Returns the page of one folder, or of several side by side; `page` is where it will lie."""
    names = _names([folder for folder, _ in reports])
    if len(reports) == 1:
        ((folder, report),) = reports
        runs = sum(len(setting.runs) for setting in report.settings)
        return Page(
            names[0], f"{runs} runs, {len(report.settings)} settings, {folder}", _sections(folder, report, curve, page)
        )
    named = [(name, report) for name, (_, report) in zip(names, reports, strict=True)]
    sections = [
        Section("Comparison", list(_comparison(named, curve))),
        Section("Side by side", _side_by_side(named, curve)),
    ]
    for name, (folder, report) in zip(names, reports, strict=True):
        parts = [Details(section.title, section.parts) for section in _sections(folder, report, curve, page)]
        sections.append(Section(name, parts))
    return Page(" · ".join(names), f"{len(reports)} folders", sections)


def _names(folders: Sequence[Path]) -> list[str]:
    """Returns the names of folders, as much of each path as tells them apart."""
    whole = [folder.resolve() for folder in folders]
    short = [folder.name for folder in whole]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _sections(folder: Path, report: Report, curve: Curve, page: Path) -> list[Section]:
    made = [
        ("Runs that need attention", _attention(report)),
        ("Settings", _settings(report)),
        ("Curves", _curves(report, curve)),
        ("Search", [Html(html_section(report.study))] if report.study else []),
        ("Settings one by one", _effects(report)),
        ("Runs", [_runs(folder, report, page)]),
    ]
    return [Section(title, parts) for title, given in made if (parts := list(given))]


# -- settings --------------------


def _attention(report: Report) -> Iterable[Any]:
    if report.notes:
        yield Text(report.notes)
    if not report.problems:
        yield Text(["All runs have ended by themselves."])
        return
    rows = [
        [Cell(p.run if p.task is None else f"task {p.task}"), Cell(p.state, None, GOOD.get(p.state, "")),
         Cell(p.reason), Cell(p.repair)]
        for p in report.problems
    ]  # fmt: skip
    yield Table(["run", "state", "why", "repair"], rows, num_left=4)


def _settings(report: Report) -> Iterable[Any]:
    for env, settings in _by_env(report.settings):
        yield _intervals_chart(f"Settings: {env}", settings)
    yield settings_table([("", report)])
    yield Text([FIGURES], "note")


def settings_table(reports: Sequence[tuple[str, Report]]) -> Table:
    """Returns the table of all settings; of several folders, with a column of their names."""
    has_target = all(setting.has_target for _, report in reports for setting in report.settings)
    steps = "steps to target" if has_target else "steps"
    header = ["setting", "runs", "median", "IQM", "95% from", "to", steps, "seconds"]
    rows = []
    for name, report in reports:
        for setting in report.settings:
            interval = setting.interval() or (None, None)
            ended, runs = len(setting.ended), len(setting.runs)
            cells = [
                Cell(setting.label), number_cell(ended, f"{ended}/{runs}", "" if ended == runs else "bad"),
                number_cell(setting.median_return()), number_cell(setting.iqm(), tone="strong"),
                *map(number_cell, interval), _steps_cell(setting.median("env_steps")),
                _steps_cell(setting.median("train_s")),
            ]  # fmt: skip
            rows.append([Cell(name), *cells] if len(reports) > 1 else cells)
    if len(reports) > 1:
        header.insert(0, "folder")
    return Table(header, rows, num_left=1 + (len(reports) > 1))


def _steps_cell(value: float | None) -> Cell:
    if value is not None and math.isinf(value):
        return Cell("not reached", float("inf"))
    return number_cell(value, None if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}")


def _by_env(settings: Sequence[Setting]) -> list[tuple[str, list[Setting]]]:
    found: dict[str, list[Setting]] = {}
    for setting in settings:
        found.setdefault(setting.env, []).append(setting)
    return list(found.items())


def _intervals_chart(title: str, settings: Sequence[Setting], colours: Sequence[int] | None = None) -> Chart:
    """Draws the return of each setting, best first."""
    shown = [s for s in settings if s.iqm() is not None][:ROWS]
    rows, ticks = [], []
    for place, setting in enumerate(shown):
        low, high = setting.interval() or (None, None)
        middle = setting.iqm() or 0.0
        rows.append(
            Interval(setting.label, -place, middle, low, high, setting.returns, colours[place] if colours else 0)
        )
        ticks.append((-float(place), setting.label))
    note = "" if len(shown) == len(settings) else f"{len(shown)} of {len(settings)} settings are shown."
    height = 70 + 24 * max(len(rows), 1)
    return Chart(
        title, RETURN, "", [Intervals(rows, across=True)], note=note, is_wide=True, y_ticks=ticks, height=height
    )


def _effects(report: Report) -> Iterable[Chart]:
    """Draws for each setting that varies the returns of all runs that have each of its values."""
    for env, settings in _by_env(report.settings):
        partitions: set[tuple[int, ...]] = set()
        for name in settings[0].values:
            groups: dict[str, tuple[Any, list[np.ndarray]]] = {}
            for setting in settings:
                value = setting.values.get(name)
                groups.setdefault(repr(value), (value, []))[1].append(setting.returns)
            order = list(groups)
            partition = tuple(order.index(repr(setting.values.get(name))) for setting in settings)
            if 2 <= len(groups) <= ROWS and partition not in partitions and len(settings) > 2:
                partitions.add(partition)
                yield _effect(env, name, [(value, np.concatenate(parts)) for value, parts in groups.values()])


def _effect(env: str, name: str, groups: list[tuple[Any, np.ndarray]]) -> Chart:
    values = [value for value, _ in groups]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if numbers:
        groups = sorted(groups, key=lambda pair: pair[0])
        values = [value for value, _ in groups]
    is_log = numbers and min(values) > 0 and max(values) >= 8 * min(values)
    places = [float(value) for value in values] if is_log else [float(k) for k in range(len(values))]
    rows = []
    for at, (value, returns) in zip(places, groups, strict=True):
        if len(returns):
            low, high = (None, None) if len(returns) < 2 else _interval(returns)
            middle = float(interquartile_mean(returns))
            rows.append(Interval(f"{name}={_value(value)}", at, middle, low, high, returns))
    ticks = [(at, _value(value)) for at, value in zip(places, values, strict=True)]
    return Chart(f"{name}: {env}", name, RETURN, [Intervals(rows)], is_log=is_log, x_ticks=ticks)


def _interval(returns: np.ndarray) -> tuple[float, float]:
    return bootstrap_interval(returns, interquartile_mean, np.random.default_rng(0))


def _value(value: Any) -> str:
    return "default" if value is None else as_text(value)


# -- curves --------------------


def _curve_of(setting: Setting, curve: Curve) -> np.ndarray | None:
    return learning_curve([curve(run.folder) for run in setting.runs])


def _curve_items(name: str, points: np.ndarray, colour: int) -> list[Item]:
    x, middle, low, high = points
    return [Band(name, x, low, high, colour), Line(name, x, middle, colour)]


def _curves(report: Report, curve: Curve) -> Iterable[Any]:
    for env, settings in _by_env(report.settings):
        drawn = [(s, points) for s in settings[:OWN_CHARTS] if (points := _curve_of(s, curve)) is not None]
        if not drawn:
            yield Text([f"{env}: in no run has an episode ended."])
            continue
        items = [
            item for k, (s, points) in enumerate(drawn[:DRAWN]) for item in _curve_items(s.label, points, k)
        ]  # fmt: skip
        note = "" if len(settings) <= DRAWN else f"The best {min(DRAWN, len(drawn))} of {len(settings)} settings."
        yield Chart(f"Learning curves: {env}", STEPS, RETURN, items, note=note, is_wide=True, height=360)
        if len(settings) > 1 or len(settings[0].runs) > 1:
            own = [_own_chart(setting, points, curve) for setting, points in drawn]
            yield Details(f"{env}: {len(own)} settings, each with its runs", _same_range(own))


def _own_chart(setting: Setting, points: np.ndarray, curve: Curve) -> Chart:
    """Draws a setting's runs, and their curve."""
    items: list[Item] = []
    for run in setting.runs:
        steps, returns = curve(run.folder)
        if len(steps):
            items.append(Line(run.folder.name, *thinned(steps, returns, RUN_PIXELS), 5))
    items += [Band("95% of the IQM", points[0], points[2], points[3], 0), Line("IQM", points[0], points[1], 1)]
    return Chart(setting.label, STEPS, RETURN, items, height=200)


def _same_range(charts: Sequence[Chart]) -> list[Chart]:
    """Gives all charts the same y axis, so that they compare at a glance."""
    ends = [chart.extent()[1] for chart in charts]
    if not ends:
        return []
    y_range = min(low for low, _ in ends), max(high for _, high in ends)
    return [replace(chart, y_range=y_range) for chart in charts]


# -- runs --------------------


def _runs(folder: Path, report: Report, page: Path) -> Table:
    header = ["run", "setting", "state", "seed", "return", "steps", "episodes", "seconds", "steps/s"]
    rows = []
    for setting in report.settings:
        for run in setting.runs:
            rows.append([
                Cell(os.path.relpath(run.folder, folder), None, "", _link(run, page)), Cell(setting.label),
                Cell(run.state, None, GOOD.get(run.state, "")),
                number_cell(None if run.config is None else run.config.seed),
                number_cell(run.number("return_mean_100")),
                *(_steps_cell(run.number(key)) for key in ("env_steps", "episodes", "train_s", "steps_per_s")),
            ])  # fmt: skip
    return Table(header, rows, num_left=3)


def _link(run: Run, page: Path) -> str:
    """Returns the relative address of a run's own page; "" where it has none."""
    own = run.folder / paths.REPORT
    if not own.is_file() or own.resolve() == page.resolve():
        return ""
    return "./" + quote(os.path.relpath(own, page.parent))


# -- several folders --------------------


def _comparison(named: Sequence[tuple[str, Report]], curve: Curve) -> Iterable[Any]:
    envs = dict.fromkeys(setting.env for _, report in named for setting in report.settings)
    for env in envs:
        best = [
            replace(mine[0], label=f"{name}: {mine[0].label}") for name, report in named
            if (mine := [setting for setting in report.settings if setting.env == env])
        ]  # fmt: skip
        yield _intervals_chart(f"The best setting of each folder: {env}", best, [k % DRAWN for k in range(len(best))])
        curves = [(s, points) for s in best[:DRAWN] if (points := _curve_of(s, curve)) is not None]
        items = [item for k, (s, points) in enumerate(curves) for item in _curve_items(s.label, points, k)]
        if items:
            yield Chart(f"Curves of the best settings: {env}", STEPS, RETURN, items, is_wide=True, height=360)
    yield settings_table(named)
    yield Text([FIGURES], "note")


def _side_by_side(named: Sequence[tuple[str, Report]], curve: Curve) -> list[Columns]:
    """One column for each folder, with curves on the same axes where all have the same environment."""
    columns: list[tuple[str, list[Any]]] = []
    charts = []
    for _, report in named:
        items: list[Item] = []
        drawn = 0
        for setting in report.settings:
            if drawn < DRAWN and (points := _curve_of(setting, curve)) is not None:
                items += _curve_items(setting.label, points, drawn)
                drawn += 1
        charts.append(Chart("Learning curves", STEPS, RETURN, items))
    envs = {setting.env for _, report in named for setting in report.settings}
    if len(envs) == 1:
        charts = _same_range(charts)
    for (name, report), chart in zip(named, charts, strict=True):
        ended = sum(len(setting.ended) for setting in report.settings)
        runs = sum(len(setting.runs) for setting in report.settings)
        said = [f"{ended} of {runs} runs have ended by themselves."]
        said += [f"{p.run if p.task is None else f'task {p.task}'} is {p.state}: {p.reason}" for p in report.problems]
        columns.append((name, [Text(said), *([chart] if chart.items else [])]))
    return [Columns(columns)]
