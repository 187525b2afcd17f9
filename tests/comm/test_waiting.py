"""Waiting costs next to no CPU, and a short wait is answered at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import pytest
from mpi4py import MPI

from dppo.comm.waiting import Backoff
from dppo.comm.wakeup import Doorbell, make_doorbell


@pytest.fixture
def lonely() -> Doorbell:
    """A bell that nobody rings."""
    return make_doorbell(MPI.COMM_SELF)


@pytest.mark.parametrize("sleeps_on", ["time", "the bell", "the bell of those who all ring"])
def test_a_long_wait_costs_next_to_no_cpu(lonely: Doorbell, sleeps_on: str) -> None:
    """Less than 2% of a core is what rank 0 may use while its workers collect."""
    backoff, polls = Backoff(None if sleeps_on == "time" else lonely, all_ring="all" in sleeps_on), 0
    began, cpu = time.monotonic(), time.process_time()
    while (now := time.monotonic()) - began < 1.0:
        backoff.pause()
        polls += now - began > Backoff.YIELD_S
    assert polls < 2 * 200  # two for each sleep
    assert time.process_time() - cpu < 0.02


class Clock:
    """Time that passes only while one yields, sleeps or listens to the bell."""

    YIELD_S = 2.0**-16

    def __init__(self) -> None:
        self.now = 100.0
        self.yields = 0
        self.slept: list[float] = []
        self.listened: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sched_yield(self) -> None:
        self.yields += 1
        self.now += self.YIELD_S

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def listen(self, seconds: float) -> None:
        self.listened.append(seconds)
        self.now += seconds


class Bell:
    """A doorbell that nobody rings, in the clock's time."""

    def __init__(self, clock: Clock, *, crowded: bool = False) -> None:
        self.crowded, self.wait = crowded, clock.listen


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    monkeypatch.setattr(os, "sched_yield", clock.sched_yield)
    return clock


def make(clock: Clock, sleeps_on: str, **options: Any) -> tuple[Backoff, list[float]]:
    """A backoff, and where its pauses will be written down."""
    if sleeps_on == "time":
        return Backoff(None, **options), clock.slept
    bell: Any = Bell(clock, crowded=sleeps_on == "the bell of a crowded node")
    return Backoff(bell, **options), clock.listened


def wait(clock: Clock, backoff: Backoff, seconds: float) -> None:
    end = clock.now + seconds
    while clock.now < end:
        backoff.pause()


everywhere = pytest.mark.parametrize("sleeps_on", ["time", "the bell", "the bell of a crowded node"])


@everywhere
def test_there_are_two_polls_before_the_first_pause_and_between_any_two(clock: Clock, sleeps_on: str) -> None:
    """What Open MPI's first Iprobe has moved the second one sees."""
    backoff, _ = make(clock, sleeps_on)
    for _ in range(100):
        began = clock.now
        backoff.pause()
        assert clock.now == began
        backoff.pause()
        assert clock.now > began


@pytest.mark.parametrize("pauses", [1, 2])
def test_after_a_reset_there_are_two_polls_again(clock: Clock, pauses: int) -> None:
    backoff, _ = make(clock, "time")
    for _ in range(pauses):
        backoff.pause()
    backoff.reset()
    began = clock.now
    backoff.pause()
    assert clock.now == began
    backoff.pause()
    assert clock.now > began


@pytest.mark.parametrize("sleeps_on", ["time", "the bell"])
def test_the_first_polls_only_yield(clock: Clock, sleeps_on: str) -> None:
    """A tenth of a millisecond long: seven yields."""
    backoff, slept = make(clock, sleeps_on)
    wait(clock, backoff, Backoff.YIELD_S)
    assert slept == []
    assert clock.yields == 7
    wait(clock, backoff, Clock.YIELD_S)
    assert slept == [pytest.approx(5e-5)]
    assert clock.yields == 7


def test_where_ranks_outnumber_cores_nobody_yields(clock: Clock) -> None:
    """The core would come back only after all others have had it."""
    backoff, listened = make(clock, "the bell of a crowded node")
    wait(clock, backoff, 1.0)
    assert clock.yields == 0
    assert listened[0] == pytest.approx(5e-5)


@pytest.mark.parametrize("sleeps_on", ["the bell", "the bell of a crowded node"])
def test_where_all_ring_one_listens_long_from_the_first(clock: Clock, sleeps_on: str) -> None:
    """And never longer: MPI moves large messages only while it is called."""
    backoff, listened = make(clock, sleeps_on, all_ring=True, longest_s=0.002)
    wait(clock, backoff, 0.99)
    assert set(listened) == {Backoff.SAFETY_S}
    assert len(listened) == 50
    assert clock.slept == []


@everywhere
def test_an_answer_comes_at_most_a_fifth_later_than_it_could(clock: Clock, sleeps_on: str) -> None:
    """Until the longest pause is reached, no pause is longer than a fifth of the wait before it."""
    backoff, pauses = make(clock, sleeps_on, longest_s=0.01)
    wait(clock, backoff, 5.0)
    waited = clock.yields * Clock.YIELD_S
    for pause in pauses:
        assert pause <= max(5e-5, 0.2 * waited) + 1e-12
        waited += pause
    assert max(pauses) == 0.01


@everywhere
@pytest.mark.parametrize("longest_s", [0.002, 0.01])
def test_pauses_grow_to_the_longest_and_no_further(clock: Clock, sleeps_on: str, longest_s: float) -> None:
    backoff, pauses = make(clock, sleeps_on, longest_s=longest_s)
    wait(clock, backoff, 3.0)
    assert pauses == sorted(pauses)
    assert pauses[-1] == longest_s
    assert len(pauses) < 3.0 / longest_s + 100


@everywhere
def test_after_a_reset_the_next_wait_starts_afresh(clock: Clock, sleeps_on: str) -> None:
    backoff, pauses = make(clock, sleeps_on)
    wait(clock, backoff, 3.0)
    backoff.reset()
    pauses.clear()
    yields, clock.yields = clock.yields, 0
    wait(clock, backoff, 0.001)
    assert pauses[0] == pytest.approx(5e-5)
    assert clock.yields == yields


# -- longer turns --------------------


def scheduling(code: str) -> str:
    """What a fresh process prints: `ask_for_longer_turns` changes the thread that calls it for good."""
    program = f"import os\nfrom dppo.comm.waiting import ask_for_longer_turns\n{code}"
    return subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    ).stdout


def test_longer_turns_keep_the_users_niceness() -> None:
    code = "os.nice(3); print(ask_for_longer_turns(), os.nice(0), os.sched_getscheduler(0) == os.SCHED_OTHER)"
    assert scheduling(code) in ("True 3 True\n", "False 3 True\n")  # as the kernel and its sandbox allow


def test_a_scheduling_policy_of_the_users_stays() -> None:
    code = "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)); print(ask_for_longer_turns())"
    assert scheduling(f"{code}; print(os.sched_getscheduler(0) == os.SCHED_BATCH)") == "False\nTrue\n"
