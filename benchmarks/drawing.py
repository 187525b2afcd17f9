"""Draws steps/s over workers as SVG, without a package for it.

Uses the standard library; scaling.py and nodes.py call it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

COLOURS = ("#0969da", "#1a7f37", "#bc4c00")
LEFT, RIGHT, TOP, BOTTOM = 70, 510, 40, 340


class Series(NamedTuple):
    """Steps/s by the number of workers; predictions are shown as rings."""

    name: str
    measured: Mapping[int, float]
    predicted: Mapping[int, float] = {}


def speed_plot(series: Sequence[Series], ticks: Mapping[int, object], x_title: str, caption: str) -> str:
    """SVG: steps/s over workers, both logarithmic, with the line of those who are as fast as with the fewest workers.

    Args:
      series: at least one, each with a measurement; the fewest workers of all are where the ideal line begins.
      ticks: labels of numbers of workers.
      x_title: below the labels.
      caption: what is said of the line and the rings.

    Raises:
      ValueError: for more series than there are colours.
    """
    if len(series) > len(COLOURS):
        raise ValueError(f"{len(series)} series, but {len(COLOURS)} colours: add to COLOURS, or draw two pictures")
    fewest, most = min(w for s in series for w in s.measured), max(w for s in series for w in s.measured)
    alone = max(s.measured[fewest] for s in series if fewest in s.measured)
    rates = [rate for s in series for rate in s.measured.values()]
    # from what the fewest make, or so many doublings below it as are needed, to the end of the ideal line at least
    doublings = max(0, math.ceil(math.log2(alone / min(rates)) - 0.1))
    lowest, highest = alone / 2**doublings, max(alone * most / fewest, *rates)
    width, height = math.log(most / fewest) or 1.0, math.log(highest / lowest) or 1.0

    def xy(workers: float, rate: float) -> tuple[float, float]:
        return (
            LEFT + (RIGHT - LEFT) * math.log(workers / fewest) / width,
            BOTTOM - (BOTTOM - TOP) * math.log(rate / lowest) / height,
        )

    def text(x: float, y: float, words: object, anchor: str = "middle") -> str:
        return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="#1f2328">{words}</text>'

    def line(ends: Sequence[tuple[float, float]], style: str) -> str:
        return f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in ends)}" fill="none" {style}/>'

    def level(rate: float) -> list[str]:
        _, y = xy(fewest, rate)
        return [line([(LEFT, y), (RIGHT, y)], 'stroke="#eaeef2"'), text(LEFT - 8, y + 4, f"{rate:,.0f}", "end")]

    out = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 560 400" width="560" height="400" role="img"',
        f' aria-label="Steps per second over {x_title}" font-family="Helvetica, Arial, sans-serif" font-size="12">',
        '<rect width="560" height="400" fill="#ffffff"/>',
    ]
    for workers, label in ticks.items():
        x, _ = xy(workers, alone)
        out += [line([(x, BOTTOM), (x, TOP - 10)], 'stroke="#eaeef2"'), text(x, BOTTOM + 18, label)]
        out += level(alone * workers / fewest)
    for halved in range(doublings):
        out += level(alone / 2 ** (halved + 1))
    out += [text(290, 384, x_title), text(20, 18, "environment steps/s", "start")]
    ideal = [xy(fewest, alone), xy(most, alone * most / fewest)]
    out.append(line(ideal, 'stroke="#656d76" stroke-dasharray="5 4"'))
    out.append(text(84, 52, caption, "start"))
    for number, (one, colour) in enumerate(zip(series, COLOURS, strict=False)):
        ends = [xy(w, rate) for w, rate in one.measured.items()]
        out.append(line(ends, f'stroke="{colour}" stroke-width="1.8"'))
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}"/>' for x, y in ends]
        for x, y in (xy(w, rate) for w, rate in one.predicted.items()):
            out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="none" stroke="{colour}" stroke-width="1.4"/>')
        out.append(f'<circle cx="90" cy="{68 + 18 * number}" r="4" fill="{colour}"/>')
        out.append(text(100, 72 + 18 * number, one.name, "start"))
    return "\n".join([*out, "</svg>\n"])
