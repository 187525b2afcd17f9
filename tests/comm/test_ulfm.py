"""What a dead rank means, with stand-ins for communicators in which ranks die."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from dppo.comm import ulfm
from dppo.errors import RankFailure

DEATH = MPI.Exception(MPI.ERR_PROC_FAILED)


@pytest.fixture
def survives(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under `mpirun --with-ft ulfm`."""
    monkeypatch.setattr(ulfm, "survives_deaths", lambda: True)


class Survivors:
    """A communicator: this rank, and others that say the same, but for the first `other_words` agreements.

    Args:
      next: what it shrinks to; DEATH raises that.
      agreements: outcomes of `Agree`, True where they are used up.
    """

    def __init__(self, *next: Any, other_words: int = 0, agreements: tuple[bool, ...] = ()) -> None:
        self._next, self._other_words, self._agreements = list(next), other_words, list(agreements)
        self.revoked = 0
        self.asked_to_die = False

    def Revoke(self) -> None:
        self.revoked += 1

    def Iagree(self, flag: np.ndarray) -> Any:
        if self._other_words:
            self._other_words -= 1
            flag[0] = 0
        return SimpleNamespace(Test=self._test)

    def _test(self) -> bool:
        if self.asked_to_die:
            raise DEATH
        return True

    def Shrink(self) -> Any:
        shrunk = self._next.pop(0)
        if shrunk is DEATH:
            raise DEATH
        return shrunk

    def Set_errhandler(self, handler: object) -> None: ...

    def Agree(self, well: int) -> int:
        return well and (self._agreements.pop(0) if self._agreements else True)


def regroup(comm: Survivors, consult: Callable[[Any], Any], others: tuple[Any, ...] = ()) -> tuple[Any, Any]:
    return ulfm.regroup(comm, others, consult, lambda: None)  # type: ignore[arg-type]


# -- noticing --------------------


@pytest.mark.parametrize("error", [MPI.Exception(MPI.ERR_REVOKED), DEATH, pickle.UnpicklingError("half a message")])
def test_where_deaths_are_survived_one_is_a_rank_failure(error: Exception, survives: None) -> None:
    with pytest.raises(RankFailure), ulfm.deaths_noticed():
        raise error


@pytest.mark.parametrize("error", [MPI.Exception(MPI.ERR_COUNT), MPI.Exception(MPI.ERR_TRUNCATE), ValueError("x")])
def test_a_mistake_is_none(error: Exception, survives: None) -> None:
    with pytest.raises(type(error)) as raised, ulfm.deaths_noticed():
        raise error
    assert raised.value is error


@pytest.mark.parametrize("error", [DEATH, pickle.UnpicklingError("half a message")])
def test_where_deaths_end_the_job_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)), ulfm.deaths_noticed():
        raise error


# -- regrouping --------------------


def test_survivors_go_on_with_what_they_have_found_out() -> None:
    left = Survivors()
    comm, other = Survivors(left), Survivors()
    assert regroup(comm, lambda comm: ("told in", comm), others=(other,)) == (left, ("told in", left))
    assert (comm.revoked, other.revoked, left.revoked) == (1, 1, 0)


def test_a_second_death_while_they_consult_makes_them_begin_again_with_those_that_are_left() -> None:
    last = Survivors()
    first = Survivors(last)
    consulted: list[Any] = []

    def consult(comm: Any) -> int:
        consulted.append(comm)
        if comm is first:
            raise DEATH
        return 7

    assert regroup(Survivors(first), consult) == (last, 7)
    assert consulted == [first, last]
    assert first.revoked >= 1, "who still waits in it comes to the agreement"


def test_what_went_well_here_but_not_elsewhere_is_done_again() -> None:
    last = Survivors()
    first = Survivors(last, agreements=(False,))
    counted = [0]

    def consult(comm: Any) -> int:
        counted[0] += 1
        return counted[0]

    assert regroup(Survivors(first), consult) == (last, 2)


def test_a_message_of_which_nothing_has_come_counts_as_a_death() -> None:
    last = Survivors()
    told = iter([pickle.UnpicklingError("nothing has come"), None])

    def consult(comm: Any) -> None:
        if (error := next(told)) is not None:
            raise error

    assert regroup(Survivors(Survivors(last)), consult)[0] is last


def test_a_death_while_the_communicator_shrinks_is_tried_again() -> None:
    left = Survivors()
    assert regroup(Survivors(DEATH, DEATH, left), lambda comm: None)[0] is left


def test_who_comes_from_another_stage_is_waited_for() -> None:
    """MPI pairs agreements by their order: those of others may still be about something else."""
    left = Survivors()
    assert regroup(Survivors(left, other_words=3), lambda comm: None)[0] is left


# -- waiting for all --------------------


def test_where_deaths_end_the_job_nobody_is_waited_for() -> None:
    ulfm.wait_for_all(SimpleNamespace(), lambda: None)  # type: ignore[arg-type]


def test_all_that_live_are_waited_for(survives: None) -> None:
    ulfm.wait_for_all(Survivors(), lambda: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["has died", "regroups instead"])
def test_one_that_does_not_come_is_an_error_on_all(what: str, survives: None) -> None:
    comm = Survivors(other_words=int(what != "has died"))
    comm.asked_to_die = what == "has died"
    with pytest.raises(MPI.Exception) as raised:
        ulfm.wait_for_all(comm, lambda: None)  # type: ignore[arg-type]
    assert raised.value.Get_error_class() == (MPI.ERR_PROC_FAILED if what == "has died" else MPI.ERR_REVOKED)


def test_a_wait_is_mostly_asleep_and_tells_that_it_goes_on() -> None:
    tests, beats = iter([False] * 5 + [True]), []
    comm: Any = SimpleNamespace(Ibarrier=lambda: SimpleNamespace(Test=lambda: next(tests)))
    ulfm.wait_asleep(comm, lambda: beats.append("exchange"))
    assert len(beats) == 5
    ulfm.wait_asleep(MPI.COMM_SELF, lambda: None)


# -- a new order --------------------


class Sorts(Survivors):
    """A communicator whose ranks are put into another order; in the new one a rank may die."""

    def __init__(self, ordered: Any) -> None:
        super().__init__()
        self._ordered = ordered

    def Split(self, color: int, key: int) -> Any:
        return self._ordered


def test_ranks_are_put_in_order_with_what_they_have_brought() -> None:
    ordered = MPI.COMM_SELF.Dup()
    comm: Any = Sorts(ordered)
    assert ulfm.sort(comm, 3, "mine") == (ordered, ["mine"])
    ordered.Free()


def test_a_death_meanwhile_is_an_error_on_all_and_nobody_stays_waiting() -> None:
    class Dies(Survivors):
        size = 2

        def Allgather(self, *arguments: object) -> None:
            raise DEATH

    ordered = Dies()
    comm: Any = Sorts(ordered)
    with pytest.raises(MPI.Exception):
        ulfm.sort(comm, 0, "mine")
    assert (comm.revoked, ordered.revoked) == (1, 1)
