"""Draws steps/s over workers, and learning curves beside what other controllers earn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from dppo.study.curves import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Series(NamedTuple):
    """Steps/s by the number of workers; predictions are shown as rings."""

    name: str
    measured: Mapping[int, float]
    predicted: Mapping[int, float] = {}


def speed_plot(series: Sequence[Series], ticks: Mapping[int, object], x_title: str, rings: str = "") -> Figure:
    """Draws steps/s over workers, both logarithmic, and a line of who is as fast as with the fewest workers.

    Args:
      series: at least one, each with a measurement; the ideal line begins at the fewest workers of all.
      ticks: labels of numbers of workers.
      x_title: below the labels.
      rings: what the legend says of predictions.

    Raises:
      ImportError: Matplotlib is missing.
      ValueError: there are more series than colours.
    """
    from matplotlib.figure import Figure

    if len(series) > len(COLOURS):
        raise ValueError(f"{len(series)} series, but {len(COLOURS)} colours: draw two pictures")
    fewest, most = min(w for s in series for w in s.measured), max(w for s in series for w in s.measured)
    alone = max(s.measured[fewest] for s in series if fewest in s.measured)
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:,.10g}")
    axes.set_xticks(list(ticks), [str(label) for label in ticks.values()])
    axes.set_xlabel(x_title)
    axes.set_ylabel("environment steps/s")
    axes.grid(color="#eaeef2")
    axes.plot([fewest, most], [alone, alone * most / fewest], "--", color="#656d76", label="ideal")
    for number, (one, colour) in enumerate(zip(series, COLOURS, strict=False)):
        axes.plot(*_points(one.measured), "o-", color=colour, markersize=5, label=one.name, gid=f"measured-{number}")
        if one.predicted:
            axes.plot(*_points(one.predicted), "o", color=colour, fillstyle="none", markersize=10)
    if any(one.predicted for one in series):
        axes.plot([], [], "o", color="#656d76", fillstyle="none", markersize=10, label=rings)
    axes.legend()
    return figure


def learning_plot(curves: Mapping[str, Sequence[tuple[float, float]]], levels: Mapping[str, float]) -> Figure:
    """Draws learning curves, and the return of each other controller as a line across.

    Args:
      curves: (environment steps, mean return of the last 100 episodes) of each run.
      levels: the mean return of each other controller.

    Raises:
      ImportError: Matplotlib is missing.
      ValueError: there are more curves than colours.
    """
    from matplotlib.figure import Figure

    if len(curves) > len(COLOURS):
        raise ValueError(f"{len(curves)} curves, but {len(COLOURS)} colours: draw two pictures")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (name, points), colour in zip(curves.items(), COLOURS, strict=False):
        axes.plot(*zip(*points, strict=True), color=colour, label=name)
    for (name, level), style in zip(levels.items(), ("--", ":", "-.") * len(levels), strict=False):
        axes.axhline(level, linestyle=style, color="#656d76", label=name)
    axes.xaxis.set_major_formatter("{x:,.10g}")
    axes.set_xlabel("environment steps")
    axes.set_ylabel("mean return of the last 100 episodes")
    axes.grid(color="#eaeef2")
    axes.legend()
    return figure


def _points(rates: Mapping[int, float]) -> tuple[list[int], list[float]]:
    return list(rates), list(rates.values())
