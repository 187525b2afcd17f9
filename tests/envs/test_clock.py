"""Seconds in step and reset: of which environment, and how they become metrics."""

from __future__ import annotations

from typing import Any

import pytest

from dppo.envs import clock as module
from dppo.envs.clock import EnvClock, Seconds, seconds_of


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which the test sets."""
    time = [100.0]
    monkeypatch.setattr(module, "perf_counter", lambda: time[0])
    return time


def row(clock: EnvClock, now: list[float], *steps: float, reset: tuple[int, float] | None = None) -> None:
    """A row whose environments take these seconds; `reset`: one of them is then reset, for so long."""
    clock.mark, began, reset_s = now[0], now[0], clock.reset_s
    for index, seconds in enumerate(steps):
        now[0] += seconds
        if clock.times_each:
            clock.end_step(index)
        if reset is not None and reset[0] == index:
            now[0] += reset[1]
            clock.end_reset(reset[1])
    clock.end_row(began, reset_s)


def test_slow_environments_are_timed_one_by_one(now: list[float]) -> None:
    clock = EnvClock(first_env=6, num_envs=2)
    row(clock, now, 1.0, 2.0)
    assert clock.times_each, "from the second row on"
    row(clock, now, 1.0, 3.0, reset=(0, 10.0))
    row(clock, now, 1.0, 5.0)
    taken = clock.take()
    assert taken == Seconds(6, pytest.approx(13.0), pytest.approx(4.0), 7, 1, 10.0, 10.0)  # type: ignore[arg-type]
    assert clock.take() == Seconds(0, 0.0, 0.0, -1, 0, 0.0, 0.0)


def test_between_two_rows_environments_wait(now: list[float]) -> None:
    clock = EnvClock(0, 2)
    row(clock, now, 1.0, 1.0)
    now[0] += 3.0
    row(clock, now, 1.0, 1.0, reset=(0, 2.0))
    now[0] += 5.0
    first = clock.take()
    assert first.waiting_s == pytest.approx(3.0), "nothing waits before the first row"
    row(clock, now, 2.0, 2.0)
    second = clock.take()
    assert second.waiting_s == pytest.approx(5.0)
    assert seconds_of([first], ranks=2)["env_waiting_per_s"] == pytest.approx(3.0 / 9.0)
    assert seconds_of([first, None, second], ranks=4)["env_waiting_per_s"] == pytest.approx(8.0 / 18.0)
    assert seconds_of([first])["env_waiting_per_s"] is None, "an environment of one rank has no members"


def test_fast_ones_are_timed_together(now: list[float]) -> None:
    clock = EnvClock(0, 2)
    for _ in range(3):
        row(clock, now, 1e-5, 3e-5)
        assert not clock.times_each
    taken = clock.take()
    assert taken.slowest_env == -1 and taken.slowest_s == pytest.approx(2e-5)


def test_metrics_are_of_all_workers() -> None:
    workers: list[Any] = [
        Seconds(10, 20.0, 3.0, 1, 1, 5.0, 5.0), None, Seconds(30, 40.0, 8.0, 5, 3, 7.0, 4.0),
    ]  # fmt: skip
    assert seconds_of(workers) == {
        "env_step_mean_s": 1.5, "env_step_max_s": 8.0, "env_slowest_by_s": 5, "env_reset_mean_s": 3.0,
        "env_reset_max_s": 5.0, "env_waiting_per_s": None,
    }  # fmt: skip


def test_without_steps_or_clocks_there_are_none() -> None:
    assert set(seconds_of([None, Seconds(0, 0.0, 0.0, -1, 0, 0.0, 0.0)]).values()) == {None}
