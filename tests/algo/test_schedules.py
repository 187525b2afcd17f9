"""Schedules, worked by hand, and the learning rate that follows the KL."""

from __future__ import annotations

import pytest

from dppo.algo.schedules import LR_BOUNDS, adapted_lr, scheduled


@pytest.mark.parametrize(("done", "rate"), [(0.0, 0.4), (0.25, 0.3), (1.0, 0.0), (1.5, 0.0)])
def test_linear_leads_to_zero_and_no_further(done: float, rate: float) -> None:
    assert scheduled(0.4, done, "linear") == pytest.approx(rate)


@pytest.mark.parametrize(("done", "rate"), [(0.0, 0.4), (1 / 3, 0.3), (0.5, 0.2), (2 / 3, 0.1), (1.0, 0.0)])
def test_cosine_is_a_half_wave_to_zero(done: float, rate: float) -> None:
    assert scheduled(0.4, done, "cosine") == pytest.approx(rate)


@pytest.mark.parametrize("schedule", ["constant", "kl"])
def test_what_is_constant_stays_to_the_bit(schedule: str) -> None:
    assert scheduled(0.1, 0.7, schedule) == 0.1
    assert scheduled(0.1, 0.0, "linear") == scheduled(0.1, 0.0, "cosine") == 0.1


def test_the_rate_moves_only_outside_of_half_and_twice_the_target() -> None:
    assert adapted_lr(3e-4, 0.0201, 0.01) == pytest.approx(2e-4)
    assert adapted_lr(3e-4, 0.0049, 0.01) == pytest.approx(4.5e-4)
    for kl in (0.005, 0.01, 0.02):
        assert adapted_lr(3e-4, kl, 0.01) == 3e-4


def test_the_rate_stays_within_bounds_and_one_outside_moves_no_further_out() -> None:
    low, high = LR_BOUNDS
    for start, kl, end in [(1e-3, 1.0, low), (1e-3, 0.0, high), (0.5, 0.0, 0.5), (1e-9, 1.0, 1e-9)]:
        rate = start
        for _ in range(60):
            rate = adapted_lr(rate, kl, 0.01)
        assert rate == end
    assert adapted_lr(0.3, 1.0, 0.01) == pytest.approx(0.2), "but back it moves"
    assert adapted_lr(2e-9, 0.0, 0.01) == pytest.approx(3e-9)
