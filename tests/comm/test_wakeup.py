"""Who is a neighbour, and bells that wake them; without MPI between them."""

from __future__ import annotations

import itertools
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from mpi4py import MPI

from dppo.comm import wakeup
from dppo.comm.sharing import Counters
from dppo.comm.wakeup import Doorbell, Neighbours

HERE, ELSEWHERE = socket.gethostname(), "another-node"
LONG_S = 30.0
"""A wait that has to be ended by a ring; what is over before `SOON_S` was."""
SOON_S = 10.0


class Ranks:
    """The communicator of one rank of a job, whose ranks are listed as (node, cores), and their GPUs."""

    def __init__(self, rank: int, everyone: list[tuple[str, set[int]]], gpus: list[set[str]]) -> None:
        self.rank = rank
        pairs = zip(everyone, gpus, strict=True)
        self._everyone = [(node, frozenset(cores), frozenset(its_gpus)) for (node, cores), its_gpus in pairs]

    def gather_all(self, mine: object) -> list[tuple[str, frozenset[int], frozenset[str]]]:
        return self._everyone


def neighbours(rank: int, everyone: list[tuple[str, set[int]]], gpus: list[set[str]] | None = None) -> Neighbours:
    comm: Any = Ranks(rank, everyone, gpus or [set()] * len(everyone))
    with patch.object(wakeup, "gather_all", Ranks.gather_all):
        return Neighbours(comm)


# -- neighbours --------------------


def test_a_rank_alone_has_no_neighbours_and_room() -> None:
    alone = Neighbours(MPI.COMM_SELF)
    assert (alone.rank, alone.ranks) == (0, [0])
    assert alone.groups() == [[0]]
    assert alone.num_cores == len(os.sched_getaffinity(0))
    assert (alone.crowded, alone.any_crowded) == (False, False)


def test_neighbours_are_the_ranks_of_the_same_node_in_order() -> None:
    everyone = [(HERE, {0}), (ELSEWHERE, {0}), (HERE, {1}), (ELSEWHERE, {1}), (HERE, {2})]
    assert neighbours(2, everyone).ranks == [0, 2, 4]


@pytest.mark.parametrize(
    ("affinities", "num_cores", "crowded"),
    [
        ([{0}], 1, False),
        ([{0}, {1}], 2, False),
        ([{0, 1}, {0, 1}], 2, False),
        ([{0, 1}, {1, 2}, {0, 2}], 3, False),
        ([{0}, {0}], 1, True),
        ([{0, 1}, {0, 1}, {0, 1}], 2, True),
        ([{0}, {7}, {0}], 2, True),
    ],
    ids=str,
)
def test_a_node_is_crowded_where_ranks_outnumber_the_cores_that_they_may_use(
    affinities: list[set[int]], num_cores: int, crowded: bool
) -> None:
    mine = neighbours(0, [(HERE, cores) for cores in affinities])
    assert (mine.num_cores, mine.crowded, mine.any_crowded) == (num_cores, crowded, crowded)


@pytest.mark.parametrize(
    ("everyone", "crowded", "any_crowded"),
    [
        ([(HERE, {0, 1}), (HERE, {0, 1}), (ELSEWHERE, {0, 1}), (ELSEWHERE, {0, 1})], False, False),
        ([(HERE, {0}), (HERE, {0}), (ELSEWHERE, {0})], True, True),
        ([(HERE, {0}), (ELSEWHERE, {0}), (ELSEWHERE, {0})], False, True),
        ([(HERE, {0}), (ELSEWHERE, {0}), ("a-third", {0})], False, False),  # core 0 is another one on each
    ],
    ids=["no node", "this node", "another node", "one rank each"],
)
def test_each_node_is_counted_by_itself(everyone: list[tuple[str, set[int]]], crowded: bool, any_crowded: bool) -> None:
    mine = neighbours(0, everyone)
    assert (mine.crowded, mine.any_crowded) == (crowded, any_crowded)


@pytest.mark.parametrize(
    ("num_ranks", "num_cores", "groups"),
    [
        (2, 4, [[0], [1]]),
        (3, 3, [[0], [1], [2]]),
        (4, 2, [[0, 1], [2, 3]]),
        (5, 2, [[0, 1], [2, 3, 4]]),
        (5, 4, [[0], [1], [2], [3, 4]]),
        (3, 1, [[0, 1, 2]]),
    ],
)
def test_a_nodes_ranks_share_its_cores_in_groups(num_ranks: int, num_cores: int, groups: list[list[int]]) -> None:
    everyone = [(HERE, set(range(num_cores)))] * num_ranks
    assert all(neighbours(rank, everyone).groups() == groups for rank in range(num_ranks))


def test_groups_are_of_the_ranks_of_one_node() -> None:
    everyone = [(HERE if rank % 2 else ELSEWHERE, {0, 1}) for rank in range(8)]
    assert neighbours(1, everyone).groups() == [[1, 3], [5, 7]]


def test_there_are_as_many_groups_as_cores_and_their_sizes_differ_by_one_at_most() -> None:
    for num_ranks, num_cores in itertools.product(range(1, 20), range(1, 10)):
        groups = neighbours(0, [(HERE, set(range(num_cores)))] * num_ranks).groups()
        assert list(itertools.chain(*groups)) == list(range(num_ranks))
        assert len(groups) == min(num_ranks, num_cores)
        sizes = [len(group) for group in groups]
        assert max(sizes) == math.ceil(num_ranks / len(groups)) and min(sizes) >= max(sizes) - 1


MANY = set(range(64))


@pytest.mark.parametrize(
    ("gpus", "groups"),
    [
        ([set()] * 4, [[0], [1], [2], [3]]),
        ([{"a"}] * 4, [[0, 1, 2, 3]]),
        ([{"a", "b"}] * 4, [[0, 1], [2, 3]]),
        ([{"a", "b", "c", "d", "e"}] * 4, [[0], [1], [2], [3]]),
        # where the batch system gives each rank one of its own, all call theirs cuda:0
        ([{"a"}, {"b"}, {"c"}, {"d"}], [[0], [1], [2], [3]]),
        ([{"a"}, {"a"}, {"b"}, set()], [[0, 1], [2, 3]]),
    ],
    ids=str,
)
def test_a_nodes_ranks_share_its_gpus_in_groups(gpus: list[set[str]], groups: list[list[int]]) -> None:
    mine = neighbours(0, [(HERE, MANY)] * 4, gpus)
    assert mine.groups() == groups
    assert mine.any_crowded == (len(groups) < 4)
    assert not mine.crowded, "a rank that waits has a core for that"


def test_a_node_has_no_more_groups_than_cores_however_many_gpus() -> None:
    mine = neighbours(0, [(HERE, {0, 1})] * 4, [{"a", "b", "c"}] * 4)
    assert mine.groups() == [[0, 1], [2, 3]]


def test_each_nodes_gpus_are_counted_by_themselves() -> None:
    """GPUs of other nodes may have the same names."""
    everyone = [(HERE, MANY), (HERE, MANY), (ELSEWHERE, MANY), (ELSEWHERE, MANY)]
    on_one = [{"0"}, {"0"}, {"0", "1"}, {"0", "1"}]
    assert neighbours(0, everyone, on_one).groups() == [[0, 1]]
    others = neighbours(0, everyone, on_one[::-1])
    assert others.groups() == [[0], [1]] and others.any_crowded, "the same on all ranks"
    assert not neighbours(0, everyone, [{"0", "1"}, {"0", "1"}, set(), set()]).any_crowded


# -- bells --------------------


def bells(ranks: int, elsewhere: tuple[int, ...] = ()) -> list[Doorbell]:
    """Those of a job's ranks on this node, all in this process; `elsewhere` are on another node."""
    everyone = [(ELSEWHERE if rank in elsewhere else HERE, {rank}) for rank in range(ranks)]
    here = [rank for rank in range(ranks) if rank not in elsewhere]
    counters = Counters(np.zeros(4 * len(here), np.uint8))
    return [Doorbell(neighbours(rank, everyone), counters) for rank in here]


def duration_s(what: Callable[[], object]) -> float:
    """How long a call took, which fails the test where it takes for ever."""
    took: list[float] = []

    def timed() -> None:
        began = time.monotonic()
        what()
        took.append(time.monotonic() - began)

    thread = threading.Thread(target=timed, daemon=True)
    thread.start()
    thread.join(LONG_S + SOON_S)
    assert took, "it does not come back"
    return took[0]


def test_a_ring_wakes_who_sleeps() -> None:
    ringing, waiting = bells(2)
    alarm = threading.Timer(0.2, ringing.ring, [1])
    alarm.start()
    assert 0.1 < duration_s(lambda: waiting.wait(LONG_S)) < SOON_S
    alarm.join()


def test_a_ring_that_comes_before_the_wait_is_not_lost() -> None:
    ringing, waiting = bells(2)
    ringing.ring(1)
    assert duration_s(lambda: waiting.wait(LONG_S)) < SOON_S


def test_many_rings_are_one() -> None:
    """The second wait has its whole length: the first one has taken them all, whoever rang."""
    *ringing, waiting = bells(4)
    for bell in ringing * 2:
        bell.ring(3)
    assert duration_s(lambda: waiting.wait(LONG_S)) < SOON_S
    assert duration_s(lambda: waiting.wait(0.1)) > 0.09


def test_a_ring_is_for_one_rank_of_one_job() -> None:
    """Neither the one who rings hears it, nor a third, nor the same rank of another job on the node."""
    ringing, waiting, third = bells(3)
    _, other_job, _ = bells(3)
    ringing.ring(1)
    for deaf in (ringing, third, other_job):
        assert duration_s(lambda bell=deaf: bell.wait(0.05)) > 0.045  # type: ignore[misc]
    assert duration_s(lambda: waiting.wait(LONG_S)) < SOON_S


def test_a_wait_that_nobody_ends_is_as_long_as_was_asked_for_each_time() -> None:
    (bell,) = bells(1)
    for seconds in (0.02, 0.2, 0.2, 0.02):
        assert 0.9 * seconds < duration_s(lambda s=seconds: bell.wait(s)) < SOON_S  # type: ignore[misc]


def test_a_ring_never_waits_for_one_who_does_not_listen() -> None:
    """After thousands of rings one wait has heard them all."""
    ringing, busy = bells(2)
    assert duration_s(lambda: [ringing.ring(1) for _ in range(5000)]) < SOON_S
    assert duration_s(lambda: busy.wait(LONG_S)) < SOON_S
    assert duration_s(lambda: busy.wait(0.1)) > 0.09


def test_a_ring_at_a_bell_that_is_not_there_is_harmless() -> None:
    ringing, _, _ = bells(4, elsewhere=(3,))
    for rank in (3, 4, 0):  # on another node, no such rank, oneself
        ringing.ring(rank)
    assert duration_s(lambda: ringing.wait(0.05)) > 0.045


def test_where_a_node_has_no_shared_memory_nobody_is_reached_and_waits_are_as_long_as_was_asked_for() -> None:
    bell = Doorbell(neighbours(0, [(HERE, {0}), (HERE, {1})]), None)
    bell.ring(1)
    assert not bell.reaches(1) and not bell.has_rung()
    assert duration_s(lambda: bell.wait(0.05)) > 0.045


def test_a_bell_reaches_the_others_on_its_node() -> None:
    bell = bells(4, elsewhere=(2,))[1]
    assert [bell.reaches(rank) for rank in range(5)] == [True, False, False, True, False]


def test_a_bell_knows_whether_its_node_is_crowded() -> None:
    for cores, crowded in (({0}, True), ({0, 1}, False)):
        assert Doorbell(neighbours(0, [(HERE, cores)] * 2), None).crowded is crowded
