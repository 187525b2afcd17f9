"""Waiting costs next to no CPU, and a short wait is answered at once."""

from __future__ import annotations

import time

from dppo.exchange.waiting import Backoff


def wait(seconds: float, backoff: Backoff) -> tuple[int, float, float]:
    """Polls until `seconds` have passed. Returns polls, seconds overslept and CPU seconds."""
    began, cpu, polls = time.monotonic(), time.process_time(), 0
    while time.monotonic() - began < seconds:
        backoff.pause()
        polls += 1
    return polls, time.monotonic() - began - seconds, time.process_time() - cpu


def test_a_long_wait_costs_next_to_no_cpu() -> None:
    """Less than 2% of a core is what rank 0 may use while its workers collect."""
    polls, _, cpu = wait(1.0, Backoff())
    assert polls < 200
    assert cpu < 0.02


def test_the_first_polls_only_yield() -> None:
    backoff = Backoff()
    began = time.monotonic()
    for _ in range(Backoff.YIELDS):
        backoff.pause()
    assert time.monotonic() - began < 0.1  # ten sleeps of 10 ms would take longer


def test_pauses_grow_up_to_the_longest() -> None:
    fast, slow = wait(0.3, Backoff(longest_s=0.001))[0], wait(0.3, Backoff(longest_s=0.05))[0]
    assert fast > 100
    assert slow < 60


def test_after_a_reset_the_next_wait_starts_afresh() -> None:
    backoff = Backoff(longest_s=0.2)
    wait(0.3, backoff)
    began = time.monotonic()
    backoff.pause()
    late = time.monotonic() - began
    backoff.reset()
    began = time.monotonic()
    backoff.pause()
    assert time.monotonic() - began < late / 2
