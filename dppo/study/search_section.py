"""The study of a search for a report: its trials, which settings mattered, and three pictures as SVG."""

from __future__ import annotations

import html
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dppo.errors import UsageError
from dppo.files import plain
from dppo.study.journal import REASON, Study, load_optuna
from dppo.study.search import JOURNAL, STEPS, Dimension, Search, read_search
from dppo.study.spec import COPY, as_text, read_sweep

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 280, 70, 34, 24, 20
FEWEST = 4
"""The fewest complete trials of which importance is told."""


class TrialRow(NamedTuple):
    """A trial of a study."""

    number: int
    state: str
    """complete, pruned, failed or running."""
    value: float | None
    """Of a pruned trial the last return that it has told."""
    settings: dict[str, Any]
    """What was drawn, by flag's name."""
    reason: str = ""
    """Why it failed."""


class StudyData(NamedTuple):
    """What a report says of a search."""

    search: Search
    trials: list[TrialRow]
    best: TrialRow | None
    importance: dict[str, float]
    """The share of each setting (PED-ANOVA), largest first; {} where too few trials are complete."""


def read_study(folder: Path) -> StudyData | None:
    """Reads the study in a sweep's folder; None where there is none. Raises UsageError where it cannot be read."""
    if not (folder / JOURNAL).is_file():
        return None
    search = read_search(read_sweep(folder / COPY, folder), folder / COPY)
    try:
        study = Study(folder, search, writes=False)
        trials = study.trials()
    except (OSError, KeyError, ValueError) as error:
        raise (
            error if isinstance(error, UsageError) else UsageError(f"{folder / JOURNAL} cannot be read: {error}")
        ) from error
    names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    rows = [
        TrialRow(
            trial.number, names.get(trial.state.name, "running"), _value(trial, search),
            {name: search.space[name].setting(value) for name, value in trial.params.items()},
            str(trial.user_attrs.get(REASON, "")),
        )
        for trial in trials
    ]  # fmt: skip
    best = study.best()
    found = None if best is None else next(row for row in rows if row.number == best.number)
    return StudyData(search, rows, found, _importance(study, rows))


def _value(trial: Any, search: Search) -> float | None:
    if trial.state.name == "PRUNED" and trial.intermediate_values:
        last = trial.intermediate_values[max(trial.intermediate_values)]
        return float(-last if search.minimises else last)
    return None if trial.value is None else float(trial.value)


def _importance(study: Study, rows: list[TrialRow]) -> dict[str, float]:
    values = {row.value for row in rows if row.state == "complete"}
    if sum(row.state == "complete" for row in rows) < FEWEST or len(values) < 2:
        return {}
    of = load_optuna().importance
    with warnings.catch_warnings(action="ignore"):  # of few trials
        found = of.get_param_importances(study.optuna, evaluator=of.PedAnovaImportanceEvaluator())
    return {name: float(share) for name, share in found.items() if math.isfinite(share)}


def text_lines(data: StudyData) -> list[str]:
    """Returns a few lines of plain text on a study."""
    counts = {
        state: sum(row.state == state for row in data.trials) for state in ("complete", "pruned", "failed", "running")
    }
    lines = [
        f"study: {data.search.trials} trials, optimised {data.search.optimise}; "
        + ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    ]
    if data.best is not None:
        lines.append(f"best: trial {data.best.number}, {data.best.value:.6g}: {_settings(data.best)}")
    if data.importance:
        lines.append("importance: " + ", ".join(f"{name} {share:.0%}" for name, share in data.importance.items()))
    return lines


def html_section(data: StudyData) -> str:
    """Returns the section's content as HTML: text, then the pictures, in the colour of the page's text."""
    paragraphs = "".join(f"<p>{_escaped(line)}</p>" for line in text_lines(data))
    pictures = "".join(
        f"<figure>{picture}<figcaption>{_escaped(caption)}</figcaption></figure>"
        for caption, picture in (
            ("Value of each trial, and the best so far", history(data)),
            ("Importance of each setting for being among the best tenth (PED-ANOVA)", importance(data)),
            ("Settings and value of each complete trial; the strongest lines are the best", parallel_coordinates(data)),
        )
        if picture
    )
    return f'<div class="study">{paragraphs}{pictures}</div>'


def _escaped(text: str) -> str:
    return html.escape(plain(text))


def _settings(row: TrialRow) -> str:
    return ", ".join(f"{name}={as_short(value)}" for name, value in row.settings.items())


def as_short(value: Any) -> str:
    """Returns a setting or a value with few digits."""
    return f"{value:.4g}" if isinstance(value, float) else as_text(value)


# -- the pictures --------------------


def history(data: StudyData) -> str:
    """Draws values over trial numbers, and the best so far. Returns "" where no trial has a value."""
    shown = [row for row in data.trials if row.state == "complete" and row.value is not None]
    if not shown:
        return ""
    x = _Scale(0, max(1, data.trials[-1].number), LEFT, WIDTH - RIGHT)
    y = _Scale(*_range([row.value or 0.0 for row in shown]), HEIGHT - BOTTOM, TOP)
    # a pruned trial has told returns, which are no steps
    pruned = [row for row in data.trials if row.state == "pruned" and data.search.optimise != STEPS]
    parts = _axis_y(y) + [_text(x(n), HEIGHT - 12, str(n), "middle") for n in _ticks(0, data.trials[-1].number)]
    best, points = math.inf if data.search.minimises else -math.inf, ""
    for row in shown:
        value = row.value or 0.0
        before, best = best, (min if data.search.minimises else max)(best, value)
        points += (
            f" {x(row.number):.1f},{y(before):.1f}" if math.isfinite(before) else ""
        ) + f" {x(row.number):.1f},{y(best):.1f}"
    parts.append(f'<polyline points="{points.strip()}" fill="none" stroke="currentColor" opacity="0.5"/>')
    for row in [*shown, *pruned]:
        fill = "currentColor" if row.state == "complete" else "none"
        height = min(max(y(row.value or 0.0), TOP), HEIGHT - BOTTOM)
        title = _escaped(f"trial {row.number} ({row.state}): {as_short(row.value)}; {_settings(row)}")
        parts.append(
            f'<circle cx="{x(row.number):.1f}" cy="{height:.1f}" r="4" fill="{fill}" stroke="currentColor">'
            f"<title>{title}</title></circle>"
        )
    return _svg(parts, HEIGHT, "Value of each trial")


def importance(data: StudyData) -> str:
    """Draws a bar for each setting. Returns "" where importance is not known."""
    parts = []
    for place, (name, share) in enumerate(data.importance.items()):
        top = 8 + 26 * place
        parts.append(_text(190, top + 13, name, "end"))
        parts.append(
            f'<rect x="200" y="{top}" width="{max(1.0, share * (WIDTH - 280)):.1f}" height="18" fill="currentColor"'
            f' opacity="0.6"/>'
        )
        parts.append(_text(208 + max(1.0, share * (WIDTH - 280)), top + 13, f"{share:.0%}", "start"))
    return _svg(parts, 26 * len(data.importance) + 12, "Importance of each setting") if parts else ""


def parallel_coordinates(data: StudyData) -> str:
    """Draws an axis for each setting and one for the value, and a line for each complete trial. Returns "" where there
    are fewer than two.
    """
    rows = [row for row in data.trials if row.state == "complete" and row.value is not None]
    if len(rows) < 2:
        return ""
    names = list(data.search.space)
    places = [LEFT + k * (WIDTH - LEFT - 60) / len(names) for k in range(len(names) + 1)]
    scale = _Scale(0, 1, HEIGHT - BOTTOM, TOP + 6)
    low, high = _range([row.value or 0.0 for row in rows])
    parts = []
    for place, name in zip(places, names, strict=False):
        parts += _axis_of(place, name, data.search.space[name], scale)
    parts += _axis(places[-1], data.search.optimise, [(0.0, as_short(low)), (1.0, as_short(high))], scale)
    ranked = sorted(rows, key=lambda row: row.value or 0.0, reverse=not data.search.minimises)
    for rank, row in reversed(list(enumerate(ranked))):  # the best on top
        heights = [_height(data.search.space[name], row.settings[name]) for name in names]
        heights.append(((row.value or 0.0) - low) / (high - low))
        points = " ".join(f"{x:.1f},{scale(h):.1f}" for x, h in zip(places, heights, strict=True))
        opacity = 0.15 + 0.85 * (1 - rank / len(ranked)) ** 2
        title = _escaped(f"trial {row.number}: {as_short(row.value)}; {_settings(row)}")
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="{2.5 if rank == 0 else 1.2}"'
            f' opacity="{opacity:.2f}"><title>{title}</title></polyline>'
        )
    return _svg(parts, HEIGHT, "Settings and value of each trial")


def _height(dimension: Dimension, value: Any) -> float:
    """Returns where a setting lies on its axis, from 0 to 1."""
    if dimension.choices is not None:
        return dimension.choices.index(value) / (len(dimension.choices) - 1)
    if dimension.log:
        return math.log(value / dimension.low) / math.log(dimension.high / dimension.low)
    return float((value - dimension.low) / (dimension.high - dimension.low))


def _axis_of(place: float, name: str, dimension: Dimension, scale: _Scale) -> list[str]:
    ends = dimension.choices if dimension.choices is not None else [dimension.low, dimension.high]
    return _axis(place, name, [(_height(dimension, value), as_short(value)) for value in ends], scale)


def _axis(place: float, name: str, marks: Sequence[tuple[float, str]], scale: _Scale) -> list[str]:
    line = f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{scale(0):.1f}" y2="{scale(1):.1f}" stroke="currentColor"/>'
    texts = [_text(place - 5, scale(height) + 4, text, "end") for height, text in marks]
    return [line, _text(place, HEIGHT - 10, name, "middle"), *texts]


class _Scale(NamedTuple):
    low: float
    high: float
    first: float
    last: float

    def __call__(self, value: float) -> float:
        return self.first + (value - self.low) / (self.high - self.low) * (self.last - self.first)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if low < high else (low - 1.0, high + 1.0)


def _ticks(low: int, high: int) -> list[int]:
    step = max(1, math.ceil((high - low) / 10))
    return list(range(low, high + 1, step))


def _axis_y(y: _Scale) -> list[str]:
    parts = []
    for k in range(5):
        value = y.low + k * (y.high - y.low) / 4
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="currentColor"'
            f' opacity="0.15"/>'
        )
        parts.append(_text(LEFT - 6, y(value) + 4, f"{value:.4g}", "end"))
    return parts


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="12" fill="currentColor">'
        f"{_escaped(text)}</text>"
    )


def _svg(parts: Sequence[str], height: int, title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}"'
        f' font-family="sans-serif">{"".join(parts)}</svg>'
    )
