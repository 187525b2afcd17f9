"""What rank 0 counts, and why a run ends; without clocks, files and environments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dppo.config import Config
from dppo.data import Episode, Report
from dppo.training.counters import Counters, Losses
from dppo.training.state import TrainingState
from tests.parts import make_parts

HORIZON, NUM_ENVS = 4, 2


def report(
    worker: int,
    first_row: int,
    returns: tuple[float, ...] = (),
    *,
    iteration: int = 0,
    numbers: tuple[int, int] = (0, 0),
    cut: tuple[int, ...] = (),
) -> Report:
    """A rollout of HORIZON rows; an episode of the worker's first environment ends in each of the first rows."""
    first_env = worker * NUM_ENVS
    episodes = [Episode(first_row + i, first_env, value, 1) for i, value in enumerate(returns)]
    zeros = np.zeros(NUM_ENVS)
    return Report(
        worker, first_env, first_row, HORIZON * NUM_ENVS, episodes, np.zeros((HORIZON, NUM_ENVS)), np.array(numbers),
        zeros, zeros, zeros, zeros, zeros, zeros, None, 0.0, 0.0, 0.0, iteration=iteration, episodes_cut=list(cut),
    )  # fmt: skip


def counters(saved: dict[str, Any] | None = None, **changes: Any) -> Counters:
    out = Counters(Config(num_envs=NUM_ENVS, **changes), saved)
    out.wait_for([0, 1], 0)
    return out


def at(env_steps: int) -> TrainingState:
    state = make_parts().state
    state.env_steps = env_steps
    return state


def test_rollouts_are_pending_until_the_iteration_is_closed() -> None:
    counted = counters()
    assert counted.add(report(1, 0)) and counted.add(report(0, 0))
    assert (counted.pending_rollouts, counted.pending_env_steps) == (2, 16)
    reports, ended = counted.close_iteration(1)
    assert [r.worker for r in reports] == [0, 1] and ended == 0
    assert (counted.pending_rollouts, counted.pending_env_steps) == (0, 0)


def test_a_rollout_counts_once_and_later_ones_after_a_gap_too() -> None:
    """The reports between may have gone with a server that died."""
    counted = counters()
    assert counted.add(report(0, 0))
    assert not counted.add(report(0, 0))
    assert counted.add(report(0, 12))
    assert counted.rows == {0: 16}
    assert not counted.add(report(0, 8))


def test_no_episode_number_is_ever_used_again() -> None:
    counted = counters()
    counted.add(report(0, 0, numbers=(3, 9)))
    counted.add(report(1, 0, numbers=(1, 2)))
    assert counted.next_episode == 10


def test_counters_go_on_where_they_were_saved() -> None:
    counted = counters()
    counted.losses.ranks_lost = 2
    counted.add(report(0, 0, (5.0, 7.0), numbers=(4, 0)))
    counted.close_iteration(1)
    saved = counted.as_dict(train_s=12.5)
    again = counters(saved)
    assert again.as_dict(again.train_s) == saved
    assert (again.losses, again.next_episode, again.train_s) == (Losses(ranks_lost=2), 5, 12.5)
    assert not again.add(report(0, 0))
    again.losses.ranks_lost, again.rows[0] = 3, 99
    assert (counted.losses.ranks_lost, counted.rows[0]) == (2, 4), "what was saved is a copy"


def test_cut_episodes_are_losses() -> None:
    counted = counters()
    counted.add(report(0, 0, cut=(0, 1)))
    counted.close_iteration(1)
    counted.wait_for([0], 1)  # worker 1 has died, each of its environments in an episode
    assert counted.losses.episodes_cut == 4


def test_a_dead_servers_lines_are_caught_up_with() -> None:
    """Its standby knew of iteration 1, its last line is of iteration 3."""
    whole, late = counters(), counters()
    for iteration, value in ((0, 1.0), (1, 2.0), (2, 3.0)):
        for counted in (whole, late):
            counted.add(report(0, HORIZON * iteration, (value,), iteration=iteration))
        whole.close_iteration(iteration + 1)
    line = {"episodes": 3, "train_s": 8.0, **dict.fromkeys(Losses.__dataclass_fields__, 0), "updates_lost": 6}
    late.catch_up(line)
    assert late.pending_rollouts == 0
    assert late.losses == Losses(updates_lost=6)
    assert late.as_dict(0.0) == whole.as_dict(0.0) | {"losses": late.as_dict(0.0)["losses"]}


@pytest.mark.parametrize(("env_steps", "reason"), [(99, None), (100, "finished"), (101, "finished")])
def test_a_run_ends_when_its_steps_are_done(env_steps: int, reason: str | None) -> None:
    assert counters(total_steps=100).reason_to_end(at(env_steps)) == reason


def test_a_target_that_is_reached_with_the_last_step_is_the_reason() -> None:
    """It is not before every environment has ended an episode: the second of worker 0 is late."""
    counted = Counters(Config(num_envs=NUM_ENVS, total_steps=100, target_return=1.0))
    counted.wait_for([0], 0)
    for iteration in range(60):
        counted.add(report(0, HORIZON * iteration, (1.0,) * HORIZON, iteration=iteration))
        counted.close_iteration(iteration + 1)
    assert counted.episodes.return_mean == 1.0
    assert counted.reason_to_end(at(99)) is None
    assert counted.reason_to_end(at(100)) == "finished"
    late = report(0, HORIZON * 60, iteration=60)
    late.episodes = [Episode(HORIZON * 60, 1, 1.0, 241)]
    counted.add(late)
    counted.close_iteration(61)
    assert counted.reason_to_end(at(100)) == "target"


def test_without_a_target_nobody_is_stuck() -> None:
    assert counters().waits_for_stuck is None
    assert counters(target_return=1.0).waits_for_stuck is None, "nor before an episode has ended"
