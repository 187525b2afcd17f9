"""Objects that ranks tell each other arrive whole, or not at all: a death may let a collective succeed that has brought
nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from dppo.comm.collectives import UNREADABLE, all_have, from_rank, gather_all, gather_at_zero, total

VALUES = [None, 0, "", ("host", frozenset({0, 1})), list(range(1000)), np.arange(5.0)]


class Others:
    """A communicator of this rank, which is `rank`, and of others that tell the same; of a collective whose number is
    in `nothing` nothing comes, though it succeeds.
    """

    def __init__(self, size: int = 3, rank: int = 0, nothing: tuple[int, ...] = (), of: int = 1) -> None:
        self.size, self.rank, self._nothing, self._of, self._calls = size, rank, nothing, of, 0

    def _comes(self) -> bool:
        self._calls += 1
        return self._calls - 1 not in self._nothing

    def Allgather(self, mine: np.ndarray, all_of_them: np.ndarray) -> None:
        comes = self._comes()
        for rank in range(self.size):
            if comes or rank != self._of:
                all_of_them[rank] = mine[0]

    def Allgatherv(self, mine: list[Any], received: list[Any]) -> None:
        comes, (buffer, (sizes, starts), _) = self._comes(), received
        for rank, (start, size) in enumerate(zip(starts, sizes, strict=True)):
            if comes or rank != self._of:
                buffer[start : start + size] = mine[0]

    def Gather(self, mine: np.ndarray, all_of_them: np.ndarray, root: int) -> None:
        self.Allgather(mine, all_of_them)

    def Gatherv(self, mine: list[Any], received: list[Any], root: int) -> None:
        self.Allgatherv(mine, received)


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_what_all_tell_comes_in_their_order(value: Any) -> None:
    for gather in (gather_all, gather_at_zero):
        for comm in (MPI.COMM_SELF, Others()):
            told = gather(comm, value)  # type: ignore[arg-type]
            assert len(told) == comm.size
            for one in told:
                np.testing.assert_equal(one, value)
    np.testing.assert_equal(from_rank(MPI.COMM_SELF, 0, value), value)


@pytest.mark.parametrize("gather", [gather_all, gather_at_zero])
@pytest.mark.parametrize("call", [0, 1], ids=["sizes", "messages"])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_what_has_not_come_is_not_read(gather: Any, call: int, rank: int) -> None:
    """Nor is what an older message has left in the same memory."""
    for _ in range(20):
        gather(Others(), ("an older one", frozenset({1})))
        with pytest.raises(UNREADABLE, match="has not come"):
            gather(Others(nothing=(call,), of=rank), ("a newer one", frozenset({2})))


class Silent:
    """A communicator whose broadcasts succeed, and bring nothing from the given one on."""

    size, rank = 2, 1

    def __init__(self, silent_from: int) -> None:
        self._left = silent_from

    def Bcast(self, buffer: Any, root: int) -> None:
        self._left -= 1
        if self._left >= 0:
            buffer[0] = 30


@pytest.mark.parametrize("silent_from", [0, 1])
def test_a_broadcast_that_brings_nothing_is_not_read(silent_from: int) -> None:
    with pytest.raises(UNREADABLE, match="has not come"):
        from_rank(Silent(silent_from), 0, "mine")  # type: ignore[arg-type]


def test_decisions_are_of_all() -> None:
    assert total(Others(), 4) == 12  # type: ignore[arg-type]
    assert all_have(Others(), "this") and not all_have(Others(), None)  # type: ignore[arg-type]
