"""Collecting: what the environments really did, cut anywhere, and under any layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from dppo.config import ModelConfig
from dppo.data import Rollout
from dppo.envs import probes
from dppo.seeding import EpisodeSeeds
from tests.any_space import AnySpace, Masked
from tests.parts import NextStep, make_parts, probe, settle

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
    inputs = place.policy.inputs(rollout.observations.reshape(t * n, -1))
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
    expected = place.policy.value(place.policy.inputs(next_observations.reshape(400, -1))).reshape(100, 4)
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
    at_limit = place.policy.value(place.policy.inputs(np.full((2, 1), 10.0, np.float32))).copy()
    at_start = place.policy.value(place.policy.inputs(np.zeros((2, 1), np.float32)))
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


class NaNReward(Clock):
    """In the seventh step of each episode."""

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, np.nan if self.time == 7 else reward, terminated, truncated, info


for _class in (Clock, NaNReward):
    creator: Any = _class  # whose type Gymnasium's stubs do not know to be one
    gymnasium.register(f"{_class.__name__}-v0", creator, max_episode_steps=10)


# -- memory --------------------

MEMORY = {"gru": ModelConfig(hidden=(8,), core="gru", core_size=5), "lstm": ModelConfig(hidden=(8,), core="lstm",
          core_size=5, shared=False)}  # fmt: skip


@pytest.mark.parametrize("core", MEMORY)
@pytest.mark.parametrize("changes", [{"env": "CartPole-v1"}, {"env": "Clock-v0"}, {"vectorization": "native"}], ids=str)
def test_the_networks_state_goes_with_its_episode(core: str, changes: dict[str, Any]) -> None:
    """An oracle that runs each environment's rows by themselves, over two rollouts: states, heads, values, and the
    values of what came next, in the state that the step before the end left.
    """
    place = make_parts(model=MEMORY[core], horizon=40, **changes)
    settle(place)
    first, second = place.rollout()[0], place.rollout()[0]
    rollout = first.joined(second)
    policy, finals = place.policy, {(t, i): k for k, (t, i) in enumerate(zip(*_finals(rollout), strict=True))}
    assert len(finals) > 2
    noise = np.zeros((1, policy.distribution.noise_size), np.float32)
    for i in range(2):
        state = policy.first_states(1)
        for t in range(80):
            np.testing.assert_allclose(rollout.states[t, i], state[0], atol=1e-5)
            _, head, values = policy.act(rollout.inputs[t, i : i + 1], noise, states=state)
            assert values is not None
            np.testing.assert_allclose(rollout.heads[t, i], head[0], atol=1e-5)
            np.testing.assert_allclose(rollout.values[t, i], values[0], atol=1e-5)
            if rollout.terminations[t, i]:
                assert rollout.next_values[t, i] == 0.0
            elif (t, i) in finals:
                final = policy.inputs(rollout.final_observations[finals[t, i]][None])
                np.testing.assert_allclose(rollout.next_values[t, i], policy.value(final, state)[0], atol=1e-5)
            elif t < 79:  # moments and parameters have not changed between the rollouts
                np.testing.assert_allclose(rollout.next_values[t, i], rollout.values[t + 1, i], atol=1e-5)
            if (t, i) in finals or not rollout.valid[t, i]:
                state[:] = 0.0
        np.testing.assert_allclose(place.reports[-1].network_states[i], state[0], atol=1e-5)


def _finals(rollout: Rollout) -> tuple[list[int], list[int]]:
    return rollout.final_rows.tolist(), rollout.final_envs.tolist()


@pytest.mark.parametrize("core", MEMORY)
def test_a_kept_rollout_goes_on_in_its_state(core: str) -> None:
    whole = make_parts(model=MEMORY[core]).rollout(16)[0]
    place = make_parts(model=MEMORY[core])
    rows = iter(range(100))
    place.collector.collect(16, 0, interrupt=lambda: next(rows) >= 6)
    place.collector.keep_last()
    joined = place.collector.collect(16, 0)
    np.testing.assert_array_equal(joined.states, whole.states)
    np.testing.assert_array_equal(joined.heads, whole.heads)
    np.testing.assert_allclose(joined.next_values, whole.next_values, rtol=1e-6)


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


def test_of_many_numbers_the_first_that_is_not_finite_is_named() -> None:
    """An image would fill the screen."""

    class NaNImage(AnySpace):
        made: ClassVar[list[AnySpace]] = []

        def observe(self) -> Any:
            image = super().observe()
            image[4, 2, 1] = np.nan
            return image

    creator: Any = NaNImage
    spaces_of = {"observed": spaces.Box(0, 1, (8, 8, 3)), "acted": spaces.Discrete(2)}
    gymnasium.register("NaNImage-v0", creator, kwargs=spaces_of)
    place = make_parts(env="NaNImage-v0", worker=1)
    with pytest.raises(FloatingPointError, match=r"^observation .* environment 2: element \[4, 2, 1\] is nan$"):
        place.rollout()


def test_nan_in_a_reward_is_named_by_row_and_environment() -> None:
    place = make_parts(env="NaNReward-v0", worker=1)
    with pytest.raises(FloatingPointError, match="reward is not finite in row 6 of environment 2: nan"):
        place.rollout()


def test_what_is_not_finite_is_named_by_its_agent() -> None:
    faulty = {"fault": "no finite reward", "fails_from": 2}
    place = make_parts(env="tests.herd:Herd", env_kwargs=faulty, num_envs=6, worker=1)
    message = r"reward is not finite in row 1 of environment 7 \(agent cow_1\): nan"
    with pytest.raises(FloatingPointError, match=message):
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


# -- any space, and masks --------------------


def test_images_masks_and_composite_actions_are_columns() -> None:
    place = make_parts(env="tests.any_space:Masked", num_envs=2, horizon=16)
    settle(place)
    rollout, _ = place.rollout()
    t = np.arange(16) % 7 % 3
    np.testing.assert_array_equal(rollout.observations["gear"], np.stack((t, t), 1))
    np.testing.assert_array_equal(rollout.masks, np.arange(3) != rollout.observations["gear"][..., None])
    assert np.shares_memory(rollout.inputs, rollout.observations)
    np.testing.assert_array_equal(rollout.rewards, rollout.actions["gear"])
    np.testing.assert_array_equal(np.isneginf(rollout.heads[..., :3]), ~rollout.masks)
    flat = rollout.all_steps(rollout.observations)
    np.testing.assert_allclose(rollout.values.reshape(-1), place.policy.value(flat), rtol=1e-5, atol=1e-6)
    head, _ = place.policy.forward(flat, rollout.all_steps(rollout.masks))
    np.testing.assert_allclose(rollout.all_steps(rollout.heads), head, rtol=1e-4, atol=1e-5)
    place.iterate()
    assert np.isfinite(place.policy.flat.vector).all()


def test_a_leaf_that_is_not_finite_is_named() -> None:
    class Broken(Masked):
        observation_space = spaces.Dict({"x": spaces.Box(-1.0, 1.0, (2,)), "y": spaces.Box(-1.0, 1.0, (1,))})

        def _seen(self) -> Any:
            values = {"x": np.zeros(2, np.float32), "y": np.full(1, np.nan if self.t == 5 else 0.0, np.float32)}
            return values, super()._seen()[1]

    gymnasium.register("Broken-v0", Broken)  # type: ignore[arg-type]
    with pytest.raises(
        FloatingPointError, match=r"observation, leaf y, is not finite in row 5 of environment 0: \[nan\]"
    ):
        make_parts(env="Broken-v0", num_envs=2, horizon=16).rollout()
