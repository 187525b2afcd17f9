"""A head and its follower, with a communicator of two threads."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from dppo.envs.group_link import Call, Failed
from dppo.errors import RankFailure, WorkerError
from dppo.run import env_group
from dppo.run.env_group import EnvGroup, Seat, WholeOrDead, is_crowded

HERE = Seat("node1", frozenset({0, 1}))


class Bell:
    crowded = False

    def ring(self, rank: int) -> None:
        pass

    def reaches(self, rank: int) -> bool:
        return True

    def wait(self, longest_s: float) -> None:
        threading.Event().wait(0.001)


class Sent:
    """A request: done once the message was taken, or at once."""

    def __init__(self, *, is_taken: bool) -> None:
        self.is_taken = is_taken

    def Test(self) -> bool:
        return self.is_taken

    def Wait(self) -> None:
        assert self.is_taken


class Comm:
    """Of rank `rank` of two; the boxes hold (source, tag, message, request) for each rank."""

    size = 2

    def __init__(self, rank: int, boxes: list[list[tuple[int, int, bytes, Sent]]]) -> None:
        self.rank, self._boxes = rank, boxes

    def Isend(self, message: list[Any], dest: int, tag: int) -> Sent:
        self._boxes[dest].append((self.rank, tag, bytes(message[0]), Sent(is_taken=True)))
        return Sent(is_taken=True)

    def Issend(self, message: list[Any], dest: int, tag: int) -> Sent:
        sent = Sent(is_taken=False)
        self._boxes[dest].append((self.rank, tag, bytes(message[0]), sent))
        return sent

    def Iprobe(self, source: int, tag: int, status: MPI.Status) -> bool:
        found = next((m for m in self._boxes[self.rank] if m[1] == tag), None)
        if found is None:
            return False
        status.Set_source(found[0])
        status.Set_elements(MPI.BYTE, len(found[2]))
        return True

    def Recv(self, message: list[Any], source: int, tag: int, status: MPI.Status) -> None:
        found = next(m for m in self._boxes[self.rank] if m[1] == tag)
        self._boxes[self.rank].remove(found)
        message[0][:] = np.frombuffer(found[2], np.uint8)
        found[3].is_taken = True

    def Dup(self) -> str:
        return "a communicator"


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EnvGroup]]:
    """The head and the follower of a group of the ranks 3 and 4."""
    monkeypatch.setattr(env_group, "make_doorbell", lambda comm: Bell())
    monkeypatch.setattr(env_group, "GIVE_UP_AFTER_S", 0.1)
    boxes: list[list[tuple[int, int, bytes, Sent]]] = [[], []]
    made: Any = [Comm(rank, boxes) for rank in range(2)]
    yield [EnvGroup(comm, 1, 3, [HERE, HERE], crowded=False) for comm in made]


def failure(who: str) -> Failed:
    return Failed(who, "ZeroDivisionError", "Traceback", is_cause=True)


def test_a_call_reaches_the_follower_and_its_answer_the_head(group: list[EnvGroup]) -> None:
    head, follower = group
    head.tell(Call.STEP, 7, {"push": np.float32(0.5)})
    assert follower.next_call() == (Call.STEP, 7, {"push": np.float32(0.5)})
    follower.answer(7, None)
    assert head.answers(7, has_failed=False) == []


def test_a_failure_is_told_whole(group: list[EnvGroup]) -> None:
    head, follower = group
    head.tell(Call.RESET, 0, {"seed": 1})
    follower.next_call()
    assert follower.name == "rank 4 on node1"
    thread = threading.Thread(target=follower.answer, args=(0, failure(follower.name)))
    thread.start()
    assert head.answers(0, has_failed=False) == [failure("rank 4 on node1")]
    thread.join(10)


def test_an_answer_to_an_earlier_call_counts_no_more(group: list[EnvGroup]) -> None:
    head, follower = group
    for number in range(2):
        head.tell(Call.STEP, number)
    follower.next_call()
    follower.answer(0, None)
    follower.next_call()
    thread = threading.Thread(target=follower.answer, args=(1, failure("second")))
    thread.start()
    assert head.answers(1, has_failed=False) == [failure("second")]
    thread.join(10)


def test_a_follower_that_does_not_come_out_is_named_and_told_nothing_more(group: list[EnvGroup]) -> None:
    head, follower = group
    head.tell(Call.STEP, 0)
    assert not head.is_stuck
    assert head.answers(0, has_failed=True) == []  # the head has failed, and the follower waits for it
    assert head.is_stuck
    with pytest.raises(RuntimeError, match=r"rank 4 on node1: still in a call of the environment after an error"):
        head.tell(Call.CLOSE, 0)
    head.dismiss("the end")  # for a follower that comes out after all
    assert [follower.next_call()[0] for _ in range(2)] == [Call.STEP, Call.LEAVE]


def test_patience_begins_with_the_first_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with the head's return: rank 4 has failed long after it, and rank 5 comes back soon after that."""
    now = 100.0
    boxes: list[list[tuple[int, int, bytes, Sent]]] = [[], [], []]
    ranks: Any = [Comm(rank, boxes) for rank in range(3)]
    for comm in ranks:
        comm.size = 3

    class Turns:
        """Each pause takes 3 s; in the third one rank 4 fails, in the fourth one rank 5 is done."""

        num = 0

        def reset(self) -> None:
            pass

        def pause(self) -> None:
            nonlocal now
            now, self.num = now + 3.0, self.num + 1
            if self.num == 3:
                message = pickle.dumps(tuple(failure("rank 4")))
                ranks[1].Isend([env_group._SERIAL.pack(1) + message], 0, env_group._ANSWER)
            elif self.num == 4:
                ranks[2].Isend([env_group._SERIAL.pack(1)], 0, env_group._ANSWER)

    monkeypatch.setattr(env_group, "make_doorbell", lambda comm: Bell())
    monkeypatch.setattr(env_group, "time", SimpleNamespace(monotonic=lambda: now))
    head = EnvGroup(ranks[0], 1, 3, [HERE] * 3, crowded=False)
    monkeypatch.setattr(head, "_backoff", Turns())
    head.tell(Call.STEP, 0)
    assert head.answers(0, has_failed=False) == [failure("rank 4")]
    assert not head.is_stuck


def test_a_failure_that_the_head_does_not_take_ends_the_job(group: list[EnvGroup]) -> None:
    """The head waits for this rank in an operation that nobody can interrupt."""
    _, follower = group
    with pytest.raises(WorkerError, match="rank 4 on node1 failed in the environment of group 1:\nTraceback"):
        follower.answer(0, failure(follower.name))


@pytest.fixture
def dead(group: list[EnvGroup], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The follower has died under ULFM. Holds what has happened to the head's communicator, and to the head."""
    seen: list[str] = []

    def fail(*arguments: object) -> None:
        raise MPI.Exception(MPI.ERR_PROC_FAILED)

    def die() -> None:
        seen.append("died")
        raise SystemExit

    comm: Any = group[0].comm
    comm.Isend, comm.Revoke = fail, lambda: seen.append("revoked")
    comm.Is_revoked, comm.Get_failed = lambda: "revoked" in seen, lambda: MPI.GROUP_EMPTY
    comm.Get_group = lambda: MPI.GROUP_EMPTY
    monkeypatch.setattr(env_group, "survives_deaths", lambda: True)
    monkeypatch.setattr("dppo.comm.ulfm.survives_deaths", lambda: True)
    monkeypatch.setattr(env_group, "die", die)
    yield seen


def test_a_head_dies_with_its_follower(group: list[EnvGroup], dead: list[str]) -> None:
    with pytest.raises(SystemExit):
        group[0].tell(Call.STEP, 0)
    assert dead == ["revoked", "died"]


def test_a_head_that_has_become_the_server_lives_on(group: list[EnvGroup], dead: list[str]) -> None:
    head = group[0]
    head.rest()
    assert head.wake(), "nobody is known to be dead"
    head.rest()
    head.dismiss("the end")
    assert dead == ["revoked"], "should there be further followers, they end"
    assert not head.wake()


def test_nodes_are_crowded_by_all_ranks_of_the_job() -> None:
    elsewhere = Seat("node2", frozenset({0}))
    assert not is_crowded([HERE], [HERE, HERE, elsewhere, elsewhere])
    assert is_crowded([HERE], [HERE, HERE, HERE])
    assert is_crowded([HERE, elsewhere], [HERE, elsewhere, elsewhere])


def test_an_error_that_no_death_has_caused_comes_out_as_it_is() -> None:
    said: list[str] = []

    def die(why: str) -> Any:
        said.append(why)
        raise SystemExit

    watch = WholeOrDead(die)
    with watch:
        pass
    error = ZeroDivisionError("no death")
    with pytest.raises(ZeroDivisionError) as caught, watch:
        raise error
    assert caught.value is error and said == []
    with pytest.raises(SystemExit), watch:
        raise RankFailure("rank 3")
    assert said == ["rank 3"]
