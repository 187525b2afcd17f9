"""Requests to save and leave: signals, time limits, and what is left of the grace period."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from dppo.cluster.signals import Preemption

REQUESTS = [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT]


@pytest.fixture
def handlers() -> Iterator[None]:
    """Puts this process's own signal handlers back."""
    kept = {number: signal.getsignal(number) for number in REQUESTS}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", REQUESTS)
def test_a_signal_is_a_request(number: signal.Signals) -> None:
    preemption = Preemption(grace_s=30.0, time_limit_s=None)
    preemption.install()
    before = preemption.requested
    os.kill(os.getpid(), number)
    assert (before, preemption.requested) == (False, True)
    assert preemption.reason == number.name


@pytest.mark.usefixtures("handlers")
def test_uninstalled_signals_mean_again_what_they_meant() -> None:
    """`dppo.train` in somebody's program gives Ctrl-C back."""
    before = [signal.getsignal(number) for number in REQUESTS]
    preemption = Preemption(30.0, None)
    preemption.install()
    assert [signal.getsignal(number) for number in REQUESTS] != before
    preemption.uninstall()
    preemption.uninstall()
    assert [signal.getsignal(number) for number in REQUESTS] == before


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before = [signal.getsignal(number) for number in REQUESTS]
    with ThreadPoolExecutor(1) as pool:
        pool.submit(Preemption(30.0, None).install).result()
    assert [signal.getsignal(number) for number in REQUESTS] == before


@pytest.mark.usefixtures("handlers")
def test_the_several_signals_of_one_shutdown_are_one_request() -> None:
    """mpirun and Slurm send CONT and TERM, and TERM again."""
    preemption = Preemption(30.0, None)
    preemption.install()
    os.kill(os.getpid(), signal.SIGUSR1)
    at = preemption.requested_at
    os.kill(os.getpid(), signal.SIGTERM)
    assert (preemption.requested_at, preemption.reason) == (at, "SIGUSR1")


def test_a_later_second_signal_ends_the_process_at_once() -> None:
    code = """if True:
        import os, signal, time
        from dppo.cluster import signals
        signals.SECOND_SIGNAL_S = 0.05
        signals.Preemption(30.0, None).install()
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGUSR1)
        print("still here")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (128 + signal.SIGUSR1, "")


def test_the_time_limit_leaves_the_grace_period() -> None:
    assert not Preemption(grace_s=30.0, time_limit_s=60.0).requested
    late = Preemption(grace_s=30.0, time_limit_s=29.0)
    assert late.requested
    assert late.reason == "--time-limit-s 29"


def test_without_a_limit_nothing_is_asked() -> None:
    assert not Preemption(grace_s=1e9, time_limit_s=None).requested


def test_the_end_of_the_job_is_a_time_limit() -> None:
    end = time.time() + 100
    assert not Preemption(grace_s=10.0, time_limit_s=None, ends_at=end).requested
    late = Preemption(grace_s=200.0, time_limit_s=None, ends_at=end)
    assert late.requested
    assert late.reason == "the end of the job's allocation"
    assert Preemption(grace_s=200.0, time_limit_s=1000.0, ends_at=end).requested  # the earlier one counts
    assert Preemption(grace_s=200.0, time_limit_s=100.0, ends_at=end + 1000).requested


def test_past_counts_from_the_request() -> None:
    preemption = Preemption(grace_s=0.1, time_limit_s=None)
    assert not preemption.past(0.0)
    preemption.request("a signal to a worker")
    assert preemption.past(0.0)
    assert not preemption.past(10.0)
    time.sleep(0.11)
    assert preemption.past(1.0)


def test_the_first_reason_counts() -> None:
    preemption = Preemption(30.0, None)
    preemption.request("one")
    preemption.request("two")
    assert preemption.reason == "one"


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    "other", [signal.SIG_IGN, signal.SIG_DFL, lambda number, frame: None], ids=["ignore", "default", "own"]
)
def test_handlers_of_others_are_replaced_again(other: Any) -> None:
    """An environment may install its own in its first episode."""
    preemption = Preemption(30.0, None)
    preemption.install()
    for number in REQUESTS:
        signal.signal(number, other)
    assert not preemption.asked()
    os.kill(os.getpid(), signal.SIGTERM)
    assert preemption.asked() and preemption.reason == "SIGTERM"
    preemption.uninstall()


def test_nothing_is_installed_by_one_that_does_not_catch_signals() -> None:
    before = [signal.getsignal(number) for number in REQUESTS]
    assert not Preemption(30.0, None).asked()
    assert [signal.getsignal(number) for number in REQUESTS] == before
