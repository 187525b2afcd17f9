"""Who takes part after deaths: members, and which replacement gets which worker and rank."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from dppo.run.members import MAX_RESPAWNS, Member, assign_roles, free_ranks, to_replace


def crew(*members: tuple[int, int | None]) -> list[Member]:
    """Of (rank, worker), the server's first."""
    return [Member(rank, "host", 100 + rank, worker) for rank, worker in members]


def start(num_ranks: int) -> list[Member]:
    return crew((0, None), *((rank, rank - 1) for rank in range(1, num_ranks)))


def seated(members: list[Member]) -> list[tuple[int, int | None]]:
    return [(member.rank, member.worker) for member in members]


def regrouped(members: list[Member], *dead: int) -> list[Member]:
    """Without those ranks, as `recover` assigns roles to the members that are left."""
    return assign_roles([member for member in members if member.rank not in dead])


def replaced(members: list[Member], num_ranks: int, respawns: dict[int, int]) -> list[Member]:
    """As `replace_lost` does it, without processes."""
    wanted, _ = to_replace(members, num_ranks, respawns)
    if not wanted:
        return members
    new = [Member(rank, "host", 1000, worker) for worker, rank in free_ranks(wanted, members, num_ranks)]
    for worker in wanted:
        respawns[worker] = respawns.get(worker, 0) + 1
    everyone = [replace(members[0], worker=None), *members[1:], *new]
    return sorted(everyone, key=lambda member: -1 if member.worker is None else member.worker)


@pytest.mark.parametrize(
    ("left", "num_ranks", "respawns", "given", "given_up"),
    [
        # one worker, several, all, none
        (crew((0, None), (1, 0), (3, 2)), 4, {}, [(1, 2)], []),
        (crew((0, None), (2, 1)), 4, {}, [(0, 1), (2, 3)], []),
        (crew((0, None), (1, 0), (2, 1)), 3, {}, [], []),
        # one is left dead, another dies once: there are more free ranks than replacements
        (crew((0, None), (2, 1)), 4, {0: 3}, [(2, 3)], [0]),
        (crew((0, None), (1, 0)), 4, {2: 3}, [(1, 2)], [2]),
        (crew((0, None), (2, 1)), 5, {0: 3, 3: 7}, [(2, 3)], [0, 3]),
        (crew((0, None), (1, 0)), 3, {1: 3}, [], [1]),
        # the server has died: rank 1 serves, its worker gets the rank that is free
        (crew((1, None), (2, 1), (3, 2)), 4, {}, [(0, 0)], []),
        (crew((1, None), (3, 2)), 4, {}, [(0, 0), (1, 2)], []),
        (crew((1, None), (2, 1)), 4, {2: 3}, [(0, 0)], [2]),
        (crew((1, None), (2, 1)), 4, {0: 3}, [(2, 3)], [0]),
        # and the next one, too
        (crew((2, None), (3, 2)), 4, {}, [(0, 1), (1, 0)], []),
        (crew((2, None), (3, 2), (0, 0)), 4, {0: 1}, [(1, 1)], []),
        # one is left alone, with a worker of its own, which somebody else becomes
        (crew((2, 1)), 4, {}, [(0, 1), (1, 0), (2, 3)], []),
        (crew((0, 0)), 3, {}, [(0, 1), (1, 2)], []),
        (crew((0, 0)), 3, {1: 3}, [(0, 1)], [1]),
        (crew((0, 0)), 3, {0: 3, 1: 3}, [], [0, 1]),
        (crew((0, 0)), 3, {0: 3}, [(1, 2)], [0]),
        (crew((1, 0)), 2, {}, [(0, 0)], []),
        (crew((0, 0)), 1, {}, [], []),
    ],
)
def test_which_replacement_gets_which_worker_and_rank(
    left: list[Member],
    num_ranks: int,
    respawns: dict[int, int],
    given: list[tuple[int, int]],
    given_up: list[int],
) -> None:
    """(worker, rank) of each: its own rank where that is free."""
    wanted, left_dead = to_replace(left, num_ranks, respawns)
    assert free_ranks(wanted, left, num_ranks) == given
    assert left_dead == given_up


@pytest.mark.parametrize(
    ("left", "workers", "given"),
    [
        (crew((0, None), (1, 0), (5, 2)), [1], [(1, 3)]),
        (crew((0, None)), [0, 1, 2], [(0, 1), (1, 3), (2, 5)]),
        # the server has died: the head of group 0 serves, and the group's followers are still there
        (crew((1, None), (3, 1)), [0, 2], [(0, 7), (2, 5)]),
        # and the next one, too
        (crew((7, None), (3, 1), (5, 2)), [0], [(0, 1)]),
        # the head of group 1 has served and died, and the one of group 0 serves now: group 1 has the first new ranks
        (crew((1, None), (7, 1), (5, 2)), [0], [(0, 9)]),
        (crew((9, None), (7, 1), (5, 2)), [0], [(0, 1)]),
    ],
)
def test_a_group_of_two_gets_its_ranks_of_the_start_or_new_ones(
    left: list[Member], workers: list[int], given: list[tuple[int, int]]
) -> None:
    assert free_ranks(workers, left, num_ranks=4, ranks_each=2) == given


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_all_orders_of_death(num_ranks: int) -> None:
    """Every sequence of three moments at which some ranks, but not all, die together: no member comes twice; whoever
    is not left dead is there again.
    """
    ranks = range(num_ranks)
    moments = [dead for n in range(1, num_ranks) for dead in itertools.combinations(ranks, n)]
    for before in ({}, {num_ranks - 2: MAX_RESPAWNS}, {0: MAX_RESPAWNS - 1}):
        for deaths in itertools.product(moments, repeat=3):
            members, respawns = start(num_ranks), dict(before)
            for dead in deaths:
                if {member.rank for member in members} <= set(dead):
                    break
                members = replaced(regrouped(members, *dead), num_ranks, respawns)
                assert len({member.rank for member in members}) == len(members) <= num_ranks
                workers = [member.worker for member in members if member.worker is not None]
                assert workers == sorted(set(workers)) and workers
                assert len(members) == 1 or (members[0].worker is None and len(workers) == len(members) - 1)
                absent = set(range(num_ranks - 1)) - set(workers)
                assert all(respawns[w] >= MAX_RESPAWNS for w in absent), (before, deaths)


def test_the_lowest_rank_serves_and_one_alone_works_too() -> None:
    assert seated(regrouped(start(4), 2)) == [(0, None), (1, 0), (3, 2)]
    assert seated(regrouped(start(4), 0)) == [(1, None), (2, 1), (3, 2)]
    assert seated(regrouped(start(4), 0, 1, 2)) == [(3, 2)]
    assert seated(regrouped(start(4), 1, 2, 3)) == [(0, 0)]


def test_a_worker_that_dies_whenever_it_is_replaced_is_left_dead() -> None:
    """Also where its rank would be left alone without it: that one works by itself then."""
    members, respawns = start(2), dict[int, int]()
    for _ in range(MAX_RESPAWNS):
        members = replaced(regrouped(members, members[-1].rank), 2, respawns)
        assert seated(members) == [(0, None), (1, 0)]
    members = replaced(regrouped(members, members[-1].rank), 2, respawns)
    assert seated(members) == [(0, 0)]
