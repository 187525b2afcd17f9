"""Which ranks are a group, and where."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from mpi4py import MPI

from dppo.config import Config
from dppo.errors import RankFailure, UsageError
from dppo.run.env_group import Seat
from dppo.run.env_groups import (
    SPREAD,
    described,
    listed,
    make_groups,
    refuse_to_span,
    shortened,
    start_of,
    unlike_agents,
    whole,
)  # fmt: skip

SEATS = [Seat("node1", frozenset({core})) for core in range(4)] + [Seat("node2", frozenset({0, 1, 2, 8}))] * 3


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        (range(1, 3), "ranks 1-2 on node1, cores 1-2"),
        (range(1, 2), "rank 1 on node1, core 1"),
        (range(3, 5), "ranks 3-4 on node1, core 3 and node2, cores 0-2,8"),
    ],
)
def test_the_first_lines_say_where_a_group_is(ranks: range, text: str) -> None:
    assert described(ranks, SEATS) == text


def test_a_group_on_two_nodes_is_refused_with_the_repair() -> None:
    hosts, repair = [seat.host for seat in SEATS], SPREAD.format(each=2)
    refuse_to_span("group", [range(1, 4), range(4, 7)], hosts, repair)
    with pytest.raises(UsageError, match=r"group 1, ranks 3-4, would lie on node1 and node2: place 1 \+ k\*2 ranks"):
        refuse_to_span("group", [range(1, 3), range(3, 5), range(5, 7)], hosts, repair)


def test_ranks_are_listed_as_ranges() -> None:
    assert [listed(ranks) for ranks in ([3], [3, 4, 5], [5, 3])] == ["rank 3", "ranks 3-5", "ranks 3,5"]


def test_long_lists_are_shortened() -> None:
    assert shortened(["line"] * 18, "groups") == ["line"] * 16 + ["and 2 more groups"]
    assert shortened(["line"], "groups") == ["line"]


def test_one_rank_is_no_group() -> None:
    for config in (Config(), Config(env_ranks=4, dry_run=True)):
        assert make_groups(config, MPI.COMM_SELF) == (MPI.COMM_SELF, None, [])


@pytest.mark.parametrize(
    ("left", "leave"),
    [
        ([0, 1, 2, 3, 5, 6], [3]),  # rank 4 has died
        ([0, 2, 3, 6], [2, 3, 6]),
        ([1, 2, 3, 4, 5, 6], [2]),  # rank 0 has died: rank 1 serves
        ([2, 3, 4, 5, 6], []),
        ([0, 3, 4], []),
    ],
)
def test_groups_that_are_not_whole_end(left: list[int], leave: list[int]) -> None:
    assert [rank for rank in left[1:] if not whole(2, left, rank)] == leave


class Told:
    def __init__(self) -> None:
        self.outcomes: list[object] = []

    def dismiss(self, outcome: object) -> None:
        self.outcomes.append(outcome)


@pytest.mark.parametrize("error", [UsageError("no such id"), RankFailure("a death")])
def test_followers_are_told_why_a_start_has_ended(error: Exception) -> None:
    group = Told()
    with pytest.raises(type(error)), start_of(group):  # type: ignore[arg-type]
        raise error
    assert [(type(outcome), str(outcome)) for outcome in group.outcomes] == [(type(error), str(error))]


def test_workers_with_other_agents_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 steps no environments; the worker of the last rank has other agents than the first."""
    told: list[Any] = [None, ("a", "b"), ("a", "b")]
    monkeypatch.setattr("dppo.run.env_groups.gather_all", lambda comm, mine: [*told, mine])
    parts: Any = SimpleNamespace(envs=SimpleNamespace(agents=("a", "b")))
    assert unlike_agents(MPI.COMM_SELF, parts) is None and unlike_agents(MPI.COMM_SELF, None) is None
    parts.envs.agents = ("a", "c")
    assert unlike_agents(MPI.COMM_SELF, parts) == (
        "the environments of worker 2 have the agents ['a', 'c'], and those of worker 0 ['a', 'b']: the agents of all"
        " must be the same"
    )
