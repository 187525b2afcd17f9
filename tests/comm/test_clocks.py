"""Clocks of hosts, of which each rank is a thread here, with a clock of its own."""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from dppo.comm import clocks
from dppo.comm.clocks import clock_offset

RANKS = 4
HOSTS = ["a", "b", "b", "a"]
AHEAD = {"a": 0.0, "b": 5000.0}


class Pipes:
    """The communicator of a thread: `rank` of RANKS."""

    size = RANKS
    boxes: defaultdict[tuple[int, int, int], queue.Queue[float]]

    def __init__(self, rank: int, boxes: Any) -> None:
        self.rank, self.boxes = rank, boxes

    def Send(self, values: np.ndarray, rank: int, tag: int) -> None:
        self.boxes[self.rank, rank, tag].put(float(values[0]))

    def Recv(self, values: np.ndarray, rank: int, tag: int) -> None:
        values[0] = self.boxes[rank, self.rank, tag].get(timeout=10)


def test_one_rank_has_the_time_of_its_host() -> None:
    offset = clock_offset(MPI.COMM_SELF, None)
    assert time.monotonic() + offset == pytest.approx(time.time(), abs=1.0)
    assert clock_offset(MPI.COMM_SELF, 7.0) == 7.0


@pytest.mark.parametrize("known", [[None] * RANKS, [100.0, None, None, None], [None, -4900.0, None, None]])
def test_all_ranks_find_the_same_time(known: list[float | None], monkeypatch: pytest.MonkeyPatch) -> None:
    boxes: Any = defaultdict(queue.Queue)
    for key in [(a, b, tag) for a in range(RANKS) for b in range(RANKS) for tag in (101, 102)]:
        boxes[key]
    told: list[dict[int, Any]] = [{}, {}]
    barrier, here, monotonic, found = threading.Barrier(RANKS), threading.local(), time.monotonic, {}

    def gather(comm: Pipes, value: Any) -> list[Any]:
        here.calls = getattr(here, "calls", -1) + 1
        told[here.calls][comm.rank] = value
        barrier.wait(10)
        return [told[here.calls][rank] for rank in range(RANKS)]

    def rank_is(rank: int) -> None:
        here.rank = rank
        found[rank] = clock_offset(Pipes(rank, boxes), known[rank])  # type: ignore[arg-type]

    monkeypatch.setattr(clocks, "gather_all", gather)
    monkeypatch.setattr(clocks.socket, "gethostname", lambda: HOSTS[here.rank])
    monkeypatch.setattr(clocks.time, "monotonic", lambda: monotonic() + AHEAD[HOSTS[getattr(here, "rank", 0)]])
    threads = [threading.Thread(target=rank_is, args=(rank,)) for rank in range(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found.keys() == set(range(RANKS))
    if known[1] is None:
        assert len({round(found[rank] + AHEAD[HOSTS[rank]], 1) for rank in range(RANKS)}) == 1
    assert found[1] == found[2] and found[0] == found[3]
    if known[0] is not None:
        assert found[0] == 100.0
    if known[1] is not None:
        assert found[1] == -4900.0
