"""How stale a gradient may be, and who is shut out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dppo.training.staleness import ShutOut, UsualStaleness


def dropped(usual: UsualStaleness, worker: int, *staleness: int) -> list[bool]:
    """Which of a worker's gradients, one after another, are beyond their limit."""
    return [age > usual.limit(worker, age) for age in staleness]


@pytest.mark.parametrize("slower", [1, 10, 100, 10_000])
def test_a_worker_that_is_slower_takes_part_from_its_first_gradient_on(slower: int) -> None:
    usual, rng = UsualStaleness(3), np.random.default_rng(slower)
    ages = (2 * slower * rng.uniform(0.5, 1.5, 200)).astype(int)
    assert sum(dropped(usual, 1, *ages)) == 0


@pytest.mark.parametrize(("pace", "limit"), [(0, 12), (2, 12), (3, 12), (4, 16), (40, 160), (400, 1600)])
def test_what_is_out_of_the_ordinary_for_a_worker_is_too_stale(pace: int, limit: int) -> None:
    """Once and again: a few do not change what is usual. The others' limits are theirs."""
    usual = UsualStaleness(3)
    dropped(usual, 1, *[pace] * 8)
    assert dropped(usual, 1, limit, limit + 1, 1000 * limit, pace, limit + 1, pace) == [0, 1, 1, 0, 1, 0]
    assert dropped(usual, 0, 2, 2, 12, 13) == [0, 0, 0, 1]


def test_a_worker_that_has_become_slower_is_back_after_a_few() -> None:
    usual = UsualStaleness(2)
    assert not any(dropped(usual, 0, *[2] * 50))
    assert dropped(usual, 0, *[300] * 10) == [True] * 4 + [False] * 6


def test_one_that_has_become_fast_again_gets_its_old_limit() -> None:
    usual = UsualStaleness(2)
    dropped(usual, 0, *[300] * 20, *[1] * 8)
    assert usual.limit(0, 1) == 8


def test_the_first_has_no_limit_and_the_least_follows_the_number_of_workers() -> None:
    usual = UsualStaleness(7)
    assert usual.limit(3, 5) == math.inf
    assert usual.limit(3, 5) == 28


def told(shut_out: ShutOut, *used: bool) -> list[tuple[int, tuple[int, int]]]:
    """(gradient, what was said) of one worker."""
    found = ((i, shut_out.note(0, used=u)) for i, u in enumerate(used))
    return [(i, said) for i, said in found if said is not None]


def test_a_worker_that_is_shut_out_is_named_once() -> None:
    assert told(ShutOut(2), *[False] * 1000) == [(7, (8, 8))]


@pytest.mark.parametrize("pattern", [(True,), (True, False), (False, True, True), (True, True, True, False)])
def test_one_of_which_half_is_used_is_not(pattern: tuple[bool, ...]) -> None:
    assert told(ShutOut(1), *pattern * 200) == []


def test_one_of_which_most_is_dropped_is() -> None:
    assert told(ShutOut(1), *(True, False, False) * 200) == [(7, (5, 8))]


def test_who_gets_well_and_bad_again_is_named_again_but_rarely() -> None:
    wave = (*[False] * 40, *[True] * 40)
    found = told(ShutOut(1), *wave * 50)
    assert [i for i, _ in found] == [7, 96, 976]  # then at 9,770 at the earliest


def test_workers_are_told_apart() -> None:
    shut_out = ShutOut(3)
    said = [[shut_out.note(worker, used=worker != 1) for worker in range(3)] for _ in range(20)]
    assert [row for row in said if row != [None] * 3] == [[None, (8, 8), None]]
