"""Draws a chart as SVG for a page: colours are the page's, and page.js reads values back for the one who points."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from dppo.files import plain
from dppo.study.charts import (
    Band,
    Bars,
    Chart,
    Interval,
    Intervals,
    Line,
    Points,
    Stack,
    Ticks,
    averaged,
    log_ticks,
    round_ticks,
    short_number,
    thinned,
)

WIDTHS = {False: 460, True: 940}
"""The width of a chart, and of a wide one, in SVG's units; a page scales both."""
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 40
CELL = 2.0
"""Points in one square of this width are drawn once."""
LONGEST_LABEL = 44
SHAPES = {
    "death": "M-5,-6H5L0,4Z",
    "replaced": "M-5,4H5L0,-6Z",
    "resume": "M-4,-6L5,-1L-4,4Z",
    "best": "M0,-7L6,-1L0,5L-6,-1Z",
}


class Frame(NamedTuple):
    """The rectangle within the axes, and what its edges stand for."""

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]
    is_log: bool

    def across(self, values: np.ndarray) -> np.ndarray:
        """Returns where values of the x axis lie, from the frame's left edge."""
        low, high = self.x
        if self.is_log:
            low, high = math.log(low), math.log(high)
            with np.errstate(divide="ignore", invalid="ignore"):
                values = np.log(values)
        return (values - low) / (high - low) * self.width

    def down(self, values: np.ndarray) -> np.ndarray:
        """Returns where values of the y axis lie, from the frame's top; at most a frame's height beyond an edge."""
        low, high = self.y
        return np.clip((high - values) / (high - low), -1, 2) * self.height

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Returns where a single point lies."""
        return float(self.across(np.array(x))), float(self.down(np.array(y)))


def escape(text: object) -> str:
    """Returns a text that is safe in an element and in an attribute, and commands no terminal."""
    return html.escape(plain(text))


def svg(chart: Chart) -> str:
    """Returns the chart as an SVG element."""
    frame = _frame(chart)
    width, height = WIDTHS[chart.is_wide], chart.height
    inner = [part for item in chart.items for part in _item(item, frame)]
    log = ' data-log="1"' if chart.is_log else ""
    marks = [_mark(frame.point(mark.x, frame.y[0])[0], frame, mark.kind, mark.text) for mark in chart.marks]
    return "\n".join((
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(chart.title)}"'
        f' data-frame="{frame.left:g} {frame.top:g} {frame.width:g} {frame.height:g}"'
        f' data-x="{frame.x[0]!r} {frame.x[1]!r}" data-y="{frame.y[0]!r} {frame.y[1]!r}"'
        f' data-x-title="{escape(chart.x_title)}"{log}>',
        *_axes(chart, frame),
        f'<svg x="{frame.left:g}" y="{frame.top:g}" width="{frame.width:g}" height="{frame.height:g}">',
        *inner,
        "</svg>",
        *marks,
        "</svg>",
    ))  # fmt: skip


def _frame(chart: Chart) -> Frame:
    x, y = chart.extent()
    left = float(LEFT)
    if chart.y_ticks is not None:
        left = 14 + 6.3 * max((min(len(label), LONGEST_LABEL) for _, label in chart.y_ticks), default=6)
    top = TOP + 8.0 * bool(chart.marks)
    return Frame(left, top, WIDTHS[chart.is_wide] - left - RIGHT, chart.height - top - BOTTOM, x, y, chart.is_log)


# -- axes --------------------


def _axes(chart: Chart, frame: Frame) -> Iterable[str]:
    """Draws grid lines with their numbers, and the titles of the axes."""
    bottom = frame.top + frame.height
    x_ticks: Ticks = chart.x_ticks or (log_ticks(*frame.x) if chart.is_log else round_ticks(*frame.x, 6))
    y_ticks: Ticks = chart.y_ticks or round_ticks(*frame.y, 5)
    for value, label in x_ticks:
        x = frame.left + frame.point(value, frame.y[0])[0]
        yield f'<path class="grid" d="M{x:.1f},{frame.top:g}V{bottom:g}"/>'
        yield _text(x, bottom + 15, _shortened(label, 18), "middle")
    for value, label in y_ticks:
        y = frame.top + frame.point(frame.x[0], value)[1]
        yield f'<path class="grid" d="M{frame.left:g},{y:.1f}h{frame.width:g}"/>'
        yield _text(frame.left - 6, y + 4, _shortened(label, LONGEST_LABEL), "end")
    yield _text(frame.left + frame.width / 2, chart.height - 6, chart.x_title, "middle", "axis")
    if chart.y_ticks is None:
        middle = frame.top + frame.height / 2
        turn = f' transform="rotate(-90 11 {middle:g})"'
        yield _text(11, middle, chart.y_title, "middle", "axis", turn)


def _text(x: float, y: float, text: str, anchor: str, classes: str = "", more: str = "") -> str:
    named = f' class="{classes}"' if classes else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


# -- what is shown --------------------


def _item(item: object, frame: Frame) -> Iterable[str]:
    if isinstance(item, Line):
        x, y = thinned(item.x, item.y, int(frame.width))
        dashed = " dashed" if item.is_dashed else ""
        yield _path("line", f"line{dashed}", item.name, item.colour, _way(frame, x, y))
    elif isinstance(item, Band):
        x, columns = averaged(item.x, [item.low, item.high], int(frame.width / 2))
        for part in _unbroken(x, *columns):
            yield _path("band", "band", item.name, item.colour, _area(frame, *part))
    elif isinstance(item, Stack):
        x, columns = averaged(item.x, [layer for _, layer in item.layers], int(frame.width / 3))
        below = np.zeros(len(x))
        for number, ((name, _), column) in enumerate(zip(item.layers, columns, strict=True)):
            above = below + np.nan_to_num(column)
            yield _path("layer", "layer", name, number, _area(frame, x, below, above))
            below = above
    elif isinstance(item, Points):
        yield _points(item, frame)
    elif isinstance(item, Bars):
        yield from _bars(item, frame)
    elif isinstance(item, Intervals):
        for row in item.rows:
            yield _interval(row, frame, across=item.across)


def _path(kind: str, classes: str, name: str, colour: int, way: str) -> str:
    return f'<path class="{classes} s{colour % 8}" data-kind="{kind}" data-name="{escape(name)}" d="{way}"/>'


def _way(frame: Frame, x: np.ndarray, y: np.ndarray) -> str:
    """Returns the path through points; a single point between two gaps is drawn as a short line."""
    parts, is_down = [], False
    for a, b in zip(frame.across(x).tolist(), frame.down(y).tolist(), strict=True):
        if not (math.isfinite(a) and math.isfinite(b)):
            is_down = False
            continue
        parts.append(f"{'L' if is_down else 'M'}{a:.1f},{b:.2f}")
        is_down = True
    if len(parts) == 1:
        parts.append("h1")
    return "".join(parts)


def _unbroken(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> Iterable[tuple[np.ndarray, ...]]:
    """Yields the parts of a band between its gaps."""
    there = np.isfinite(low) & np.isfinite(high)
    edges = np.flatnonzero(np.diff(there.astype(int), prepend=0, append=0))
    for start, end in edges.reshape(-1, 2):
        yield x[start:end], low[start:end], high[start:end]


def _area(frame: Frame, x: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
    """Returns the path along the upper edge, and back along the lower one."""
    across = frame.across(x).tolist()
    there = [f"{a:.1f},{b:.2f}" for a, b in zip(across, frame.down(high).tolist(), strict=True)]
    back = [f"{a:.1f},{b:.2f}" for a, b in zip(across, frame.down(low).tolist(), strict=True)]
    return f"M{'L'.join(there)}L{'L'.join(reversed(back))}Z" if there else ""


def _points(item: Points, frame: Frame) -> str:
    x, y = frame.across(item.x), frame.down(item.y)
    there = np.isfinite(x) & np.isfinite(y) & (y >= -CELL) & (y <= frame.height + CELL)
    rows = int(frame.height / CELL) + 4
    numbers = np.round(x[there] / CELL).astype(np.int64) * rows + np.round(y[there] / CELL).astype(np.int64) + 1
    numbers = np.unique(numbers)
    cells = np.column_stack((numbers // rows, numbers % rows - 1)) * CELL
    many = " many" if len(cells) > 1500 else ""
    way = "".join(f"M{a:g},{b:g}h0" for a, b in cells.tolist())
    return _path("points", f"points{many}", item.name, item.colour, way)


def _bars(item: Bars, frame: Frame) -> Iterable[str]:
    for value, height in zip(item.x.tolist(), item.y.tolist(), strict=True):
        (left, top), (right, bottom) = frame.point(value - 0.42, height), frame.point(value + 0.42, 0)
        tip = escape(f"{item.name} {value:g}: {height:,.10g}")
        yield (
            f'<rect class="bar s{item.colour % 8}" x="{left:.1f}" y="{top:.1f}" width="{max(right - left, 0.5):.1f}"'
            f' height="{max(bottom - top, 0):.1f}" data-tip="{tip}"/>'
        )


def _interval(row: Interval, frame: Frame, *, across: bool) -> str:
    def place(value: float) -> tuple[float, float]:
        return frame.point(value, row.at) if across else frame.point(row.at, value)

    parts = []
    tip = f"{row.name}: {short_number(row.middle)}"
    if row.low is not None and row.high is not None:
        (x0, y0), (x1, y1) = place(row.low), place(row.high)
        parts.append(f'<path class="range" d="M{x0:.1f},{y0:.1f}L{x1:.1f},{y1:.1f}"/>')
        tip += f" [{short_number(row.low)}, {short_number(row.high)}]"
    dots = "".join("M{:.1f},{:.1f}h0".format(*place(value)) for value in row.values.tolist())
    parts.append(f'<path class="points" d="{dots}"/>')
    x, y = place(row.middle)
    parts.append(f'<circle class="middle" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
    return f'<g class="interval s{row.colour % 8}" data-tip="{escape(tip)}">{"".join(parts)}</g>'


def _mark(x: float, frame: Frame, kind: str, text: str) -> str:
    x += frame.left
    return (
        f'<g class="mark {escape(kind)}" data-tip="{escape(text)}"><path class="rule" d="M{x:.1f},{frame.top:g}'
        f'v{frame.height:g}"/><path class="sign" transform="translate({x:.1f} {frame.top - 5:g})"'
        f' d="{SHAPES.get(kind, SHAPES["best"])}"/></g>'
    )


def legend_marks(chart: Chart) -> Sequence[tuple[str, str, str]]:
    """Returns kind, shape and name of the kinds of marks that a chart has."""
    names = {"death": "ranks died", "replaced": "ranks replaced", "resume": "resumed", "best": "best evaluation"}
    kinds = dict.fromkeys(mark.kind for mark in chart.marks)
    return [(kind, SHAPES.get(kind, SHAPES["best"]), names.get(kind, kind)) for kind in kinds]
