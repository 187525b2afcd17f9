"""Memory that nobody else can open, and counters that wake who waits for them."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from dppo.comm import collectives, sharing
from dppo.comm.sharing import Counters, share

LONG_S = 20.0


class Alone:
    """A communicator of one rank that, like a slow one, is looked at while the others have yet to open the memory."""

    rank = 0

    def __init__(self) -> None:
        self.seen: list[os.stat_result] = []

    def gather_all(self, mine: Any) -> list[Any]:
        if isinstance(mine, str):
            self.seen.append(os.stat(mine))
        return [mine]


def counters() -> Counters:
    memory = share(MPI.COMM_SELF, [0], 4096)
    assert memory is not None
    return Counters(memory)


def left_in_shared_memory() -> set[Path]:
    return {path for path in Path("/dev/shm").glob("dppo-*") if path.stat().st_uid == os.geteuid()}


@pytest.fixture
def gathers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The communicators of this file say themselves what all have told."""
    for module in (sharing, collectives):
        monkeypatch.setattr(module, "gather_all", lambda comm, mine: comm.gather_all(mine))


@pytest.mark.usefixtures("gathers")
def test_the_memory_is_zeros_that_its_owner_alone_could_open_and_has_no_name_any_more() -> None:
    before, comm = left_in_shared_memory(), Alone()
    memory = share(comm, [0], 5000)  # type: ignore[arg-type]
    assert memory is not None and memory.shape == (5000,) and not memory.any()
    (seen,) = comm.seen
    assert (seen.st_mode & 0o777, seen.st_uid) == (0o600, os.geteuid())
    assert left_in_shared_memory() <= before


@pytest.mark.usefixtures("gathers")
def test_no_name_is_left_where_somebody_dies_meanwhile() -> None:
    class Dies(Alone):
        def gather_all(self, mine: Any) -> list[Any]:
            raise MPI.Exception(MPI.ERR_PROC_FAILED)

    before = left_in_shared_memory()
    with pytest.raises(MPI.Exception):
        share(Dies(), [0], 5000)  # type: ignore[arg-type]
    assert left_in_shared_memory() <= before


def test_a_machine_of_which_the_kernels_call_is_not_known_shares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "_FUTEX", 0)
    assert share(MPI.COMM_SELF, [0], 5000) is None


def test_another_process_counts_up_and_is_heard() -> None:
    both = counters()
    if (child := os.fork()) == 0:
        for _ in range(1000):
            both.count_up(3)
        both.count_up(0)
        os._exit(0)
    deadline = time.monotonic() + LONG_S
    while not both.comes_to(0, 1, 1.0):
        assert time.monotonic() < deadline
    os.waitpid(child, 0)
    assert (both[0], both[3]) == (1, 1000)


def test_those_who_count_at_once_lose_nothing() -> None:
    both = counters()
    threads = [threading.Thread(target=lambda: [both.count_up(1) for _ in range(2000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert both[1] == 8000


@pytest.mark.parametrize("at", [0, 2**31 - 1, 2**32 - 1], ids=str)
def test_a_counter_goes_round(at: int) -> None:
    memory = np.zeros(12, np.uint8)
    both = Counters(memory)
    memory.view(np.uint32)[2] = at
    assert both.comes_to(2, at, 0.0) and both.comes_to(2, at - 1, 0.0) and not both.comes_to(2, at + 1, 0.001)
    both.count_up(2)
    assert both.comes_to(2, at + 1, 0.0) and not both.comes_to(2, at + 2, 0.001)


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 0.02, 0.1])
def test_a_sleep_is_as_long_as_was_asked_for(seconds: float) -> None:
    both, began = counters(), time.monotonic()
    both.sleep(0, 0, seconds)
    assert seconds <= time.monotonic() - began < LONG_S


def test_who_sleeps_for_another_number_does_not_sleep_and_a_wake_up_ends_a_sleep() -> None:
    both, began = counters(), time.monotonic()
    both.sleep(0, 1, LONG_S)
    threading.Timer(0.1, both.wake, [0]).start()
    both.sleep(0, 0, LONG_S)
    assert time.monotonic() - began < LONG_S / 2


def test_a_signal_ends_a_sleep_and_is_handled() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(number))
    both, began = counters(), time.monotonic()
    timer = threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGUSR2])
    timer.start()
    while not heard and time.monotonic() - began < LONG_S:
        both.sleep(0, 0, LONG_S)
    signal.signal(signal.SIGUSR2, before)
    assert heard and time.monotonic() - began < LONG_S / 2


def test_sleepers_use_no_cpu() -> None:
    both, cpu = counters(), time.process_time()
    both.sleep(0, 0, 0.5)
    assert time.process_time() - cpu < 0.05


def test_numbers_are_those_of_the_memory() -> None:
    memory = np.zeros(8, np.uint8)
    Counters(memory).count_up(1)
    assert memory.view(np.uint32).tolist() == [0, 1]
