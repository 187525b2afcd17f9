"""The parameter server's rounds, and rank 0's loop; with at most MPI's way from a rank to itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from dppo.algo.optim import staleness_weight
from dppo.comm.link import NOTHING
from dppo.comm.server import ParameterServer, serve
from dppo.comm.waiting import Backoff
from dppo.seams import Answer, Tag
from tests.conversation import Bell, Until

W = 4


def synchronous(staleness: int) -> float:
    """Only what was computed from the present parameters counts."""
    return float(staleness == 0)


def make_server(quorum: int, weight: Callable[[int], float] = synchronous) -> ParameterServer:
    return ParameterServer(W, quorum, weight)


def vector(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


# -- the quorum --------------------


def test_a_full_quorum_waits_for_all_and_answers_all() -> None:
    server = make_server(quorum=W)
    for worker in (2, 0, 3):
        taken = server.handle(worker, 0, vector(worker, 1), is_gradient=True)
        assert taken.total is None and not taken.answer
    closed = server.handle(1, 0, vector(1, 1), is_gradient=True)
    assert closed.total is not None and closed.total.tolist() == [6, 4]
    assert list(closed.answer) == [0, 1, 2, 3]
    assert (server.version, server.late) == (1, 0)


@pytest.mark.parametrize("drop", [1, 2, 3])
def test_with_drop_the_round_closes_without_the_stragglers(drop: int) -> None:
    server = make_server(quorum=W - drop)
    arriving = [3, 1, 0, 2][: W - drop]
    for worker in arriving:
        closed = server.handle(worker, 0, vector(1, 10**worker), is_gradient=True)
    assert closed.total is not None
    assert closed.total.tolist() == [W - drop, sum(10**w for w in arriving)]
    assert sorted(closed.answer) == sorted(arriving)


def test_a_late_vector_is_counted_answered_and_never_added() -> None:
    server = make_server(quorum=W - 1)
    for worker in (0, 1, 2):
        server.handle(worker, 0, vector(1, 1), is_gradient=True)
    late = server.handle(3, 0, vector(1000, 1000), is_gradient=True)
    assert late.total is None and list(late.answer) == [3]
    assert (server.late, server.version) == (1, 1)
    for worker in (3, 2, 1):
        closed = server.handle(worker, 1, vector(1, 1), is_gradient=True)
    assert closed.total is not None and closed.total.tolist() == [3, 3]


def test_a_worker_may_be_late_by_many_rounds() -> None:
    server = make_server(quorum=1)
    for version in range(5):
        server.handle(0, version, vector(1, 1), is_gradient=True)
    assert server.handle(1, 0, vector(1, 1), is_gradient=True).total is None
    assert server.handle(1, 5, vector(1, 1), is_gradient=True).total is not None


def test_quorum_one_applies_each_as_it_comes() -> None:
    server = make_server(quorum=1, weight=lambda age: 1.0)
    for version, worker in enumerate([2, 0, 0, 3]):
        closed = server.handle(worker, 0, vector(worker, 1), is_gradient=True)
        assert closed.total is not None and closed.total.tolist() == [worker, 1]
        assert list(closed.answer) == [worker]
        assert server.version == version + 1


def test_sums_and_gradients_go_through_the_same_rounds() -> None:
    """The advantage statistics of an iteration come from the same number of workers as its gradients."""
    server = make_server(quorum=2)
    server.handle(0, 0, np.array([1.0, 2.0]), is_gradient=False)
    closed = server.handle(1, 0, np.array([10.0, 20.0]), is_gradient=False)
    assert closed.total is not None and closed.total.tolist() == [11, 22]
    assert server.version == 1
    assert not server.staleness  # of gradients only


@pytest.mark.parametrize("quorum", [0, W + 1])
def test_a_quorum_is_of_one_to_all_workers(quorum: int) -> None:
    with pytest.raises(AssertionError):
        make_server(quorum)


def test_sending_twice_in_a_round_is_a_bug() -> None:
    server = make_server(quorum=W)
    server.handle(0, 0, vector(1, 1), is_gradient=True)
    with pytest.raises(AssertionError, match="worker 0 sent twice in round 0"):
        server.handle(0, 0, vector(1, 1), is_gradient=True)


# -- the sum --------------------


def test_the_sum_is_in_rank_order_whatever_the_order_of_arrival() -> None:
    """In float32 the order shows: (1e8 + 1) - 1e8 is 0, but 1 + (1e8 - 1e8) is 1."""
    vectors = [vector(1e8, 0.1), vector(1, 0.2), vector(-1e8, 0.3), vector(3, 0.4)]
    expected = ((vectors[0] + vectors[1]) + vectors[2]) + vectors[3]
    for order in itertools.permutations(range(W)):
        server = make_server(quorum=W)
        for worker in order:
            closed = server.handle(worker, 0, vectors[worker].copy(), is_gradient=True)
        assert closed.total is not None
        assert closed.total.tobytes() == expected.tobytes()


def test_samples_weigh_not_ranks() -> None:
    """What travels are sums with their count: the mean of 1 sample of 10 and 3 of 2 is 4."""
    server = ParameterServer(2, 2, synchronous)
    server.handle(0, 0, vector(10, 1), is_gradient=True)
    closed = server.handle(1, 0, vector(6, 3), is_gradient=True)
    assert closed.total is not None
    assert closed.total[0] / closed.total[1] == 4.0


# -- staleness --------------------


def stale_server(policy: str) -> ParameterServer:
    """At version 3; gradients of two numbers, one sum behind them."""
    server = make_server(quorum=1, weight=lambda age: staleness_weight(age, policy, 2))
    server.version = 3
    return server


@pytest.mark.parametrize(
    ("policy", "by_age"),
    [
        ("drop", [1.0, 1.0, 1.0, None]),
        ("scale", [1.0, 1 / 2, 1 / 3, None]),
        ("none", [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_staleness_weighs_the_step_and_not_the_gradient(policy: str, by_age: list[float | None]) -> None:
    for age, expected in enumerate(by_age):
        closed = stale_server(policy).handle(0, 3 - age, vector(12, 24, 100), is_gradient=True)
        if expected is None:
            assert closed.total is None
        else:
            assert closed.total is not None
            assert closed.weight == pytest.approx(expected)
            assert closed.total.tolist() == [12, 24, 100]


def test_the_histogram_counts_every_gradient_those_that_were_dropped_too() -> None:
    server = stale_server("drop")
    for version in (3, 3, 0, 4):  # after each that is applied the version is one further
        server.handle(0, version, vector(1, 1), is_gradient=True)
    assert dict(server.staleness) == {0: 1, 1: 2, 5: 1}
    assert server.late == 1


# -- the bell --------------------


def test_whatever_the_server_answers_rings_that_workers_bell_once_it_is_on_its_way() -> None:
    bell: Any = Bell()
    coordinator = Until(lambda: len(bell.taken) == 2)
    coordinator.answers = [Answer(0, Tag.REPLY, np.array([7], np.uint8)), Answer(0, Tag.STOP, NOTHING)]
    request = MPI.COMM_SELF.Isend([NOTHING, MPI.BYTE], 0, int(Tag.SIGNAL))
    serve(MPI.COMM_SELF, coordinator, first_worker_rank=0, doorbell=bell)
    request.Wait()
    assert coordinator.heard == [("signal",)]
    assert bell.taken == [(0, Tag.REPLY, [7]), (0, Tag.STOP, [])]


@pytest.mark.parametrize("reaches", [True, False])
def test_the_server_listens_long_only_where_every_worker_rings(reaches: bool, now: list[float]) -> None:
    bell: Any = Bell(crowded=True, reaches=reaches, now=now)
    serve(MPI.COMM_SELF, Until(lambda: len(bell.waits) == 100), first_worker_rank=0, doorbell=bell)
    if reaches:
        assert bell.waits == [Backoff.SAFETY_S] * 100
    else:
        assert bell.waits[0] < bell.waits[-1] == 0.01
        assert bell.waits == sorted(bell.waits)
