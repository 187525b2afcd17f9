"""The picture of a report: learning curves of several settings, with their bands."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dppo.files import plain, replace_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Colours that people with any kind of colour vision can tell apart; Okabe and Ito 2008."""


def draw(path: Path, curves: Sequence[tuple[str, np.ndarray]]) -> None:
    """Draws the SVG file `path`, which appears in one step.

    Args:
      curves: at most as many as there are colours; each has a label and [4, K]: steps, line, lower and upper end of the
        band.

    Raises:
      ImportError: Matplotlib is missing.
    """
    from matplotlib.figure import Figure

    if len(curves) > len(COLOURS):
        raise ValueError(f"expected at most {len(COLOURS)} curves, got {len(curves)}")
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for number, (label, (steps, line, low, high)) in enumerate(curves):
        style = "-" if number < len(COLOURS) // 2 else "--"
        # Matplotlib takes $ for a formula, and hides what begins with an underscore
        label = f" {plain(label)}".replace("$", r"\$")
        axes.plot(steps, line, style, lw=1.5, color=COLOURS[number], label=label)
        axes.fill_between(steps, low, high, color=COLOURS[number], alpha=0.15, lw=0)
    axes.set_xlabel("environment steps of all ranks")
    axes.set_ylabel("mean return of the last 100 episodes")
    axes.legend(fontsize="small", title="IQM over runs, 95% bootstrap", title_fontsize="small")
    write_svg(path, figure)


def write_svg(path: Path, figure: Figure) -> None:
    """Writes `path` in one step; the same picture always has the same bytes."""
    import matplotlib

    image = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "dppo"}):
        figure.savefig(image, format="svg", metadata={"Date": None})
    replace_atomically(path, image.getvalue())
