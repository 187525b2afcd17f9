"""Collecting: what the environments really did, cut anywhere, under any layout, and restored from a checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from dppo.config import ModelConfig
from dppo.data import EnvState, Rollout
from dppo.envs import probes
from dppo.seeding import EpisodeSeeds
from dppo.training.replay import Replay
from tests.parts import NextStep, Parts, make_parts, probe, settle

ARRAYS = [
    "observations", "inputs", "actions", "env_actions", "rewards", "terminations", "truncations", "valid", "heads",
    "log_probs", "values",
]  # fmt: skip
"""Of a rollout, with axes [T, N]."""

ENVIRONMENTS = ["CartPole-v1", "Pendulum-v1", probe("Truncation"), probe("Copy"), probe("Bits")]


def joined(rollouts: Sequence[Rollout], name: str, axis: int) -> np.ndarray:
    return np.concatenate([getattr(r, name) for r in rollouts], axis)


# -- what really happened --------------------


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_a_rollout_is_what_single_environments_do(env: str) -> None:
    """An oracle of one environment after another, made by gymnasium.make and sent the same actions."""
    place = make_parts(env=env, num_envs=3, horizon=60)
    settle(place)
    rollout, _ = place.rollout()
    finals = {
        (int(t), int(i)): obs
        for t, i, obs in zip(rollout.final_rows, rollout.final_envs, rollout.final_observations, strict=True)
    }
    episodes: list[tuple[int, int, Any, int]] = []
    for i in range(3):
        single, seeds = gymnasium.make(env), EpisodeSeeds(place.config.seed, i, 1)
        observation, _ = single.reset(seed=seeds.next(0))
        total, length = 0.0, 0
        for t in range(60):
            np.testing.assert_array_equal(rollout.observations[t, i], observation)
            observation, reward, terminated, truncated, _ = single.step(rollout.env_actions[t, i])
            total, length = total + float(reward), length + 1
            assert rollout.rewards[t, i] == np.float32(reward)
            assert (rollout.terminations[t, i], rollout.truncations[t, i]) == (terminated, truncated)
            assert ((t, i) in finals) == (terminated or truncated)
            if terminated or truncated:
                np.testing.assert_array_equal(finals[t, i], observation)
                episodes.append((t, i, pytest.approx(total), length))
                observation, _ = single.reset(seed=seeds.next(0))
                total, length = 0.0, 0
        single.close()
    assert rollout.num_steps == 180 and rollout.num_rows == 60
    actual: list[Any] = [(e.row, e.env, e.episode_return, e.length) for e in rollout.episodes]
    assert actual == sorted(episodes, key=lambda e: e[:2])


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_heads_log_probs_and_values_are_those_of_the_acting_policy(env: str) -> None:
    place = make_parts(env=env)
    settle(place)
    rollout, _ = place.rollout()
    t, n = rollout.rewards.shape
    inputs = place.normaliser.inputs(rollout.observations.reshape(t * n, -1))
    np.testing.assert_array_equal(rollout.inputs.reshape(t * n, -1), inputs)
    head, value = place.policy.forward(inputs)
    np.testing.assert_allclose(rollout.heads.reshape(t * n, -1), head, atol=1e-6)
    np.testing.assert_allclose(rollout.values.reshape(-1), value, atol=1e-6)
    actions = rollout.actions.reshape(t * n, *rollout.actions.shape[2:])
    distribution = place.policy.distribution
    log_probs, _, _ = distribution.evaluate(head, actions)
    np.testing.assert_allclose(rollout.log_probs.reshape(-1), log_probs, atol=1e-5)
    np.testing.assert_array_equal(
        rollout.env_actions.reshape(t * n, *rollout.env_actions.shape[2:]), distribution.to_env(actions)
    )


def test_box_actions_are_stored_as_sampled_and_sent_within_the_bounds() -> None:
    place = make_parts(env="Pendulum-v1", model=ModelConfig(hidden=(8,), log_std_init=1.0))
    rollout, _ = place.rollout()
    np.testing.assert_allclose(rollout.env_actions, np.clip(2.0 * rollout.actions, -2.0, 2.0), rtol=1e-6)
    assert (np.abs(rollout.actions) > 1.0).any()


# -- the value of what came next --------------------


def test_next_values_are_those_of_what_truly_came_next() -> None:
    """Time limits bootstrap from the final observation, terminal states are worth 0, the last row looks at the next."""
    place = make_parts(horizon=100, num_envs=4)
    settle(place)
    rollout, _ = place.rollout()
    following, _ = place.rollout(1)
    ended = rollout.terminations | rollout.truncations
    assert rollout.terminations.any()
    next_observations = np.concatenate((rollout.observations[1:], following.observations))
    expected = place.policy.value(place.normaliser.inputs(next_observations.reshape(400, -1))).reshape(100, 4)
    np.testing.assert_allclose(rollout.next_values[~ended], expected[~ended], atol=1e-6)
    assert not rollout.next_values[rollout.terminations].any()


@pytest.mark.parametrize("horizon", [10, 15])
def test_a_truncated_episode_bootstraps_from_its_own_final_observation(horizon: int) -> None:
    """Also where the limit falls on the rollout's last row. The clock's observation is its time: 10 at the limit, 0 in
    the row after it.
    """
    place = make_parts(env="Clock-v0", horizon=horizon)
    settle(place)
    rollout, _ = place.rollout()
    assert rollout.truncations[9].all() and not rollout.terminations.any()
    at_limit = place.policy.value(place.normaliser.inputs(np.full((2, 1), 10.0, np.float32))).copy()
    at_start = place.policy.value(place.normaliser.inputs(np.zeros((2, 1), np.float32)))
    np.testing.assert_allclose(rollout.next_values[9], at_limit, atol=1e-6)
    assert np.abs(at_limit - at_start).min() > 0.01


class Clock(gymnasium.Env[np.ndarray, Any]):
    """Observes the time in the episode; rewards 1."""

    observation_space = spaces.Box(0.0, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return np.array([self.time], np.float32), 1.0, False, False, {}


class Restless(Clock):
    """Not deterministic, and does not say so."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.clock = time.monotonic_ns()
        return super().reset(seed=seed)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        super().step(action)
        return np.array([time.monotonic_ns() % 2**20], np.float32), 1.0, False, False, {}


# -- pieces and layouts --------------------


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_rollouts_go_on_from_each_other(env: str) -> None:
    whole, _ = make_parts(env=env).rollout(40)
    place = make_parts(env=env)
    pieces = [place.rollout(rows)[0] for rows in (1, 15, 24)]
    assert [p.first_row for p in pieces] == [0, 1, 16]
    for name in ARRAYS:
        np.testing.assert_allclose(joined(pieces, name, 0), getattr(whole, name), atol=1e-6, err_msg=name)
    assert [e for p in pieces for e in p.episodes] == whole.episodes


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_the_layout_over_workers_changes_nothing(env: str) -> None:
    """Eight environments on one worker are those of two with four each and of four with two."""
    one, discounted = make_parts(env=env, num_envs=8, horizon=40).rollout()
    for workers in (2, 4):
        places = [make_parts(env=env, worker=w, num_envs=8 // workers, horizon=40) for w in range(workers)]
        pairs = [place.rollout() for place in places]
        parts = [rollout for rollout, _ in pairs]
        for name in ARRAYS:
            together, alone = joined(parts, name, 1), getattr(one, name)
            if name in ("values", "log_probs"):  # computed for a whole rollout at once, whose size BLAS can see
                np.testing.assert_allclose(together, alone, atol=1e-6, err_msg=name)
            else:  # to the bit: a chaotic simulator would make a large difference of a small one
                np.testing.assert_array_equal(together, alone, err_msg=name)
        np.testing.assert_allclose(np.concatenate([d for _, d in pairs], 1), discounted, atol=1e-5)
        assert sorted((e.row, e.env) for p in parts for e in p.episodes) == [(e.row, e.env) for e in one.episodes]


@pytest.mark.parametrize("rows", [0, 1, 11])
def test_an_interrupted_rollout_is_short_and_loses_nothing(rows: int) -> None:
    place = make_parts()
    asked = iter(range(100))
    short = place.collector.collect(16, 0, lambda: next(asked) >= rows)
    place.collector.discounted_returns(short)
    rest, _ = place.rollout(16 - rows)
    whole, _ = make_parts().rollout(16)
    assert short.num_rows == rows and short.num_steps == 2 * rows
    if rows:
        for name in ARRAYS:
            np.testing.assert_allclose(joined([short, rest], name, 0), getattr(whole, name), atol=1e-6, err_msg=name)
    else:
        np.testing.assert_array_equal(rest.actions, whole.actions)


@pytest.mark.parametrize("rows", [0, 1, 11, 16])
def test_a_rollout_that_nobody_used_is_given_again_with_the_rows_that_it_lacks(rows: int) -> None:
    """Cut short by a death, or whole; asked for, and told of, once or twice."""
    place, undisturbed = make_parts(), make_parts()
    asked = iter(range(100))
    short = place.collector.collect(16, 0, lambda: next(asked) >= rows, 5)
    place.collector.discounted_returns(short)
    whole, whole_discounted = undisturbed.rollout(16)
    for _ in range(2):
        place.collector.keep_last()
        rollout, discounted = place.rollout(16)
        report = place.reports[-1]
        assert (rollout.first_row, rollout.num_rows) == (0, 16)
        for name in ARRAYS:
            np.testing.assert_allclose(getattr(rollout, name), getattr(whole, name), atol=1e-6, err_msg=name)
        np.testing.assert_allclose(discounted, whole_discounted)
        np.testing.assert_array_equal(rollout.final_rows, whole.final_rows)
        assert rollout.episodes == whole.episodes
        np.testing.assert_array_equal(report.episode_first_rows, undisturbed.reports[0].episode_first_rows)
        np.testing.assert_allclose(report.discounted_returns, undisturbed.reports[0].discounted_returns)
    after, expected = place.rollout(16)[0], undisturbed.rollout(16)[0]
    np.testing.assert_array_equal(after.actions, expected.actions)
    assert after.first_row == 16
    place.collector.keep_last()
    place.collector.keep_last(keep=False)
    assert place.rollout(16)[0].first_row == 32


def test_a_rollout_ends_where_it_is_enough_from_a_quarter_on() -> None:
    place = make_parts()
    assert place.collector.collect(16, 0, None, 0, lambda: True).num_rows == 4
    assert place.collector.collect(15, 0, None, 0, lambda: True).num_rows == 4
    assert place.collector.collect(16, 0, None, 0, lambda: False).num_rows == 16
    asked = iter([False, False, True])
    assert place.collector.collect(16, 0, None, 0, lambda: next(asked)).num_rows == 6
    asked_to_leave = iter(range(100))
    place.collector.collect(16, 0, lambda: next(asked_to_leave) >= 6)
    place.collector.keep_last()
    assert place.collector.collect(16, 0, None, 0, lambda: True).num_rows == 6, "it has its quarter"


def test_what_was_collected_does_not_change_while_more_is() -> None:
    place = make_parts()
    rollout, _ = place.rollout()
    kept = {name: getattr(rollout, name).copy() for name in [*ARRAYS, "next_values", "final_observations"]}
    observations = place.reports[0].observations.copy()
    for _ in range(3):
        place.rollout()
    for name, array in kept.items():
        np.testing.assert_array_equal(getattr(rollout, name), array, err_msg=name)
    np.testing.assert_array_equal(place.reports[0].observations, observations)


# -- running returns and reports --------------------


@pytest.mark.parametrize("env", ["CartPole-v1", probe("Truncation")])
def test_discounted_returns_are_the_running_sums_of_each_episode(env: str) -> None:
    place = make_parts(env=env, horizon=50)
    rollouts = [place.rollout() for _ in range(2)]
    gamma, rewards = place.learner.gamma, joined([r for r, _ in rollouts], "rewards", 0)
    ended = joined([r for r, _ in rollouts], "terminations", 0) | joined([r for r, _ in rollouts], "truncations", 0)
    actual = np.concatenate([d for _, d in rollouts])
    assert actual.dtype == np.float64 and ended.any()
    for t, i in np.ndindex(rewards.shape):
        first = max((k + 1 for k in range(t) if ended[k, i]), default=0)
        expected = sum(gamma ** (t - k) * float(rewards[k, i]) for k in range(first, t + 1))
        assert actual[t, i] == pytest.approx(expected)


def test_a_report_says_where_each_environment_stands() -> None:
    place = make_parts(num_envs=3, horizon=70, worker=2)
    rollout, _ = place.rollout()
    report = place.collector.report(rollout, 0.5, 0.25, 0.125)
    assert (report.worker, report.first_env, report.first_row, report.env_steps) == (2, 6, 0, 210)
    assert (report.collect_s, report.learn_s, report.exchange_s) == (0.5, 0.25, 0.125)
    ended = rollout.terminations | rollout.truncations
    for i in range(3):
        last = max((t + 1 for t in range(70) if ended[t, i]), default=0)
        assert report.episode_first_rows[i] == last
        assert report.episode_lengths[i] == 70 - last
        assert report.episode_returns[i] == pytest.approx(rollout.rewards[last:, i].sum())
        assert report.episode_numbers[i] == ended[:, i].sum()
    np.testing.assert_array_equal(report.observations, place.rollout(1)[0].observations[0])


# -- native forms that spend a row on a reset --------------------


def test_the_row_that_a_native_form_spends_on_a_reset_is_no_transition() -> None:
    """Episodes of 2 steps and a reset row, in each of two environments, the second one row later."""
    place = make_parts(env=probe("Constant"), horizon=9, envs=NextStep())
    rollout, _ = place.rollout()
    assert rollout.valid.T.astype(int).tolist() == [[1, 1, 0, 1, 1, 0, 1, 1, 0], [1, 1, 1, 0, 1, 1, 0, 1, 1]]
    assert rollout.num_steps == 13
    episodes = [(e.row, e.env, e.episode_return, e.length) for e in rollout.episodes]
    assert episodes == [(1, 0, 2, 2), (2, 1, 3, 3), (4, 0, 2, 2), (5, 1, 2, 2), (7, 0, 2, 2), (8, 1, 2, 2)]
    report = place.collector.report(rollout, 0, 0, 0)
    assert (report.env_steps, report.episode_lengths.tolist()) == (13, [0, 0])


def test_the_native_cartpole_loses_its_reset_rows_and_nothing_else() -> None:
    """An end is followed by one row that does not count; within an episode rows go on from each other."""
    place = make_parts(vectorization="native", horizon=200)
    rollout, _ = place.rollout()
    ended = rollout.terminations | rollout.truncations
    np.testing.assert_array_equal(rollout.valid[1:], ~ended[:-1])
    assert rollout.valid[0].all() and ended.any()
    assert rollout.num_steps == 400 - ended[:-1].sum() == rollout.rewards.sum()
    assert sum(e.length for e in rollout.episodes) + place.reports[-1].episode_lengths.sum() == rollout.num_steps
    single: Any = gymnasium.make("CartPole-v1").unwrapped
    for t, i in zip(*rollout.valid[:-1].nonzero(), strict=True):
        single.reset()
        single.state = rollout.observations[t, i].astype(np.float64)
        observation, *_ = single.step(int(rollout.env_actions[t, i]))
        np.testing.assert_allclose(rollout.observations[t + 1, i], observation, atol=1e-5)


# -- what goes wrong --------------------


class NaNReward(Clock):
    """In the seventh step of each episode."""

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, np.nan if self.time == 7 else reward, terminated, truncated, info


class Level(Clock):
    """Remembers across episodes: the reward is the number of the episode, times a factor."""

    level = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.level += 1
        return super().reset(seed=seed)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, self.reward(), terminated, truncated, info

    def reward(self) -> float:
        return float(self.level)


class Reorders(Level):
    """The same rewards in each episode, but in the other order in every second one: those of 4 steps add up to 10."""

    def reward(self) -> float:
        return float(self.time if self.level % 2 else 5 - self.time)


class Uneven(Level):
    """Remembers nothing; rewards of all sizes and both signs, whose sum depends on the order of the additions."""

    def reward(self) -> float:
        return float(self.np_random.normal() * 10.0 ** self.np_random.integers(-8, 8))


for _class in (Clock, Restless, NaNReward, Level, Reorders):
    creator: Any = _class  # whose type Gymnasium's stubs do not know to be one
    gymnasium.register(f"{_class.__name__}-v0", creator, max_episode_steps=10)
uneven: Any = Uneven
gymnasium.register("Uneven-v0", uneven, max_episode_steps=5000)


def normalised(**kwargs: Any) -> gymnasium.Env[Any, Any]:
    """Rewards divided by their running deviation, which no reset forgets."""
    return gymnasium.wrappers.NormalizeReward(gymnasium.make("Pendulum-v1", **kwargs))


gymnasium.register("NormalisedPendulum-v0", normalised)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (45, r"observation is not finite in row 45 of environment 6: \[nan\]"),
        (52, r"observation is not finite in row 52 of environment 6: \[nan\]"),  # the first that was not acted on yet
        (50, r"final observation is not finite in row 49 of environment 6: \[nan\]"),
    ],
)
def test_nan_in_an_observation_is_named_by_row_and_environment(step: int, message: str) -> None:
    creator: Any = probes.ProbeNaN
    gymnasium.register(f"NaN{step}-v0", creator, max_episode_steps=10, kwargs={"at": step})
    place = make_parts(env=f"NaN{step}-v0", worker=3, horizon=26)
    place.rollout()
    with pytest.raises(FloatingPointError, match=message):
        place.rollout()


def test_nan_in_a_reward_is_named_by_row_and_environment() -> None:
    place = make_parts(env="NaNReward-v0", worker=1)
    with pytest.raises(FloatingPointError, match="reward is not finite in row 6 of environment 2: nan"):
        place.rollout()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_reward_that_float32_cannot_hold_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    place = make_parts(env=probe("Constant"), worker=1)
    step = place.collector.envs.step
    monkeypatch.setattr(place.collector.envs, "step", lambda a: replace(step(a), rewards=np.array([1.0, 1e39])))
    with pytest.raises(
        FloatingPointError, match=r"reward is not finite in row 0 of environment 3: inf \(float32 holds"
    ):
        place.rollout()


def test_an_environments_error_comes_through_with_its_number() -> None:
    place = make_parts(env=probe("Crash"), horizon=200)
    with pytest.raises(RuntimeError, match="simulated bug") as caught:
        place.rollout()
    assert "raised by environment 0" in "".join(caught.value.__notes__)


# -- restoring from a checkpoint --------------------


def states(place: Parts) -> dict[int, EnvState]:
    """Where the environments of `place` stand, by their global numbers."""
    replay = Replay()
    for report in place.reports:
        replay.extend(report)
    return {state.env: state for state in replay.states()[1]}


def go_on(place: Parts, saved: dict[int, EnvState], deadline: float = math.inf) -> tuple[Parts, list[str]]:
    """A worker of a new process with the policy of `place` and its environments as `saved` has them; its complaints."""
    other = make_parts(place.config, worker=place.collector.worker)
    other.policy.flat.vector[:] = place.policy.flat.vector
    other.normaliser.unpack(place.normaliser.pack())
    other.normaliser.freeze()
    return other, other.collector.restore(saved, place.collector.row, 1000, deadline)


def assert_same_rollouts(a: Parts, b: Parts) -> None:
    (first, first_returns), (second, second_returns) = a.rollout(40), b.rollout(40)
    for name in [*ARRAYS, "next_values", "first_row", "final_observations"]:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    np.testing.assert_array_equal(first_returns, second_returns)
    assert first.episodes == second.episodes
    for name in ("episode_numbers", "episode_first_rows", "episode_returns", "episode_lengths"):
        np.testing.assert_array_equal(getattr(a.reports[-1], name), getattr(b.reports[-1], name), err_msg=name)


@pytest.mark.parametrize("env", ENVIRONMENTS)
@pytest.mark.parametrize("rows", [1, 37])
def test_a_restored_worker_goes_on_to_the_bit(env: str, rows: int) -> None:
    place = make_parts(env=env, worker=2)
    settle(place)
    place.rollout(rows)
    other, problems = go_on(place, states(place))
    assert problems == []
    assert_same_rollouts(place, other)


def test_environments_that_were_not_saved_begin_episodes_that_nobody_had() -> None:
    place = make_parts(num_envs=4)
    place.rollout(30)
    saved = states(place)
    del saved[1]
    other, problems = go_on(place, saved)
    assert problems == []
    expected, _ = place.rollout(10)
    rollout, _ = other.rollout(10)
    np.testing.assert_array_equal(rollout.observations[:, [0, 2, 3]], expected.observations[:, [0, 2, 3]])
    fresh, seed = gymnasium.make(place.config.env), EpisodeSeeds(place.config.seed, 1, 1).of(0, 1000)
    np.testing.assert_array_equal(rollout.observations[0, 1], fresh.reset(seed=seed)[0])
    assert other.reports[-1].episode_lengths[1] == 10


def test_an_environment_that_is_not_deterministic_is_named_and_its_episode_is_cut() -> None:
    place = make_parts(env="Restless-v0", worker=1)
    place.rollout(13)
    other, problems = go_on(place, states(place))
    assert [line.split(":")[0] for line in problems] == [f"environment {e} could not be replayed" for e in (2, 3)]
    rollout, _ = other.rollout(4)
    assert rollout.episodes == []
    assert other.reports[-1].episodes_cut == [2, 3]
    assert other.reports[-1].episode_numbers.tolist() == [2, 2]
    assert other.reports[-1].episode_lengths.tolist() == [4, 4]


@pytest.mark.parametrize(
    ("env", "rows"), [("Level-v0", 13), ("Level-v0", 21), ("Reorders-v0", 14), ("NormalisedPendulum-v0", 205)]
)
def test_an_environment_that_remembers_across_episodes_is_named(env: str, rows: int) -> None:
    """Its observations are those that were saved; its rewards are others, or come in another order."""
    place = make_parts(env=env, worker=1)
    place.rollout(rows)
    other, problems = go_on(place, states(place))
    assert [line.split(";")[0] for line in problems] == [
        f"environment {e} could not be replayed: other rewards came of it" for e in (2, 3)
    ]
    rollout, _ = other.rollout(4)
    assert rollout.episodes == []
    assert (other.reports[-1].episodes_cut, other.reports[-1].episode_lengths.tolist()) == ([2, 3], [4, 4])
    assert other.reports[-1].discounted_returns == pytest.approx(other.collector._sums.discounted_returns)


@pytest.mark.parametrize(("env", "rows"), [("Level-v0", 20), ("NormalisedPendulum-v0", 400)])
def test_between_two_episodes_the_one_before_tells_whether_it_remembers(env: str, rows: int) -> None:
    """There, a checkpoint has no step to compare: with a horizon that divides an episode's length each one is so."""
    place = make_parts(env=env, worker=1)
    place.rollout(rows)
    assert place.reports[-1].episode_lengths.tolist() == [0, 0]
    saved = states(place)
    assert [len(state.actions) for state in saved.values()] == [0, 0]
    other, problems = go_on(place, saved)
    assert [line.split(";")[0] for line in problems] == [
        f"environment {e} could not be replayed: other rewards came of it" for e in (2, 3)
    ]
    other.rollout(4)
    assert other.reports[-1].episodes_cut == [2, 3]


@pytest.mark.parametrize(("env", "length"), [("Pendulum-v1", 200), (probe("Truncation"), None)])
@pytest.mark.parametrize("pieces", [1, 3])
def test_between_two_episodes_an_honest_environment_goes_on_to_the_bit(
    env: str, length: int | None, pieces: int
) -> None:
    place = make_parts(env=env, worker=2)
    if length is None:
        length = int(place.rollout(200)[0].episodes[0].length)
        place = make_parts(env=env, worker=2)
    for _ in range(pieces):
        place.rollout(length)
    saved = states(place)
    other, problems = go_on(place, saved)
    assert problems == []
    assert_same_rollouts(place, other)
    assert go_on(place, saved, deadline=-math.inf)[1] == []


def test_of_the_episode_before_nothing_is_kept_once_the_next_has_a_step() -> None:
    place, replay = make_parts(env="Pendulum-v1", worker=2), Replay()
    for rows, held in ((200, 200), (1, 1), (199, 200), (200, 200)):
        place.rollout(rows)
        replay.extend(place.reports[-1])
        assert sum(len(chunk) for _, chunk in replay.chunks) == held
        last_actions = [len(state.last_actions) for state in replay.states()[1]]
        assert last_actions == ([0, 0] if rows == 1 else [199, 199])


@pytest.mark.parametrize(("env", "rows"), [("Level-v0", 7), ("NormalisedPendulum-v0", 150)])
def test_in_its_first_episode_there_is_nothing_that_it_could_have_forgotten(env: str, rows: int) -> None:
    place = make_parts(env=env)
    place.rollout(rows)
    assert go_on(place, states(place))[1] == []


@pytest.mark.parametrize("pieces", [[4000], [1, 2, 3, 1000, 17, 977], [100] * 20], ids=len)
def test_the_order_of_additions_is_no_difference(pieces: list[int]) -> None:
    """Rewards from 1e-8 to 1e8, summed over rollouts of any length."""
    place = make_parts(env="Uneven-v0")
    for rows in pieces:
        place.rollout(rows)
    other, problems = go_on(place, states(place))
    assert problems == []
    place.rollout(50)
    other.rollout(50)
    np.testing.assert_array_equal(place.reports[-1].episode_returns, other.reports[-1].episode_returns)
    saved = states(other)
    saved[1].episode_return *= 1 + 1e-9
    saved[0].discounted_return *= 1 - 1e-9
    assert len(go_on(other, saved)[1]) == 2


@pytest.mark.parametrize("env", ["Pendulum-v1", probe("Truncation")])
def test_without_time_to_replay_new_episodes_begin(env: str) -> None:
    place = make_parts(env=env)
    place.rollout(13)
    saved = states(place)
    other, problems = go_on(place, saved, deadline=-math.inf)
    assert [line.split(":")[0] for line in problems] == [f"environment {e} could not be replayed" for e in (0, 1)]
    rollout, _ = other.rollout(1)
    assert rollout.episodes == []
    assert other.reports[-1].episodes_cut == [0, 1]
    assert other.reports[-1].episode_numbers.tolist() == [saved[i].episode + 1 for i in (0, 1)]
    assert other.reports[-1].episode_lengths.tolist() == [1, 1]


def test_a_native_form_says_that_it_cannot_be_replayed_and_its_episodes_are_cut() -> None:
    place = make_parts(vectorization="native")
    place.rollout(5)
    other, problems = go_on(place, states(place))
    assert len(problems) == 1
    assert problems[0].startswith("environments 0..1 cannot be replayed (2 x CartPole-v1, its own vector form")
    rollout, _ = other.rollout(4)
    assert rollout.first_row == 5
    assert rollout.episodes == []
    assert other.reports[-1].episodes_cut == [0, 1]
    assert other.reports[-1].episode_lengths.tolist() == [4, 4]
