"""The interquartile mean is exact for any number of runs; the bootstrap interval is that of its definition."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

from dppo.study.statistics import bootstrap_interval, interquartile_mean


def slow_iqm(values: list[int]) -> Fraction:
    """Every run four times: then 4 divides their number, and the middle half is plain to see."""
    repeated = sorted(value for value in values for _ in range(4))
    quarter = len(repeated) // 4
    middle = repeated[quarter:-quarter]
    return Fraction(sum(middle), len(middle))


# -- interquartile mean --------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 5.0], 3.0),
        ([6.0, 0.0, 3.0], 3.0),  # 1/6 · 0 + 2/3 · 3 + 1/6 · 6
        ([0.0, 0.0, 6.0], 1.0),  # 2/3 · 0 + 1/6 · 6
        ([100.0, 1.0, 2.0, -50.0], 1.5),  # the middle two
        ([0.0, 10.0, 25.0, 30.0, 1000.0], 22.0),  # (3/4 · 10 + 25 + 3/4 · 30) / (5/2)
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 800.0], 4.5),
    ],
)
def test_worked_by_hand(values: list[float], expected: float) -> None:
    assert interquartile_mean(np.array(values)) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("num_runs", range(1, 26))
def test_any_number_of_runs_equals_the_slow_form(num_runs: int) -> None:
    values = np.random.default_rng(num_runs).integers(-100, 100, num_runs)
    assert interquartile_mean(values) == pytest.approx(float(slow_iqm(values.tolist())), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("num_runs", range(1, 26))
def test_the_weights_are_not_rounded(num_runs: int) -> None:
    assert interquartile_mean(np.full(num_runs, 7.0)) == 7.0


def test_over_the_last_axis_and_in_any_order() -> None:
    values = np.random.default_rng(0).normal(size=(2, 3, 7))
    assert interquartile_mean(values).shape == (2, 3)
    assert interquartile_mean(values)[1, 2] == pytest.approx(interquartile_mean(values[1, 2]), rel=1e-14)
    assert interquartile_mean(values[0, 0, ::-1]) == interquartile_mean(values[0, 0])


def test_one_odd_run_moves_it_little() -> None:
    values = np.arange(8.0)
    spoilt = values.copy()
    spoilt[-1] = 1e9
    assert interquartile_mean(spoilt) == interquartile_mean(values)


@pytest.mark.parametrize("num_runs", [4, 8, 12])
def test_scipy_agrees_where_four_divides_the_runs(num_runs: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(num_runs).normal(size=num_runs)
    assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25), rel=1e-12)


@pytest.mark.parametrize("values", [np.float64(3), np.empty(0), np.empty((2, 0)), np.array([1.0, np.nan])])
def test_what_is_no_set_of_runs_is_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected"):
        interquartile_mean(values)


# -- bootstrap interval --------------------


def test_interval_of_one_run_and_of_equal_runs_is_the_value() -> None:
    for values in (np.array([3.0]), np.full(5, 3.0)):
        assert bootstrap_interval(values, interquartile_mean, np.random.default_rng(0)) == (3.0, 3.0)


def test_interval_comes_near_that_of_all_resamples() -> None:
    """R = 4: there are 4^4 resamples, each as likely as the others."""
    values = np.array([0.0, 1.0, 5.0, 20.0])
    every = interquartile_mean(np.array(list(itertools.product(values, repeat=4))))
    exact = np.quantile(every, (0.1, 0.9))
    drawn = bootstrap_interval(values, interquartile_mean, np.random.default_rng(1), resamples=50_000, level=0.8)
    np.testing.assert_allclose(drawn, exact, atol=0.3)


def test_interval_of_the_mean_is_that_of_the_normal_law() -> None:
    """Many runs: mean ± 1.96 s / sqrt(R)."""
    values = np.random.default_rng(2).normal(10.0, 2.0, 400)
    low, high = bootstrap_interval(values, lambda x: x.mean(-1), np.random.default_rng(3))
    half = 1.96 * values.std() / 20
    np.testing.assert_allclose((low, high), (values.mean() - half, values.mean() + half), atol=0.03)


def test_the_same_generator_gives_the_same_interval() -> None:
    values = np.arange(6.0)
    one, two = (bootstrap_interval(values, interquartile_mean, np.random.default_rng(4)) for _ in range(2))
    assert one == two
    wide, narrow = (
        bootstrap_interval(values, interquartile_mean, np.random.default_rng(4), level=level) for level in (0.95, 0.5)
    )
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize(
    ("values", "resamples", "level"),
    [
        (np.empty(0), 10, 0.9),
        (np.zeros((2, 2)), 10, 0.9),
        (np.array([np.inf]), 10, 0.9),
        (np.zeros(2), 0, 0.9),
        (np.zeros(2), 10, 1.0),
    ],
)
def test_what_cannot_be_resampled_is_refused(values: np.ndarray, resamples: int, level: float) -> None:
    with pytest.raises(ValueError, match=r"expected|must"):
        bootstrap_interval(values, interquartile_mean, np.random.default_rng(0), resamples, level)


def test_a_statistic_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="of shape"):
        bootstrap_interval(np.zeros(3), lambda x: x.mean(0), np.random.default_rng(0))
