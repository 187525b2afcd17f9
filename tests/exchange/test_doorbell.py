"""Who is a neighbour, and bells that wake them; without MPI between them."""

from __future__ import annotations

import itertools
import math
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from mpi4py import MPI

from dppo.exchange.doorbell import Doorbell, Neighbours, bound_socket, set_receive_timeout

HERE, ELSEWHERE = socket.gethostname(), "another-node"
LONG_S = 30.0
"""A wait that has to be ended by a ring; what is over before `SOON_S` was."""
SOON_S = 10.0


class Ranks:
    """The communicator of one rank of a job, whose ranks are listed as (node, cores)."""

    def __init__(self, rank: int, everyone: list[tuple[str, set[int]]], job: str) -> None:
        self.rank, self._job = rank, job
        self._everyone = [(node, frozenset(cores)) for node, cores in everyone]

    def allgather(self, mine: tuple[str, frozenset[int]]) -> list[tuple[str, frozenset[int]]]:
        return self._everyone

    def bcast(self, token: str, root: int) -> str:
        return self._job


def neighbours(rank: int, everyone: list[tuple[str, set[int]]], job: str = "job") -> Neighbours:
    comm: Any = Ranks(rank, everyone, job)
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


def test_addresses_differ_by_job_purpose_and_rank_and_are_no_files() -> None:
    jobs = [neighbours(0, [(HERE, {0})], job) for job in ("one", "two")]
    addresses = [job.address(purpose, rank) for job in jobs for purpose in ("bell", "sum") for rank in (1, 2, 12)]
    assert len(set(addresses)) == len(addresses)
    assert all(address.startswith("\0") for address in addresses)


def test_all_ranks_of_a_job_find_the_same_address_and_two_jobs_do_not() -> None:
    everyone = [(HERE, {0}), (HERE, {1})]
    assert neighbours(0, everyone).address("bell", 1) == neighbours(1, everyone).address("bell", 1)
    assert Neighbours(MPI.COMM_SELF).address("bell", 0) != Neighbours(MPI.COMM_SELF).address("bell", 0)


# -- sockets --------------------


def test_an_address_is_free_again_once_its_socket_is_closed() -> None:
    address = f"\0dppo-test-{os.getpid()}"
    with bound_socket(address), pytest.raises(OSError, match="in use"):
        bound_socket(address)
    bound_socket(address).close()


@pytest.mark.parametrize("seconds", [1e-9, 0.02, 0.9999999, 1.0, 2.5])
def test_the_kernels_timeout_is_what_was_asked_for_and_never_for_ever(seconds: float) -> None:
    """0 would be for ever. The kernel counts in ticks, of 10 ms at most."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        set_receive_timeout(sock, seconds)
        whole, microseconds = struct.unpack("ll", sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16))
        assert sock.gettimeout() is None  # Python's own
    assert 0 < whole + microseconds / 1e6 == pytest.approx(seconds, abs=0.011)


# -- bells --------------------

Bells = Callable[..., list[Doorbell]]


@pytest.fixture
def bells(request: pytest.FixtureRequest) -> Iterator[Bells]:
    """Makes the bells of a job's ranks on this node, all in this process; `elsewhere` are on another node."""
    made: list[Doorbell] = []

    def make(ranks: int, elsewhere: tuple[int, ...] = (), job: str = "one") -> list[Doorbell]:
        everyone = [(ELSEWHERE if rank in elsewhere else HERE, {rank}) for rank in range(ranks)]
        here = [rank for rank in range(ranks) if rank not in elsewhere]
        new = [Doorbell(neighbours(rank, everyone, f"{os.getpid()}-{request.node.name}-{job}")) for rank in here]
        made.extend(new)
        return new

    yield make
    for bell in made:
        bell.close()


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


def test_a_ring_wakes_who_sleeps(bells: Bells) -> None:
    ringing, waiting = bells(2)
    alarm = threading.Timer(0.2, ringing.ring, [1])
    alarm.start()
    assert 0.1 < duration_s(lambda: waiting.wait(LONG_S)) < SOON_S
    alarm.join()


def test_a_ring_that_comes_before_the_wait_is_not_lost(bells: Bells) -> None:
    ringing, waiting = bells(2)
    ringing.ring(1)
    assert duration_s(lambda: waiting.wait(LONG_S)) < SOON_S


def test_many_rings_are_one(bells: Bells) -> None:
    """The second wait has its whole length: the first one has taken them all, whoever rang."""
    *ringing, waiting = bells(4)
    for bell in ringing * 2:
        bell.ring(3)
    assert duration_s(lambda: waiting.wait(LONG_S)) < SOON_S
    assert duration_s(lambda: waiting.wait(0.1)) > 0.09


def test_a_ring_is_for_one_rank_of_one_job(bells: Bells) -> None:
    """Neither the one who rings hears it, nor a third, nor the same rank of another job on the node."""
    ringing, waiting, third = bells(3)
    _, other_job, _ = bells(3, job="two")
    ringing.ring(1)
    for deaf in (ringing, third, other_job):
        assert duration_s(lambda bell=deaf: bell.wait(0.05)) > 0.045  # type: ignore[misc]
    assert duration_s(lambda: waiting.wait(LONG_S)) < SOON_S


def test_a_wait_that_nobody_ends_is_as_long_as_was_asked_for_each_time(bells: Bells) -> None:
    (bell,) = bells(1)
    for seconds in (0.02, 0.2, 0.2, 0.02):
        assert 0.9 * seconds < duration_s(lambda s=seconds: bell.wait(s)) < SOON_S  # type: ignore[misc]


def test_a_ring_never_waits_for_one_who_does_not_listen(bells: Bells) -> None:
    """The kernel keeps some ten messages of a socket; after thousands of rings one wait empties it as ever."""
    ringing, busy = bells(2)
    assert duration_s(lambda: [ringing.ring(1) for _ in range(5000)]) < SOON_S
    assert duration_s(lambda: busy.wait(LONG_S)) < SOON_S
    assert duration_s(lambda: busy.wait(0.1)) > 0.09


def test_a_ring_at_a_bell_that_is_gone_or_never_was_is_harmless(bells: Bells) -> None:
    ringing, gone, _ = bells(4, elsewhere=(3,))
    gone.close()
    for rank in (1, 3, 4, 0):  # closed, on another node, no such rank, oneself
        ringing.ring(rank)
    assert duration_s(lambda: ringing.wait(0.05)) > 0.045


def test_a_neighbour_that_has_no_bell_yet_is_rung_in_vain() -> None:
    with_bell = Doorbell(neighbours(0, [(HERE, {0}), (HERE, {1})], f"{os.getpid()}-early"))
    with_bell.ring(1)
    with_bell.close()


def test_a_bell_reaches_the_others_on_its_node(bells: Bells) -> None:
    bell = bells(4, elsewhere=(2,))[1]
    assert [bell.reaches(rank) for rank in range(5)] == [True, False, False, True, False]


def test_a_bell_knows_whether_its_node_is_crowded() -> None:
    for cores, crowded in (({0}, True), ({0, 1}, False)):
        bell = Doorbell(neighbours(0, [(HERE, cores)] * 2, f"{os.getpid()}-crowded"))
        assert bell.crowded is crowded
        bell.close()
