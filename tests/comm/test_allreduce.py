"""Sums over the workers; of others, with stand-ins that add what they have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from dppo.comm.allreduce import Allreduce


class Ranks:
    """A communicator of this rank, the first, and of another that has `theirs`."""

    rank, size = 0, 2

    def __init__(self, theirs: np.ndarray) -> None:
        self.theirs, self.dies = theirs, False

    def Allreduce(self, mine: Any, out: np.ndarray, op: MPI.Op) -> None:
        own = out.copy() if mine is MPI.IN_PLACE else mine
        out[:] = own + self.theirs if op == MPI.SUM else np.maximum(own, self.theirs)
        if self.dies:
            raise MPI.Exception(MPI.ERR_PROC_FAILED)

    def Bcast(self, message: list[Any], root: int) -> None:
        assert root == self.rank


def sums(comm: Any, *, survives: bool = False) -> Allreduce:
    return Allreduce(comm, survives=survives)


@pytest.mark.parametrize("survives", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_rank_has_the_sum_already(survives: bool, dtype: type) -> None:
    alone, vector = sums(MPI.COMM_SELF, survives=survives), np.array([1.5, -2.0, 1e-30], dtype)
    for _ in range(2):
        alone.add(vector)
        assert vector.tolist() == [1.5, -2.0, dtype(1e-30)]
    assert (alone.is_lead, alone.num_ranks) == (True, 1)
    assert alone.agree(7)


@pytest.mark.parametrize("survives", [False, True])
def test_a_vector_becomes_the_sum_in_its_place(survives: bool) -> None:
    both = sums(Ranks(np.array([10.0, 20.0])), survives=survives)
    vector = np.array([1.0, 2.0])
    both.add(vector)
    assert vector.tolist() == [11, 22]


@pytest.mark.parametrize("survives", [False, True])
def test_where_deaths_are_survived_what_one_has_spoilt_never_reaches_the_gradient(survives: bool) -> None:
    comm = Ranks(np.array([10.0, 20.0]))
    comm.dies = True
    vector = np.array([1.0, 2.0])
    with pytest.raises(MPI.Exception):
        sums(comm, survives=survives).add(vector)
    assert vector.tolist() == ([1, 2] if survives else [11, 22])


def test_vectors_of_one_length_and_two_types_are_kept_apart() -> None:
    both = sums(Ranks(np.array([1.0, 1.0])), survives=True)
    for dtype in (np.float32, np.float64, np.float32):
        vector = np.zeros(2, dtype)
        both.add(vector)
        assert vector.tolist() == [1, 1] and vector.dtype == dtype


@pytest.mark.parametrize(("other", "alike"), [(5, True), (4, False), (6, False), (-5, False), (2**32 - 1, False)])
def test_ranks_agree_only_where_all_have_the_same(other: int, alike: bool) -> None:
    both = sums(Ranks(np.array([other, -other])))
    assert both.agree(5) is alike


def test_the_lead_keeps_its_own_message() -> None:
    message = np.arange(4, dtype=np.uint8)
    for comm in (MPI.COMM_SELF, Ranks(message)):
        sums(comm).take_over(message)
        assert message.tolist() == [0, 1, 2, 3]


def test_waiting_is_counted() -> None:
    alone = sums(MPI.COMM_SELF)
    alone.add(np.zeros(3))
    before = alone.waited_s
    alone.agree(1)
    assert 0 < before < alone.waited_s
