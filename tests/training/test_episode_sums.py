"""What a worker's episodes have come to so far, worked out by hand."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from dppo.data import Episode, Rollout
from dppo.training.episode_sums import EpisodeSums


def count(sums: EpisodeSums, first_row: int, rewards: list[list[float]], ends: list[tuple[int, int]]) -> list[Episode]:
    """Counts a rollout in which episodes end by termination at these (row, environment)."""
    array = np.array(rewards, float).reshape(len(rewards), 2)
    dones = np.zeros(array.shape, bool)
    for row, env in ends:
        dones[row, env] = True
    rows, envs = (np.array(axis, int) for axis in (zip(*ends, strict=True) if ends else ([], [])))
    return sums.count(first_row, array, dones, np.zeros_like(dones), np.ones_like(dones), rows, envs)


def test_episodes_go_on_from_one_rollout_to_the_next() -> None:
    sums = EpisodeSums(2, first_env=6, gamma=0.9)
    assert count(sums, 0, [[1, 10], [2, 20]], []) == []
    assert count(sums, 2, [[4, 40], [8, 80]], [(0, 1), (1, 0)]) == [Episode(2, 7, 70.0, 3), Episode(3, 6, 15.0, 4)]
    assert (sums.returns.tolist(), sums.lengths.tolist()) == ([0, 80], [0, 1])
    assert sums.first_rows.tolist() == [4, 3]


def test_of_the_last_episodes_it_is_known_where_they_began_and_how_they_ended() -> None:
    sums = EpisodeSums(2, first_env=0, gamma=0.9)
    assert sums.last.first_rows.tolist() == [-1, -1]
    count(sums, 10, [[1, 1], [2, 3]], [(1, 0)])
    assert (sums.last.first_rows.tolist(), sums.last.returns[0], sums.last.last_rewards[0]) == ([0, -1], 3.0, 2.0)


def test_two_episodes_of_one_environment_within_a_rollout_are_counted_apart() -> None:
    sums = EpisodeSums(2, first_env=0, gamma=0.9)
    ended = count(sums, 0, [[1, 0], [2, 0], [3, 0]], [(0, 0), (2, 0)])
    assert [(e.row, e.episode_return, e.length) for e in ended] == [(0, 1.0, 1), (2, 5.0, 2)]


def test_a_rollout_of_no_rows_changes_nothing() -> None:
    sums = EpisodeSums(2, first_env=0, gamma=0.9)
    count(sums, 0, [[1, 2]], [])
    assert count(sums, 1, [], []) == []
    assert sums.returns.tolist() == [1, 2]


def test_how_far_episodes_are_is_a_copy() -> None:
    sums = EpisodeSums(2, first_env=0, gamma=0.9)
    numbers = np.array([3, 4])
    progress = sums.progress(numbers)
    numbers += 1
    sums.returns[0] = 9.0
    assert (progress.episodes.tolist(), progress.returns.tolist()) == ([3, 4], [0, 0])


class Rows:
    """Of a rollout, what discounting looks at; no episode ends but in `ends`."""

    def __init__(self, first_row: int, rewards: list[float], ends: tuple[int, ...] = ()) -> None:
        self.first_row, self.rewards = first_row, np.array(rewards, np.float32)[:, None]
        self.terminations = np.isin(np.arange(len(rewards)), ends)[:, None]
        self.truncations = np.zeros_like(self.terminations)


def discount(sums: EpisodeSums, rows: Rows) -> list[float]:
    values: list[float] = sums.discount(cast(Rollout, cast(Any, rows)))[:, 0].tolist()
    return values


def test_discounted_returns_run_on_and_begin_anew_with_an_episode() -> None:
    sums = EpisodeSums(1, first_env=0, gamma=0.5)
    assert discount(sums, Rows(0, [1, 1])) == [1, 1.5]
    assert discount(sums, Rows(2, [1, 1, 1], ends=(0,))) == [1.75, 1, 1.5]
    assert sums.discounted_returns.tolist() == [1.5]


def test_asked_again_it_says_the_same_and_moves_nothing() -> None:
    sums = EpisodeSums(1, first_env=0, gamma=0.5)
    for _ in range(3):
        assert discount(sums, Rows(0, [1, 1])) == [1, 1.5]
    assert sums.discounted_returns.tolist() == [1.5]


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_a_kept_rollout_that_was_gone_on_with_counts_its_new_rows_only(rows: int) -> None:
    whole, sums = EpisodeSums(1, first_env=0, gamma=0.5), EpisodeSums(1, first_env=0, gamma=0.5)
    rewards = [1.0, 2.0, 4.0]
    discount(sums, Rows(0, rewards[:rows]))
    assert discount(sums, Rows(0, rewards)) == discount(whole, Rows(0, rewards)) == [1, 2.5, 5.25]
    assert sums.discounted_returns.tolist() == whole.discounted_returns.tolist()
