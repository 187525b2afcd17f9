"""Windows of episodes: whatever their lengths, whoever made them, and whatever happened meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from dppo.data import Episode, Report
from dppo.training.episodes import WINDOW, EpisodeCounter

Draw = Callable[[np.random.Generator, int], np.ndarray]

LENGTHS: dict[str, tuple[Draw, float]] = {
    "geometric": (lambda rng, n: rng.geometric(0.02, n), 50),
    "uniform": (lambda rng, n: rng.integers(1, 100, n), 50),
    "long ones are rare": (lambda rng, n: np.where(rng.random(n) < 0.1, 300, 10), 39),
}
"""How long episodes are, and their mean."""


def report(worker: int, first_row: int, rows: int, episodes: list[Episode], cut: list[int] | None = None) -> Report:
    told: Any = Report.__new__(Report)  # of which the counter reads this
    told.worker, told.first_row, told.env_actions = worker, first_row, np.zeros(rows)
    told.episodes, told.episodes_cut = episodes, cut or []
    return told


class Lived:
    """Environments that began together and end by chance, -1 a step; rollouts of 16 rows."""

    ROWS = 16

    def __init__(self, draw: Draw, num_envs: int, seed: int) -> None:
        self.draw, self.rng, self.row = draw, np.random.default_rng(seed), 0
        self.lengths = draw(self.rng, num_envs).astype(int)
        self.left = self.lengths.copy()
        self.has_ended = np.zeros(num_envs, bool)
        self.by_beginning: list[tuple[int, int, int]] = []

    def rollout(self) -> list[Episode]:
        episodes = []
        for row in range(self.row, self.row + self.ROWS):
            self.left -= 1
            for env in np.flatnonzero(self.left == 0).tolist():
                length = int(self.lengths[env])
                episodes.append(Episode(row, env, -float(length), length))
                self.by_beginning.append((row + 1 - length, env, length))
                self.has_ended[env] = True
                self.lengths[env] = self.left[env] = self.draw(self.rng, 1)[0]
        self.row += self.ROWS
        return episodes


def iterations(lived: Lived, counter: EpisodeCounter, workers: int = 1) -> Iterator[int]:
    """Numbers of iterations that were counted; environments are dealt out to the workers."""
    share = len(lived.left) // workers
    counter.wait_for(range(workers), 0)
    for number in range(1, 10_000):
        row, episodes = lived.row, lived.rollout()
        counter.count(
            [
                report(w, row, Lived.ROWS, [e for e in episodes if e.env // share == w])
                for w in reversed(range(workers))
            ],
            number,
        )
        yield number


# -- what a target is judged by --------------------


@pytest.mark.parametrize("name", LENGTHS)
def test_the_first_full_window_is_not_of_the_short_ones(name: str) -> None:
    """Over 8 runs of 248 environments its mean is the true one, to three standard errors. That of the last ones
    is not.
    """
    draw, mean = LENGTHS[name]
    settled, last = [], []
    for seed in range(8):
        lived, counter = Lived(draw, 248, seed), EpisodeCounter(248)
        for _ in iterations(lived, counter):
            if len(last) == seed and counter.total >= WINDOW:
                last.append(counter.return_mean)
            if counter.settled_mean is not None:
                break
        assert lived.has_ended.all(), "nothing is settled before every environment has ended an episode"
        settled.append(counter.settled_mean)
    error = np.std(draw(np.random.default_rng(0), 10_000)) / np.sqrt(WINDOW * 8)
    assert abs(np.mean(settled) + mean) < 3 * error
    assert np.mean(last) > -0.8 * mean


@pytest.mark.parametrize("target", [-31.0, -38.0, -42.0])
def test_a_target_is_not_met_by_the_shortest_episodes(target: float) -> None:
    """The true mean is -50. Until every environment has ended an episode, nothing is decided."""
    for seed in range(5):
        lived, counter = Lived(LENGTHS["geometric"][0], 248, seed), EpisodeCounter(248)
        for number in iterations(lived, counter):
            reached = counter.reached(target)
            assert not reached or (lived.has_ended.all() and counter.settled_mean >= target)
            if number == 6:
                assert counter.return_mean is not None and not reached
            if lived.has_ended.all():
                break


@pytest.mark.parametrize("num_envs", [1, 5, 110])
def test_settled_are_those_before_the_oldest_under_way(num_envs: int) -> None:
    """Against all that ended, in the order of beginnings: the newest 100, or all that settled together."""
    lived, counter = Lived(LENGTHS["geometric"][0], num_envs, 3), EpisodeCounter(num_envs)
    before = new = 0
    for number in iterations(lived, counter):
        oldest = min((lived.row - lived.lengths + lived.left).tolist())
        settled = [-length for began, _, length in sorted(lived.by_beginning) if began < oldest]
        if len(settled) > before:
            before, new = len(settled), len(settled) - before
        assert counter.as_dict()["settled"] == settled[-max(WINDOW, new) :]
        if number == 60 + 900 // num_envs:
            break
    if num_envs == 1:
        assert counter.settled_mean == counter.return_mean


def test_the_long_episode_that_others_waited_for_is_in_the_window() -> None:
    """With 300 others that began after it: of the newest 100 it would never be one."""
    counter = EpisodeCounter(2)
    counter.wait_for([0], 0)
    for number in (1, 2):
        row = 300 * (number - 1)
        short = [Episode(row + r, 0, 0.0, 1) for r in range(300)]
        counter.count([report(0, row, 300, [*short, Episode(row + 299, 1, -3000.0, 300)])], number)
        assert counter.settled_mean == pytest.approx(-3000 / 301)
        assert not counter.reached(-9.0)


def test_both_windows_have_to_be_full_and_at_the_target() -> None:
    counter = EpisodeCounter(50)
    counter.wait_for([0], 0)
    for number in (1, 2):
        assert not counter.reached(1.0)
        counter.count([report(0, 16 * number, 16, [Episode(16 * number, e, 1.0, 5) for e in range(50)])], number)
    assert counter.reached(1.0) and not counter.reached(1.001)
    counter.count([report(0, 48, 16, [Episode(48, 0, -9.0, 5)])], 3)
    assert (counter.return_mean, counter.settled_mean) == (0.9, 1.0), "another's that began together is under way"
    assert not counter.reached(1.0) and counter.reached(0.9)


def test_what_waits_for_an_environment_that_never_ends_takes_no_more_and_more_memory() -> None:
    """Of 9,000 the newest are kept, and all that began after one that is under way."""
    counter = EpisodeCounter(4)
    counter.wait_for([0], 0)
    rng = np.random.default_rng(0)
    returns: list[float] = []
    for number in range(1, 3001):
        row = 16 * (number - 1)
        ended = sorted((int(rng.integers(0, 16)), e) for e in (0, 1, 2))
        returns += rng.normal(size=3).tolist()
        episodes = [Episode(row + r, e, v, 5) for (r, e), v in zip(ended, returns[-3:], strict=True)]
        counter.count([report(0, row, 16, episodes)], number)
        assert len(counter.as_dict()["waiting"]) // 3 <= 10 * (WINDOW + 4) + 3
    counter.count([report(0, 48_000, 16, [Episode(48_000, 3, 7.0, 5)])], 3001)
    settled = counter.as_dict()["settled"]
    assert settled[0] == 7.0, "it began first"
    assert set(settled[1:]) <= set(returns) and set(returns[-90:-6]) <= set(settled)


def test_an_environment_that_never_ends_is_named() -> None:
    counter = EpisodeCounter(2)
    counter.wait_for([0], 0)
    for number in range(1, 1200):
        assert counter.stuck is None or number > 1000
        counter.count([report(0, 16 * number, 16, [Episode(16 * number, 0, 1.0, 5)])], number)
    assert counter.stuck == (1, 0)
    assert counter.return_mean == 1.0 and not counter.reached(0.0)
    counter.count([report(0, 16 * 1200, 16, [Episode(16 * 1200, 1, 1.0, 5)])], 1200)
    assert counter.stuck is None and counter.reached(1.0)


# -- the run's own time --------------------


def test_workers_whose_rollouts_are_cut_short_stay_in_the_window() -> None:
    """A row of a slow worker takes four times as long: its 16 rows of an iteration last as long as the others' 64. Of
    320 episodes that end in each iteration 64 are its own; also after a thousand iterations in which it fell behind.
    """
    counter = EpisodeCounter(4)
    counter.wait_for([0, 1], 0)
    for number in (1, 2, 1000):
        first = 64 * (number - 1), 16 * (number - 1)
        fast = [Episode(first[0] + r, e, 0.0, 1) for r in range(64) for e in range(4)]
        slow = [Episode(first[1] + r, e, -1.0, 1) for r in range(16) for e in range(4, 8)]
        counter.count([report(0, first[0], 64, fast), report(1, first[1], 16, slow)], number)
        assert counter.return_mean == -0.2
        assert counter.settled_mean == -0.2


def test_an_iteration_comes_after_the_one_before_whatever_the_rows() -> None:
    """A replacement's rows begin far above the others'; a worker that was late tells of two rollouts at once."""
    counter = EpisodeCounter(1)
    counter.count([report(0, 9000, 4, [Episode(9003, 0, 1.0, 1)])], 1)
    late = [report(1, 4, 4, [Episode(4, 1, 4.0, 1)]), report(1, 0, 4, [Episode(0, 1, 2.0, 1)])]
    counter.count([*late, report(0, 9004, 8, [Episode(9005, 0, 3.0, 1)])], 2)
    assert counter.as_dict()["returns"] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("workers", [2, 4])
def test_the_layout_over_workers_changes_nothing(workers: int) -> None:
    draw = LENGTHS["geometric"][0]
    one, many = EpisodeCounter(8), EpisodeCounter(8 // workers)
    for number, _ in zip(iterations(Lived(draw, 8, 1), one), iterations(Lived(draw, 8, 1), many, workers), strict=True):
        assert one.as_dict() == many.as_dict()
        if number == 300:
            break
    assert len(one.as_dict()["settled"]) == WINDOW


# -- cut episodes, resumes, deaths --------------------


def test_counts_are_plain_values_and_go_on_alike() -> None:
    """Saved after each iteration, as JSON, and gone on with."""
    counters = [EpisodeCounter(30), EpisodeCounter(30)]
    lived = Lived(LENGTHS["geometric"][0], 30, 0)
    for counter in counters:
        counter.wait_for([0], 0)
    for number in range(1, 60):
        told = [report(0, lived.row, Lived.ROWS, lived.rollout())]
        counters[1] = EpisodeCounter(30, json.loads(json.dumps(counters[1].as_dict())))
        counters[1].wait_for([0], number - 1)
        for counter in counters:
            counter.count(told, number)
        assert counters[0].as_dict() == counters[1].as_dict()
    assert len(counters[0].as_dict()["settled"]) >= WINDOW and counters[0].as_dict()["waiting"]


def test_a_cut_takes_what_was_waiting_in_its_environment() -> None:
    """A short episode of environment 1 has ended, the long one behind it is lost: the first alone would be a lie."""
    counter = EpisodeCounter(2)
    counter.wait_for([0], 0)
    counter.count([report(0, 0, 4, [Episode(3, 1, -4.0, 4)])], 1)
    counter.count([report(0, 4, 4, [Episode(5, 1, -2.0, 2)])], 2)
    assert counter.as_dict()["settled"] == [], "environment 0 is still in its first"
    ended = [Episode(103, 0, -12.0, 12), Episode(102, 1, -3.0, 3)]
    counter.count([report(0, 100, 4, ended, cut=[1])], 3)
    assert counter.as_dict()["returns"] == [-4.0, -2.0, -3.0, -12.0] and counter.total == 4
    assert counter.as_dict()["settled"] == [-12.0, -3.0]
    assert counter.as_dict()["under_way"] == [[0, 1], [3.0, 2.75]]


def test_a_run_that_begins_anew_again_and_again_is_not_judged_by_short_episodes() -> None:
    """All environments begin anew every 40 iterations, as native forms do on resume."""
    draw, mean = LENGTHS["long ones are rare"]
    settled = []
    for seed in range(10):
        lived, counter = Lived(draw, 60, seed), EpisodeCounter(60)
        counter.wait_for([0], 0)
        for number in range(1, 140):
            cut = list(range(60)) if number % 40 == 0 else []
            if cut:
                lived = Lived(draw, 60, 1000 * seed + number)
            row = lived.row
            counter.count([report(0, row, Lived.ROWS, lived.rollout(), cut)], number)
            if number % 40 == 39 or 0 < number % 40 < 10:
                settled += counter.as_dict()["settled"]
    assert np.mean(settled) == pytest.approx(-mean, abs=6)


def test_the_dead_are_not_waited_for() -> None:
    counter = EpisodeCounter(1)
    assert counter.wait_for([0, 1, 2], 0) == 0
    counter.count([report(0, 0, 4, [Episode(3, 0, 1.0, 4)]), report(1, 0, 4, [])], 1)
    assert counter.as_dict()["settled"] == []
    assert counter.wait_for([0, 2], 1) == 1
    counter.count([report(2, 0, 4, [Episode(3, 2, 2.0, 4)]), report(1, 4, 4, [Episode(7, 1, 3.0, 8)])], 2)
    assert counter.as_dict()["settled"] == [1.0, 2.0], "the last word of a dead one leaves out what it had under way"
    assert counter.as_dict()["returns"] == [1.0, 3.0, 2.0]
    assert counter.wait_for([0, 1, 2], 2) == 0
    assert dict(zip(*counter.as_dict()["under_way"], strict=True)) == {0: 1.0, 2: 2.0, 1: 2}


def test_times_are_in_order() -> None:
    """A beginning is the end of the episode before."""
    lived, counter = Lived(LENGTHS["geometric"][0], 3, 0), EpisodeCounter(3)
    seen = []
    for number in iterations(lived, counter):
        seen.append(min(counter.as_dict()["under_way"][1]))
        if number == 50:
            break
    assert all(a <= b for a, b in pairwise(seen)) and seen[-1] > 40
