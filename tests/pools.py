"""Pools of workers on one node, without ranks: each worker is a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dppo.comm.learner_groups import Pool
from dppo.comm.sharing import Counters

LONG_S = 20.0
"""What does not come back in so long never will."""


def counter_memory(count: int) -> np.ndarray:
    """Room for the counters of a group of `count` workers."""
    return np.zeros(4 * (count + 1), np.uint8)


def make_pools(
    count: int, num_bytes: int, workers: Sequence[int] | None = None, memory: np.ndarray | None = None
) -> list[Pool]:
    """A group of `count` workers on one node; the slots are full of what somebody has left there.

    Args:
      memory: of their counters.
    """
    slots = np.full((count, num_bytes), 0xA5, np.uint8)
    counters = Counters(counter_memory(count) if memory is None else memory)
    return [Pool(slots, counters, workers or range(count), place) for place in range(count)]


def together(*parts: Callable[[], Any]) -> list[Any]:
    """What they return, each in a thread of its own; who raises or does not come back fails the test."""
    outcomes: list[Any] = [TimeoutError("it does not come back")] * len(parts)

    def run(i: int) -> None:
        try:
            outcomes[i] = parts[i]()
        except Exception as error:
            outcomes[i] = error

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(parts))]
    deadline = time.monotonic() + LONG_S
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return outcomes


def assert_same(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    """To the bit, and of the same type and shape."""
    assert [(a.dtype, a.shape) for a in actual] == [(e.dtype, e.shape) for e in expected]
    assert [a.tobytes() for a in actual] == [e.tobytes() for e in expected]
