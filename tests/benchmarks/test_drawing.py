"""benchmarks/drawing.py: where points come to lie, by hand."""

from __future__ import annotations

import re

import pytest

from benchmarks.drawing import COLOURS, Series, speed_plot


def dots(svg: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.-]+)" cy="([\d.-]+)" r="3.2"', svg)]


def test_points_lie_on_logarithmic_axes() -> None:
    svg = speed_plot([Series("weak", {3: 30.0, 6: 60.0, 12: 60.0}, {12: 120.0})], {3: 1, 6: 2}, "nodes", "ideal")
    # two doublings over 440 points to the right, and over 300 up
    assert dots(svg) == [(70, 340), (290, 190), (510, 190)]
    assert 'points="70.0,340.0 510.0,40.0" fill="none" stroke="#656d76"' in svg
    assert '<circle cx="510.0" cy="40.0" r="6"' in svg
    assert ">30<" in svg and ">60<" in svg and ">weak<" in svg


def test_who_gets_slower_or_is_faster_than_ideal_stays_in_the_picture() -> None:
    # 1/4 to 4 times the first: four doublings
    svg = speed_plot([Series("slow", {1: 80.0, 2: 20.0}), Series("fast", {1: 80.0, 2: 320.0})], {}, "workers", "")
    assert dots(svg) == [(70, 190), (510, 340), (70, 190), (510, 40)]
    assert ">40<" in svg and ">20<" in svg


@pytest.mark.parametrize("rates", [{1: 100.0}, {5: 100.0}])
def test_one_number_of_workers_is_a_point(rates: dict[int, float]) -> None:
    assert dots(speed_plot([Series("weak", rates)], {}, "workers", "")) == [(70, 340)]


def test_no_series_is_left_out() -> None:
    series = [Series(f"s{k}", {1: 100.0, 2: 150.0}) for k in range(len(COLOURS) + 1)]
    assert len(dots(speed_plot(series[:-1], {}, "workers", ""))) == 2 * len(COLOURS)
    with pytest.raises(ValueError, match="4 series, but 3 colours"):
        speed_plot(series, {}, "workers", "")
