"""Waiting costs next to no CPU, and a short wait is answered at once."""

from __future__ import annotations

import time

import pytest

from dppo.exchange.waiting import Backoff


def test_a_long_wait_costs_next_to_no_cpu() -> None:
    """Less than 2% of a core is what rank 0 may use while its workers collect."""
    backoff, polls = Backoff(), 0
    began, cpu = time.monotonic(), time.process_time()
    while time.monotonic() - began < 1.0:
        backoff.pause()
        polls += 1
    assert polls < 200
    assert time.process_time() - cpu < 0.02


class Clock:
    """Time that passes in sleep alone."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    return clock


def wait(clock: Clock, backoff: Backoff, seconds: float) -> None:
    end = clock.now + seconds
    while clock.now < end:
        backoff.pause()


def test_the_first_polls_only_yield(clock: Clock) -> None:
    backoff = Backoff()
    for _ in range(Backoff.YIELDS):
        backoff.pause()
    assert clock.slept == []
    backoff.pause()
    assert clock.slept == [pytest.approx(5e-5)]


def test_an_answer_comes_at_most_a_fifth_later_than_it_could(clock: Clock) -> None:
    """Until the longest pause is reached, no pause is longer than a fifth of the wait before it."""
    wait(clock, Backoff(longest_s=0.01), 5.0)
    waited = 0.0
    for pause in clock.slept:
        assert pause <= max(5e-5, 0.2 * waited) + 1e-12
        waited += pause
    assert max(clock.slept) == 0.01


@pytest.mark.parametrize("longest_s", [0.002, 0.01])
def test_pauses_grow_to_the_longest_and_no_further(clock: Clock, longest_s: float) -> None:
    wait(clock, Backoff(longest_s), 3.0)
    assert clock.slept == sorted(clock.slept)
    assert clock.slept[-1] == longest_s
    assert len(clock.slept) < 3.0 / longest_s + 100


def test_after_a_reset_the_next_wait_starts_afresh(clock: Clock) -> None:
    backoff = Backoff()
    wait(clock, backoff, 3.0)
    backoff.reset()
    clock.slept.clear()
    wait(clock, backoff, 0.001)
    assert clock.slept[0] == pytest.approx(5e-5)
