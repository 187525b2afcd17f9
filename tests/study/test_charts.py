"""Charts as data: thinning that loses no peak, round numbers, ranges."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dppo.study.charts import (
    Bars,
    Chart,
    Interval,
    Intervals,
    Line,
    Mark,
    Points,
    Stack,
    averaged,
    log_ticks,
    round_ticks,
    short_number,
    thinned,
)


def test_a_thinned_line_keeps_every_peak_and_every_gap() -> None:
    x, y = np.arange(10_000.0), np.zeros(10_000)
    y[3333], y[7777] = 9.0, -9.0
    y[5000:5300] = np.nan
    a, b = thinned(x, y, 100)
    assert len(a) <= 200 and (np.diff(a) > 0).all()
    assert b[a == 3333] == 9 and b[a == 7777] == -9
    assert np.isnan(b[(a >= 5000) & (a < 5300)]).all() and np.isnan(b).sum() >= 2
    assert not np.isnan(b[(a < 5000) | (a >= 5300)]).any()


def test_thinning_agrees_with_a_slow_oracle() -> None:
    rng = np.random.default_rng(0)
    x, y = np.sort(rng.random(5000)), rng.normal(size=5000)
    a, b = thinned(x, y, 50)
    column = np.minimum(((x - x[0]) / (x[-1] - x[0]) * 50).astype(int), 49)
    expected = {float(v) for k in range(50) for v in (y[column == k].min(), y[column == k].max())}
    assert set(b.tolist()) == expected and len(a) == len(expected)


def test_a_short_line_and_one_at_a_single_place_stay() -> None:
    x, y = np.arange(5.0), np.ones(5)
    assert thinned(x, y, 3) == (x, y)
    assert thinned(np.ones(50), np.arange(50.0), 3)[0].shape == (50,)


def test_averages_are_of_neighbourhoods_of_equal_size() -> None:
    x, (y,) = averaged(np.arange(8), [np.array([0, 2, 4, 6, 1, 1, 3, 3])], 4)
    assert x.tolist() == [0.5, 2.5, 4.5, 6.5] and y.tolist() == [1, 5, 1, 3]


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (0, 300_000, ["0", "50k", "100k", "150k", "200k", "250k", "300k"]),
        (-1.5, 1.5, ["-1.5", "-1", "-0.5", "0", "0.5", "1", "1.5"]), (7, 7, []), (0, math.inf, []),
    ],
)  # fmt: skip
def test_ticks_are_round(low: float, high: float, labels: list[str]) -> None:
    assert [label for _, label in round_ticks(low, high)] == labels


def test_ticks_of_a_logarithmic_axis() -> None:
    assert [label for _, label in log_ticks(9e-5, 2e-3)] == ["0.0001", "0.001"]
    assert [label for _, label in log_ticks(1.5, 6)] == ["2", "5"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234.0, "1234"), (12_000, "12k"), (1.5e6, "1.5M"), (2e9, "2G"), (2e-5, "2e-05"), (math.nan, "–"),
     (-45_600, "-45.6k"), (1e300, "1e+300")],
)  # fmt: skip
def test_short_numbers(value: float, text: str) -> None:
    assert short_number(value) == text


def chart(*items: object, **given: object) -> Chart:
    return Chart("t", "x", "y", items, **given)  # type: ignore[arg-type]


def test_ranges_show_everything() -> None:
    x = np.array([1.0, 3.0])
    (left, right), (low, high) = chart(Line("l", x, np.array([np.nan, 5.0])), marks=[Mark(9, "death", "")]).extent()
    assert (left, right) == (1, 9) and low < 5 < high
    assert chart(Stack(x, [("a", np.array([1.0, 2])), ("b", np.array([3.0, 0]))])).extent()[1] == (0, 4.1)
    assert chart(Bars("b", np.array([0.0, 1]), np.array([4.0, 2]))).extent()[0] == (-0.5, 1.5)
    assert chart().extent() == ((0, 1), (0, 1))
    row = Interval("r", 0, 5.0, None, 8.0, np.array([2.0]))
    (low, high), places = chart(Intervals([row], across=True), y_ticks=[(0, "r")]).extent()
    assert low < 2 and high > 8 and places == (-0.5, 0.5)


def test_a_robust_range_leaves_the_wildest_values_out() -> None:
    y = np.append(np.linspace(0, 1, 999), 1e9)
    assert chart(Points("p", np.arange(1000.0), y), is_robust=True).extent()[1][1] < 2


def test_a_slug_is_a_files_name() -> None:
    title = "../Ünits: a<b>/c" + "x" * 100
    assert Chart(title, "", "", []).slug.startswith("nits-a-b-c") and len(Chart(title, "", "", []).slug) <= 60
    assert Chart("…", "", "", []).slug == "chart"
