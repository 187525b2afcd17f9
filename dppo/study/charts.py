"""Charts as data: what is shown over what. drawing.py draws them for a page, papers.py for a paper."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Line:
    """A line through points [I], ascending in x; NaN in y breaks it."""

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: int = 0
    is_dashed: bool = False


@dataclass(frozen=True)
class Band:
    """The area between two lines [I] over x."""

    name: str
    x: np.ndarray
    low: np.ndarray
    high: np.ndarray
    colour: int = 0


@dataclass(frozen=True)
class Points:
    """Points [I] without a line, at places of any order."""

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: int = 0


@dataclass(frozen=True)
class Stack:
    """Areas on top of each other: layers (name, [I] of at least 0) over x."""

    x: np.ndarray
    layers: Sequence[tuple[str, np.ndarray]]


@dataclass(frozen=True)
class Interval:
    """A value with its interval, and the values of single runs, at a place of the other axis; None: unknown."""

    name: str
    at: float
    middle: float
    low: float | None
    high: float | None
    values: np.ndarray
    colour: int = 0


@dataclass(frozen=True)
class Intervals:
    """Values with their intervals; `across`: values run from left to right, places from top to bottom."""

    rows: Sequence[Interval]
    across: bool = False


@dataclass(frozen=True)
class Bars:
    """Bars of height y [I] around x [I], which are 1 apart."""

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: int = 0


Item = Line | Band | Points | Stack | Intervals | Bars


@dataclass(frozen=True)
class Mark:
    """Something that happened at x: a death, a resume, the best checkpoint."""

    x: float
    kind: str
    """death, resume, replaced or best: how it is drawn."""
    text: str


Ticks = Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Chart:
    """A picture with one pair of axes."""

    title: str
    x_title: str
    y_title: str
    items: Sequence[Item]
    marks: Sequence[Mark] = ()
    note: str = ""
    is_wide: bool = False
    is_robust: bool = False
    """Whether the few most extreme values may lie beyond the axis."""
    is_log: bool = False
    """Whether the x axis is logarithmic."""
    x_ticks: Ticks | None = None
    y_ticks: Ticks | None = None
    """Places with names; None: round numbers."""
    y_range: tuple[float, float] | None = None
    height: int = 240
    kind: str = field(default="chart", init=False)

    @property
    def slug(self) -> str:
        """The title as part of a file's name."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")[:60] or "chart"

    def legend(self) -> list[tuple[str, int, str]]:
        """Returns the name, the colour and the form (line, dashed, point, area) of what is shown, each name once."""
        found: dict[str, tuple[int, str]] = {}
        for item in self.items:
            if isinstance(item, Stack):
                for number, (name, _) in enumerate(item.layers):
                    found.setdefault(name, (number, "area"))
            elif isinstance(item, Line):
                found.setdefault(item.name, (item.colour, "dashed" if item.is_dashed else "line"))
            elif isinstance(item, Points):
                found.setdefault(item.name, (item.colour, "point"))
            elif isinstance(item, Band):
                found.setdefault(item.name, (item.colour, "area"))
        return [(name, *form) for name, form in found.items()] if len(found) > 1 else []

    def extent(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Returns the ranges of x and y that show all, of y without the most extreme values where `is_robust`."""
        xs, ys = [np.array([mark.x for mark in self.marks])], []
        is_across = any(isinstance(item, Intervals) and item.across for item in self.items)
        has_floor = False
        for item in self.items:
            if isinstance(item, Line | Points):
                xs.append(item.x)
                ys.append(item.y)
            elif isinstance(item, Band):
                xs.append(item.x)
                ys += [item.low, item.high]
            elif isinstance(item, Stack):
                xs.append(item.x)
                ys.append(np.sum([layer for _, layer in item.layers], axis=0))
                has_floor = True
            elif isinstance(item, Bars):
                xs += [item.x - 0.5, item.x + 0.5]
                ys.append(item.y)
                has_floor = True
            else:
                places = np.array([end for row in item.rows for end in (row.at - 0.5, row.at + 0.5)])
                told = [v for row in item.rows for v in (row.middle, row.low, row.high, *row.values.tolist())]
                values = np.array([v for v in told if v is not None])
                if self.is_log:
                    places = np.array([row.at for row in item.rows])
                xs.append(values if item.across else places)
                ys.append(places if item.across else values)
        x = _range(np.concatenate(xs), is_padded=is_across, is_log=self.is_log)
        flat = np.concatenate(ys) if ys else np.empty(0)
        if self.y_range is not None:
            return x, self.y_range
        if self.is_robust and len(finite := flat[np.isfinite(flat)]) > 50:
            flat = np.quantile(finite, [0.005, 0.995])
        low, high = _range(flat, is_padded=self.y_ticks is None)
        return x, (0.0 if has_floor else low, high)


def _range(values: np.ndarray, *, is_padded: bool, is_log: bool = False) -> tuple[float, float]:
    values = values[np.isfinite(values) & ((values > 0) | (not is_log))]
    if not len(values):
        return (1.0, 10.0) if is_log else (0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    if is_log:
        pad = (high / low) ** 0.08 if high > low else 2.0
        return low / pad, high * pad
    if low == high:
        pad = abs(low) * 0.1 or 1.0
        return low - pad, high + pad
    pad = 0.05 * (high - low) if is_padded else 0.0
    return low - pad, high + pad


def round_ticks(low: float, high: float, most: int = 6) -> list[tuple[float, str]]:
    """Returns places of round numbers (1, 2 or 5 times a power of ten) within a range, with their texts."""
    step = (high - low) / max(1, most)
    if not (math.isfinite(step) and step > 0):
        return []
    power = 10.0 ** math.floor(math.log10(step))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= step * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(k * step, short_number(k * step)) for k in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Returns the powers of ten within a range; where there are fewer than two, also their doubles and fivefolds."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        places = [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]
        if len(places) >= 2:
            break
    every = -(-len(places) // 8) or 1
    return [(place, short_number(place)) for place in places[::every]]


def short_number(value: float) -> str:
    """Returns a number with few digits: 12k, 1.5M, 0.003, 2e-05."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if factor <= size < 1e12 and (factor > 1e3 or size >= 1e4):
            return f"{value / factor:.4g}{unit}"
    return f"{value:.4g}" if size < 1e12 else f"{value:.3g}"


def thinned(x: np.ndarray, y: np.ndarray, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Thins a line [I], ascending in x, to at most two points a pixel: the least and the greatest value there, so that
    no peak is lost. A gap (NaN) stays where a pixel has nothing else.
    """
    if not np.isfinite(x).all():
        x, y = x[np.isfinite(x)], y[np.isfinite(x)]
    if len(x) <= 2 * pixels or x[-1] <= x[0]:
        return x, y
    column = np.minimum(((x - x[0]) / (x[-1] - x[0]) * pixels).astype(int), pixels - 1)
    starts = np.flatnonzero(np.diff(column, prepend=-1))
    part = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(x)))
    kept = []
    for extreme in (np.fmin, np.fmax):
        at = np.flatnonzero(y == extreme.reduceat(y, starts)[part])
        kept.append(at[np.flatnonzero(np.diff(part[at], prepend=-1))])
    gaps = starts[np.isnan(np.fmin.reduceat(y, starts))]
    places = np.unique(np.concatenate((*kept, gaps)))
    return x[places], y[places]


def averaged(x: np.ndarray, columns: Sequence[np.ndarray], bins: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Averages columns [I] over at most `bins` neighbourhoods of equal numbers of points."""
    if len(x) <= bins:
        return x, list(columns)
    starts = np.linspace(0, len(x), bins, endpoint=False).astype(int)
    counts = np.diff(starts, append=len(x))
    return (
        np.add.reduceat(x.astype(float), starts) / counts,
        [np.add.reduceat(column.astype(float), starts) / counts for column in columns],
    )
