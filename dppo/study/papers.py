"""Writes charts as PNG and PDF files for papers, with Matplotlib."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dppo.errors import UsageError, missing_package
from dppo.files import plain, replace_atomically
from dppo.study.charts import Band, Bars, Chart, Intervals, Line, Points, Stack
from dppo.study.curves import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKS = {"death": "#b42318", "replaced": "#1a7f37", "best": "#1a7f37", "resume": "#b47d00"}
FORMS = {"png": {"dpi": 200}, "pdf": {"metadata": {"CreationDate": None}}}


def require_matplotlib() -> None:
    """Raises UsageError where Matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError(f"--figures: {missing_package('Matplotlib', error)}") from error


def write(charts: Iterable[Chart], folder: Path) -> list[Path]:
    """Writes each chart as NUMBER-TITLE.png and .pdf; the same chart always has the same bytes. Returns the files.

    Raises:
      UsageError: Matplotlib is missing.
      OSError: the files cannot be written.
    """
    require_matplotlib()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, chart in enumerate(charts, 1):
        drawn = figure(chart)
        for form, options in FORMS.items():
            image = io.BytesIO()
            drawn.savefig(image, format=form, **options)  # type: ignore[arg-type]
            written.append(folder / f"{number:02}-{chart.slug}.{form}")
            replace_atomically(written[-1], image.getvalue())
    return written


def figure(chart: Chart) -> Figure:
    """Draws a chart with Matplotlib."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(8 if chart.is_wide else 5, chart.height / 75), layout="constrained")
    axes = drawn.subplots()
    for item in chart.items:
        _draw(axes, item)
    for mark in chart.marks:
        axes.axvline(mark.x, linestyle=":", linewidth=1, color=MARKS.get(mark.kind, "#656d76"))
    if chart.is_log:
        axes.set_xscale("log")
    x, y = chart.extent()
    axes.set_xlim(*x)
    axes.set_ylim(*y)
    for ticks, put in ((chart.x_ticks, axes.set_xticks), (chart.y_ticks, axes.set_yticks)):
        if ticks is not None:
            put([place for place, _ in ticks], [_label(text) for _, text in ticks])
            axes.minorticks_off()
    axes.set_xlabel(_label(chart.x_title))
    axes.set_ylabel(_label(chart.y_title))
    axes.set_title(_label(chart.title), fontsize="medium")
    axes.grid(color="#eaeef2")
    axes.set_axisbelow(True)
    names = {name for name, _, _ in chart.legend()}
    handles: dict[str, Any] = {}
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
        handles.setdefault(label, handle)
    if names and len(handles) > 1:
        axes.legend(handles.values(), handles.keys(), fontsize="small")
    return drawn


def _draw(axes: Any, item: object) -> None:
    if isinstance(item, Line):
        style = "--" if item.is_dashed else "-"
        axes.plot(item.x, item.y, style, lw=1.3, color=_colour(item.colour), label=_label(item.name))
    elif isinstance(item, Band):
        axes.fill_between(item.x, item.low, item.high, color=_colour(item.colour), alpha=0.15, lw=0)
    elif isinstance(item, Points):
        # rasterised: a PDF of a hundred thousand points takes a printer minutes
        axes.plot(
            item.x, item.y, ".", ms=2.5, mew=0, alpha=0.4, color=_colour(item.colour), label=_label(item.name),
            rasterized=True,
        )  # fmt: skip
    elif isinstance(item, Stack):
        axes.stackplot(
            item.x, *(np.nan_to_num(layer) for _, layer in item.layers), labels=[_label(n) for n, _ in item.layers],
            colors=[_colour(k) for k in range(len(item.layers))], alpha=0.85,
        )  # fmt: skip
    elif isinstance(item, Bars):
        axes.bar(item.x, item.y, width=0.84, color=_colour(item.colour))
    elif isinstance(item, Intervals):
        for row in item.rows:
            along = [row.middle, *row.values.tolist()]
            places = [row.at] * len(along)
            colour = _colour(row.colour)
            xs, ys = (along, places) if item.across else (places, along)
            axes.plot(xs[1:], ys[1:], ".", color=colour, alpha=0.5)
            axes.plot(xs[:1], ys[:1], "o", color=colour)
            if row.low is not None and row.high is not None:
                ends, at = [row.low, row.high], [row.at, row.at]
                axes.plot(*((ends, at) if item.across else (at, ends)), color=colour, lw=2)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _label(text: str) -> str:
    """Matplotlib takes $ for a formula, and hides what begins with an underscore."""
    return f" {plain(text)}".replace("$", r"\$") if text.startswith("_") else plain(text).replace("$", r"\$")
