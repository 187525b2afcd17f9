"""Samples that go through shared memory and come back as an answer; workers are threads, nothing else is stubbed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from mpi4py import MPI

from dppo.comm.learner_groups import Pool, make_pool, slot_bytes
from dppo.comm.sharing import Counters
from dppo.errors import RankFailure
from tests.pools import LONG_S, assert_same, counter_memory, make_pools, together

SAMPLES: dict[str, list[tuple[type, tuple[int, ...]]]] = {
    "one": [(np.float32, ())],
    "like a Minibatch": [(np.float32, (4,)), (np.int64, ()), (np.float32, (2,)), (np.float32, ())],
    "all types": [(t, ()) for t in (np.int8, np.float64, np.bool_, np.int64, np.uint8, np.float32, np.int16)],
    "many axes": [(np.uint8, (3, 5, 2)), (np.float64, (1, 1)), (np.int8, (7,))],
    "a width of 0": [(np.float32, (0,)), (np.float64, (3,))],
}
"""(type, shape of a row) of arrays that a worker might put, before its last one."""


def arrays(what: Sequence[tuple[type, tuple[int, ...]]], rows: int, last: int, seed: int = 0) -> list[np.ndarray]:
    """Random bits of these types and shapes, and `last` numbers."""
    rng = np.random.default_rng(seed)
    samples: list[np.ndarray] = [
        rng.integers(0, 2 if t is np.bool_ else 100, (rows, *shape)).astype(t) for t, shape in what
    ]
    return [*samples, rng.normal(size=last)]


# -- from the members --------------------


@pytest.mark.parametrize("rows", [0, 1, 6, 7])
@pytest.mark.parametrize("what", SAMPLES)
def test_a_members_arrays_reach_the_one_that_computes_unchanged(what: str, rows: int) -> None:
    """Up to all 7 rows that there is room for; the last array has its own length."""
    like = arrays(SAMPLES[what], 7, 5, seed=1)
    computing, member = make_pools(2, slot_bytes(like, 7))
    put = arrays(SAMPLES[what], rows, 5, seed=2)
    member.put(put)
    ((worker, taken),) = computing.take(like)
    assert worker == 1
    assert_same(taken, put)


@pytest.mark.parametrize("own_rows", [0, 2])
def test_members_may_have_other_numbers_of_rows_than_the_one_that_computes(own_rows: int) -> None:
    what = SAMPLES["like a Minibatch"]
    puts = [arrays(what, rows, 11, seed=rows) for rows in (4, 0, 9)]
    computing, *members = make_pools(4, slot_bytes(arrays(what, 1, 11), 9), workers=[5, 6, 8, 9])
    for member, put in zip(members[::-1], puts[::-1], strict=True):  # whoever is first
        member.put(put)
    taken = computing.take(arrays(what, own_rows, 11))
    assert [worker for worker, _ in taken] == [6, 8, 9]
    for (_, got), put in zip(taken, puts, strict=True):
        assert_same(got, put)


def test_the_first_of_a_group_computes_and_waits_for_all_others() -> None:
    what = SAMPLES["one"]
    pools = make_pools(3, 1000)
    assert [pool.computes for pool in pools] == [True, False, False]
    computing, *members = pools
    members[1].put(arrays(what, 1, 1))
    taking = threading.Thread(target=computing.take, args=(arrays(what, 1, 1),), daemon=True)
    taking.start()
    taking.join(0.2)
    assert taking.is_alive(), "one is missing"
    members[0].put(arrays(what, 1, 1))
    taking.join(LONG_S)
    assert not taking.is_alive()
    assert 0.15 < computing.waited_s < LONG_S


def test_messages_keep_moving_while_either_side_waits() -> None:
    """Else rank 0, which takes in a long message, waits for the slowest of the group."""
    what = SAMPLES["one"]
    computing, member = make_pools(2, 1000)
    looks = {"computes": 0, "waits": 0}

    def look(who: str, then: Callable[[], None]) -> Callable[[], None]:
        def meanwhile() -> None:
            looks[who] += 1
            if looks[who] == 3:
                then()

        return meanwhile

    computing.take(arrays(what, 1, 1), look("computes", lambda: member.put(arrays(what, 1, 1))))
    member.wait(look("waits", lambda: computing.answer(np.empty(0, np.uint8))))
    assert looks == {"computes": 3, "waits": 3}


def test_a_group_of_one_waits_for_nobody() -> None:
    (alone,) = make_pools(1, 1000)
    assert alone.computes
    assert together(lambda: alone.take(arrays(SAMPLES["one"], 3, 2))) == [[]]
    together(lambda: alone.answer(np.zeros(10, np.uint8)))


# -- to the members --------------------


@pytest.mark.parametrize("length", [0, 1, 8, 992])
def test_an_answer_reaches_all_members(length: int) -> None:
    """Also an empty one, which ends the run, and one that fills the slot."""
    computing, *members = make_pools(4, 1000)
    message = np.random.default_rng(0).integers(0, 256, length).astype(np.uint8)
    computing.answer(message)
    for answer in together(*(member.wait for member in members)):
        assert_same([answer], [message])


def test_an_empty_answer_is_empty_after_a_long_one() -> None:
    computing, member = make_pools(2, 1000)
    for length in (900, 0):
        computing.answer(np.ones(length, np.uint8))
        (answer,) = together(member.wait)
        assert len(answer) == length


def test_a_member_sleeps_until_it_is_answered_and_counts_the_seconds() -> None:
    computing, member = make_pools(2, 1000)
    threading.Timer(0.2, computing.answer, [np.zeros(1, np.uint8)]).start()
    since = time.process_time()
    together(member.wait)
    assert 0.15 < member.waited_s < LONG_S
    assert time.process_time() - since < 0.1


# -- rounds --------------------


def test_rounds_of_different_lengths_do_not_mix() -> None:
    """Each worker at its own pace, an answer that is longer or shorter than the one before."""
    what, rounds, workers = SAMPLES["like a Minibatch"], 30, (3, 4, 6, 7)
    computing, *members = make_pools(len(workers), slot_bytes(arrays(what, 1, 5), 40), workers)
    rows = np.random.default_rng(0).integers(0, 41, (rounds, 10))

    def put(number: int, worker: int) -> list[np.ndarray]:
        return arrays(what, int(rows[number, worker]), 5, seed=100 * number + worker)

    def answer(number: int) -> np.ndarray:
        return np.full(int(rows[number, 0]), number, np.uint8)

    def compute() -> None:
        for number in range(rounds):
            for worker, taken in computing.take(put(number, workers[0])):
                assert_same(taken, put(number, worker))
            computing.answer(answer(number))

    def collect(member: Pool, worker: int) -> None:
        rng = np.random.default_rng(worker)
        for number in range(rounds):
            time.sleep(rng.uniform(0, 0.003))
            member.put(put(number, worker))
            assert_same([member.wait()], [answer(number)])

    collecting = zip(members, workers[1:], strict=True)
    together(compute, *(lambda m=m, w=w: collect(m, w) for m, w in collecting))


def test_many_members_that_put_long_before_anybody_looks_do_not_wait_for_ever() -> None:
    what = SAMPLES["one"]
    computing, *members = make_pools(22, slot_bytes(arrays(what, 1, 2), 3))

    def compute() -> list[int]:
        taken = []
        for number in range(3):
            time.sleep(0.1)
            taken += [int(got[0][0]) for _, got in computing.take(arrays(what, 3, 2))]
            computing.answer(np.full(number, number, np.uint8))
        return taken

    def collect(member: Pool, worker: int) -> list[int]:
        lengths = []
        for number in range(3):
            member.put([np.full(3, 100 * number + worker, np.float32), np.zeros(2)])
            lengths.append(len(member.wait()))
        return lengths

    numbered = enumerate(members, start=1)
    taken, *lengths = together(compute, *(lambda m=m, w=w: collect(m, w) for w, m in numbered))
    assert taken == [100 * number + worker for number in range(3) for worker in range(1, 22)]
    assert lengths == [[0, 1, 2]] * 21


def test_who_finds_a_neighbour_dead_leaves_it_to_the_launcher() -> None:
    """Whoever outlives a killed rank by some milliseconds must not be taken for the one that failed."""
    pools = make_pools(3, 1000)
    pools.pop()
    pools[0].answer(np.ones(5, np.uint8))
    assert len(pools[1].wait()) == 5
    del pools[0]
    pools[0].put(arrays(SAMPLES["one"], 1, 1))


def test_a_wake_up_that_nothing_stands_behind_changes_nothing() -> None:
    """Neither many of them, nor one that comes early: what counts is what was put, and how often."""
    what, rounds = SAMPLES["one"], 20
    memory = counter_memory(3)
    computing, *members = make_pools(3, 1000, memory=memory)
    waking, counters = True, Counters(memory)

    def wake_all() -> None:
        while waking:
            for counter in range(4):
                counters.wake(counter)

    def compute() -> list[int]:
        taken = []
        for number in range(rounds):
            taken += [int(got[0][0]) for _, got in computing.take(arrays(what, 1, 1))]
            computing.answer(np.full(1, number, np.uint8))
        return taken

    def collect(member: Pool, worker: int) -> list[int]:
        answers = []
        for number in range(rounds):
            time.sleep(0.002)
            member.put([np.full(1, 10 * number + worker, np.float32), np.zeros(1)])
            answers += member.wait().tolist()
        return answers

    noise = threading.Thread(target=wake_all, daemon=True)
    noise.start()
    taken, *answers = together(compute, *(lambda m=m, w=w: collect(m, w) for w, m in enumerate(members, start=1)))
    waking = False
    noise.join(LONG_S)
    assert taken == [10 * number + worker for number in range(rounds) for worker in (1, 2)]
    assert answers == [list(range(rounds))] * 2


def test_a_wake_up_that_is_lost_delays_by_a_look_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = counter_memory(2)
    _, member = make_pools(2, 1000, memory=memory)
    monkeypatch.setattr(Pool, "LOOK_S", 0.01)
    sleeping = threading.Thread(target=member.wait, daemon=True)
    sleeping.start()
    time.sleep(0.1)
    memory.view(np.uint32)[0] += 1  # as `answer` counts, and nobody is woken
    sleeping.join(LONG_S)
    assert not sleeping.is_alive()


@pytest.mark.parametrize("sleeper", [0, 1], ids=["computes", "waits"])
def test_who_sleeps_in_a_pool_that_is_given_up_is_told_but_what_has_come_is_taken_first(sleeper: int) -> None:
    what = SAMPLES["one"]
    pools = make_pools(3, 1000)

    def sleep() -> object:
        return pools[0].take(arrays(what, 1, 1)) if sleeper == 0 else pools[1].wait()

    for member in pools[1:]:
        member.put(arrays(what, 1, 1))
    pools[0].answer(np.ones(3, np.uint8))
    threading.Timer(0.2, pools[2].give_up).start()
    time.sleep(0.3)
    together(sleep)
    with pytest.raises(RankFailure, match="given up"):
        together(sleep)


def test_who_is_woken_only_when_the_pool_is_given_up_takes_what_was_counted_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the end of a run: the one that computes answers, and leaves at once, before this member gets the core."""
    what = SAMPLES["one"]
    pools = make_pools(2, 1000)
    pools[1].put(arrays(what, 1, 1))

    def sleep(counters: Counters, *arguments: object) -> None:
        pools[0].answer(np.ones(3, np.uint8))
        pools[0].give_up()

    monkeypatch.setattr(Counters, "sleep", sleep)
    assert pools[1].wait().tolist() == [1, 1, 1]


# -- room --------------------


def test_there_is_room_for_arrays_of_any_shapes_and_they_stay_within_it() -> None:
    """Random types and shapes, a full slot beside another: whoever is first, neither overwrites the other."""
    rng = np.random.default_rng(7)
    types = (np.int8, np.bool_, np.float32, np.float64, np.int64)
    for trial in range(100):
        what = [
            (types[rng.integers(len(types))], tuple(rng.integers(1, 6, rng.integers(0, 3))))
            for _ in range(rng.integers(1, 8))
        ]
        most, last = int(rng.integers(1, 50)), int(rng.integers(0, 40))
        computing, *members = make_pools(3, slot_bytes(arrays(what, 1, last), most))
        puts = [arrays(what, rows, last, seed=trial + rows) for rows in (most, int(rng.integers(0, most + 1)))]
        for i in rng.permutation(2):
            members[i].put(puts[i])
        for (_, taken), put in zip(computing.take(puts[0]), puts, strict=True):
            assert_same(taken, put)


def test_a_worker_with_a_core_to_itself_has_no_pool() -> None:
    pool, computing = make_pool(MPI.COMM_SELF, 1000)
    assert pool is None
    assert computing is MPI.COMM_SELF
