"""What brings a worker's environments back to where they stand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dppo.config import CheckpointConfig
from dppo.training.replay import Replay
from tests.parts import Run, make_parts, probe


def test_saved_actions_are_those_since_each_episode_began(tmp_path: Path) -> None:
    """Over several rollouts and workers, against all that was sent."""
    run = Run(tmp_path, workers=2, checkpoint=CheckpointConfig(every=0))
    for _ in range(5):
        run.iterate()
    run.tracker.saver.finish("preempted")
    saved = run.saved()
    assert sorted(saved.ranks) == [1, 2]
    for rank, place in enumerate(run.places, 1):
        row, envs = saved.ranks[rank]
        sent = np.concatenate([r.env_actions for r in place.reports])
        report = place.reports[-1]
        assert row == place.collector.row == 80
        assert [e.env for e in envs] == [place.collector.first_env, place.collector.first_env + 1]
        for i, state in enumerate(envs):
            np.testing.assert_array_equal(state.actions, sent[report.episode_first_rows[i] :, i])
            np.testing.assert_array_equal(state.observation, report.observations[i])
            assert (state.episode, state.episode_length) == (report.episode_numbers[i], report.episode_lengths[i])
            assert (state.episode_return, state.discounted_return) == (
                report.episode_returns[i],
                report.discounted_returns[i],
            )


def test_actions_of_ended_episodes_are_forgotten(tmp_path: Path) -> None:
    """Memory does not grow with the run."""
    run = Run(tmp_path, env=probe("Truncation"), horizon=16)
    for _ in range(30):
        run.iterate()
    assert len(run.tracker.saver.boundary.replays[0].chunks) <= 2
    run.tracker.files.close()


def told(rollouts: int) -> Replay:
    """A replay that was told of so many rollouts, of 4 rows each."""
    place, replay = make_parts(horizon=4), Replay()
    for _ in range(rollouts):
        place.rollout()
        replay.extend(place.reports[-1])
    return replay


def test_at_the_start_nothing_is_known() -> None:
    replay = Replay()
    assert replay.is_empty and replay.next_row == 0
    assert replay.states() == (0, [])


def test_a_rollout_that_is_told_twice_is_held_once() -> None:
    place, replay = make_parts(), Replay()
    place.rollout()
    for _ in range(2):
        replay.extend(place.reports[0])
    assert replay.next_row == 16 and len(replay.chunks) == 1


def test_a_copy_stays_as_it_was() -> None:
    place, replay = make_parts(), Replay()
    place.rollout()
    replay.extend(place.reports[0])
    copy = replay.copy()
    place.rollout()
    replay.extend(place.reports[1])
    assert (copy.next_row, replay.next_row) == (16, 32)
    assert [row for row, _ in copy.chunks] == [0]


def test_what_a_checkpoint_held_is_gone_on_with() -> None:
    """Three rollouts in one piece, and one after a resume from the first two, give the same."""
    whole = told(3)
    row, envs = told(2).states()
    resumed = Replay()
    resumed.start_from(row, envs)
    assert not resumed.is_empty and resumed.next_row == row == 8
    assert resumed.states() == (row, envs), "until it is told of a rollout"
    assert whole.last is not None
    resumed.extend(whole.last)
    for a, b in zip(resumed.states()[1], whole.states()[1], strict=True):
        np.testing.assert_array_equal(a.actions, b.actions)
        assert (a.env, a.episode, a.row, a.episode_return) == (b.env, b.episode, b.row, b.episode_return)


def test_an_environment_between_two_episodes_keeps_the_actions_of_the_one_before() -> None:
    """But for the last: it is that which ends it."""
    place, replay = make_parts(env=probe("Truncation"), horizon=1), Replay()
    for _ in range(50):
        place.rollout()
        replay.extend(place.reports[-1])
        if place.reports[-1].last_episodes is not None:
            break
    row, envs = replay.states()
    last = place.reports[-1].last_episodes
    assert last is not None and len(envs[0].actions) == 0
    assert len(envs[0].last_actions) == row - 1 - last.first_rows[0]
    assert (envs[0].last_return, envs[0].last_reward) == (last.returns[0], last.last_rewards[0])
