"""A trained policy: the saved one with its frozen moments, from the newest checkpoint that is whole."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Literal

import gymnasium
import numpy as np
import pytest

from dppo.config import ModelConfig
from dppo.errors import UsageError
from dppo.evaluate import play_episodes
from dppo.rundir.checkpoint import checkpoint_folders
from dppo.rundir.spaces import write_spaces
from dppo.settings.toml import to_toml
from dppo.training.policy import load_policy
from tests.any_space import Masked
from tests.parts import make_parts, probe, save, settle


def test_the_policy_is_loaded_where_its_environment_is_not_installed(pendulum: Path) -> None:
    observations = np.random.default_rng(0).normal(0, 1, (20, 3)).astype(np.float32)
    actions = load_policy(pendulum).act(observations)
    env = gymnasium.make("Pendulum-v1")
    write_spaces(pendulum, env.observation_space, env.action_space)
    config = pendulum / "config.toml"
    config.write_text(config.read_text().replace("Pendulum-v1", "a_simulator_that_nobody_has:Plant-v0"))
    np.testing.assert_array_equal(load_policy(pendulum).act(observations), actions)
    with pytest.raises(ValueError, match="a_simulator_that_nobody_has"):  # to play in it is another thing
        play_episodes(load_policy(pendulum), 1)
    (pendulum / "spaces.json").write_text('{"observation_space": {"type": "Box"}}')
    with pytest.raises(UsageError, match=r"spaces\.json cannot be read"):
        load_policy(pendulum)


def test_an_environment_that_cannot_tell_its_spaces_leaves_no_folder(
    cartpole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    config = make_parts(env="CartPole-v1").config
    refused = replace(config, env="tests.envs.sims_of_others:Channel", env_kwargs={"fails_as": 0})
    (cartpole / "config.toml").write_text(to_toml(refused))
    with pytest.raises(UsageError, match="Channel"):
        load_policy(cartpole)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_the_policy_is_the_saved_one_with_its_frozen_moments(tmp_path: Path) -> None:
    place = make_parts(env="CartPole-v1")
    settle(place)
    policy = load_policy(save(place, tmp_path / "run"))
    observations = np.random.default_rng(0).normal(0, 1, (20, 4)).astype(np.float32)
    np.testing.assert_array_equal(policy.act(observations), place.policy.greedy(place.policy.inputs(observations)))
    values = place.policy.value(place.policy.inputs(observations)) / place.learner.moments.rewards.scale
    np.testing.assert_allclose(policy.value(observations), values, rtol=1e-6)
    assert (policy.env_steps, policy.config.env) == (1234, "CartPole-v1")
    for _ in range(3):
        policy.act(100 * observations)
    np.testing.assert_allclose(policy.value(observations), values, rtol=1e-6)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_a_policy_with_memory_remembers_until_it_is_reset(tmp_path: Path, kind: Literal["gru", "lstm"]) -> None:
    place = make_parts(env="CartPole-v1", model=ModelConfig(hidden=(8,), core=kind, core_size=6))
    settle(place)
    policy = load_policy(save(place, tmp_path / "run"))
    batch = np.random.default_rng(0).normal(0, 1, (4, 3, 4)).astype(np.float32)
    first = policy.value(batch[0])
    states = place.policy.first_states(3)
    for observations in batch:
        expected = place.policy.value(place.policy.inputs(observations), states)
        np.testing.assert_allclose(
            policy.value(observations), expected / place.learner.moments.rewards.scale, rtol=1e-5, atol=1e-6
        )
        actions = place.policy.greedy(place.policy.inputs(observations), None, states)
        np.testing.assert_array_equal(policy.act(observations), actions)
    assert (policy.value(batch[0]) != first).all(), "it remembers, and a value does not make it forget"
    policy.reset([1])
    again = policy.value(batch[0])
    assert (again != first).tolist() == [True, False, True]
    policy.reset(())
    np.testing.assert_array_equal(policy.value(batch[0]), again)
    policy.act(batch[0])
    policy.reset((0, 1))
    assert (policy.value(batch[0]) == first).tolist() == [True, True, False]
    policy.reset(np.array([True, False, True]))
    np.testing.assert_array_equal(policy.value(batch[0]), first)
    policy.act(batch[0])
    with pytest.raises(ValueError, match=r"remembers 3 episodes, and 1 observations came: call reset\(\)"):
        policy.act(batch[0, 0])
    policy.reset()
    assert policy.act(batch[0, 0]) in (0, 1)
    assert policy.act(batch[0, 1], stochastic=True) in (0, 1)


def test_a_policy_without_memory_needs_no_reset(tmp_path: Path) -> None:
    policy = load_policy(save(make_parts(env="CartPole-v1"), tmp_path / "run"))
    policy.reset([0])
    assert policy.act(np.zeros(4)) in (0, 1)
    assert policy.act(np.zeros((3, 4))).shape == (3,)
    policy.reset()


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", probe("Copy"), probe("Bits")])
@pytest.mark.parametrize("stochastic", [False, True])
def test_actions_are_as_the_environment_wants_them(tmp_path: Path, env: str, stochastic: bool) -> None:
    place = make_parts(env=env)
    policy = load_policy(save(place, tmp_path / "run"))
    space, observation = place.collector.envs.action_space, place.collector.envs.observation_space.sample()
    single = policy.act(observation, stochastic=stochastic)
    assert space.contains(np.asarray(single, space.dtype)) or space.contains(int(single))
    many = policy.act(np.stack([observation] * 5), stochastic=stochastic)
    assert many.shape == (5, *np.shape(single))
    assert np.shape(policy.value(observation)) == ()


def test_greedy_repeats_itself_and_stochastic_does_not(pendulum: Path) -> None:
    policy = load_policy(pendulum)
    observation = np.zeros(3, np.float32)
    assert policy.act(observation) == policy.act(observation)
    assert policy.act(observation, stochastic=True) != policy.act(observation, stochastic=True)


def test_an_observation_of_another_shape_is_refused_with_both(cartpole: Path) -> None:
    with pytest.raises(ValueError, match=r"expected an observation \(4,\) or a batch .*got \(3,\)"):
        load_policy(cartpole).act(np.zeros(3))


def test_the_newest_valid_checkpoint_is_taken_and_damage_is_told(
    cartpole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = make_parts(env="CartPole-v1")
    save(place, cartpole, env_steps=5678)
    assert load_policy(cartpole).env_steps == 5678
    (checkpoint_folders(cartpole)[0] / "state.safetensors").write_bytes(b"")
    assert load_policy(cartpole).env_steps == 1234
    assert "step_000005678 is damaged and was skipped: state.safetensors" in capsys.readouterr().err


def test_where_no_checkpoint_is_left_it_says_why(cartpole: Path) -> None:
    (checkpoint_folders(cartpole)[0] / "state.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match=r"has no valid checkpoint: .*step_000001234"):
        load_policy(cartpole)


def test_a_policy_asks_for_the_spaces_that_it_was_trained_with_but_not_for_their_bounds(cartpole: Path) -> None:
    policy, (space, two) = load_policy(cartpole), (gymnasium.spaces.Box(-1, 1, (4,)), gymnasium.spaces.Discrete(2))
    policy.require(space, two)
    with pytest.raises(UsageError, match=r"CartPole-v1 observes Box\(.* it observes Box"):
        policy.require(gymnasium.spaces.Box(-1, 1, (3,)), two)
    with pytest.raises(UsageError, match=r"CartPole-v1 takes Discrete\(3\) here"):
        policy.require(space, gymnasium.spaces.Discrete(3))


def test_a_seed_repeats_stochastic_actions(pendulum: Path) -> None:
    policy, observations = load_policy(pendulum), np.zeros((5, 3), np.float32)
    policy.seed(7)
    first = policy.act(observations, stochastic=True)
    policy.seed(7)
    np.testing.assert_array_equal(policy.act(observations, stochastic=True), first)


# -- any space, and masks --------------------


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """An untrained policy of an image and a choice, with composite actions."""
    place = make_parts(env="tests.any_space:Masked")
    settle(place)
    return save(place, tmp_path / "masked")


def observed(rows: int) -> dict[str, np.ndarray]:
    """A batch of what `Masked` observes."""
    rng = np.random.default_rng(0)
    camera = rng.integers(0, 256, (rows, 1, 6, 6)).astype(np.uint8)
    return {"camera": camera, "gear": rng.integers(0, 3, rows)}


def test_a_dict_is_acted_on_by_a_dict(masked: Path) -> None:
    policy, batch = load_policy(masked), observed(5)
    actions, values = policy.act(batch), policy.value(batch)
    assert actions.dtype.names == ("gear", "speed") and values.shape == (5,)
    for i in range(5):
        one = {name: value[i] for name, value in batch.items()}
        action = policy.act(one)
        assert Masked.action_space.contains(action)
        assert action["gear"] == actions["gear"][i]
        np.testing.assert_allclose(action["speed"], actions["speed"][i], atol=1e-5)
        assert policy.value(one) == pytest.approx(values[i], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("stochastic", [False, True])
def test_a_mask_leaves_legal_actions_only(masked: Path, stochastic: bool) -> None:
    policy, batch, masks = load_policy(masked), observed(60), np.eye(3, dtype=np.int8)[np.arange(60) % 3]
    assert policy.act(batch, stochastic=stochastic, mask=masks)["gear"].tolist() == [0, 1, 2] * 20
    one = {name: value[0] for name, value in batch.items()}
    for legal in range(3):
        assert policy.act(one, stochastic=stochastic, mask=masks[legal])["gear"] == legal
    assert policy.act(one, mask={"gear": masks[1]})["gear"] == 1, "in Gymnasium's own form"


@pytest.mark.parametrize("mask", [5, np.ones((2, 3), np.int8), np.ones(3, np.int8)])
def test_masks_of_another_number_are_refused(masked: Path, mask: object) -> None:
    with pytest.raises(ValueError, match="expected a mask for each of 4 observations"):
        load_policy(masked).act(observed(4), mask=mask)


def test_a_part_that_is_missing_is_named(masked: Path) -> None:
    with pytest.raises(ValueError, match="gear is missing"):
        load_policy(masked).act({"camera": observed(1)["camera"][0]})


# -- as Stable-Baselines3 has it --------------------


def test_predict_returns_what_stable_baselines3_does(cartpole: Path) -> None:
    policy = load_policy(cartpole)
    env = gymnasium.make("CartPole-v1")
    observation, _ = env.reset(seed=0)
    action, state = policy.predict(observation)
    assert (type(action), action.shape, action.dtype, state) == (np.ndarray, (), np.int64, None)
    assert action == policy.act(observation)
    env.step(action)
    envs = gymnasium.make_vec("CartPole-v1", num_envs=3)
    observations, _ = envs.reset(seed=0)
    actions, state = policy.predict(observations, None, np.ones(3, bool), deterministic=False)
    assert actions.shape == (3,) and state is None
    envs.step(actions)
    np.testing.assert_array_equal(policy.predict(observations)[0], policy.act(observations))
    assert policy.predict(observation, state="theirs")[1] == "theirs"  # type: ignore[arg-type]


def test_predict_takes_and_returns_nested_values(tmp_path: Path) -> None:
    policy = load_policy(save(make_parts(env="tests.any_space:Masked"), tmp_path / "run"))
    envs = gymnasium.vector.SyncVectorEnv([Masked] * 2)
    observations, info = envs.reset(seed=0)
    for _ in range(4):
        masks = info["action_mask"]
        for deterministic in (True, False):
            actions, _ = policy.predict(observations, deterministic=deterministic, action_masks=masks)
            assert envs.action_space.contains(actions)
            assert masks[np.arange(2), actions["gear"]].all()
        observations, _, _, _, info = envs.step(actions)
    single = Masked()
    observation, info = single.reset(seed=0)
    single.step(policy.predict(observation, action_masks=info["action_mask"])[0])


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_predict_leaves_the_state_with_the_caller(tmp_path: Path, kind: Literal["gru", "lstm"]) -> None:
    place = make_parts(env="Pendulum-v1", model=ModelConfig(hidden=(8,), core=kind, core_size=6))
    settle(place)
    policy = load_policy(save(place, tmp_path / "run"))
    batch = np.random.default_rng(0).normal(0, 1, (4, 3, 3)).astype(np.float32)
    state, kept = None, []
    for observations in batch:
        expected = policy.act(observations)
        before = None if state is None else state.copy()
        actions, after = policy.predict(observations, state)
        np.testing.assert_array_equal(actions, expected)
        assert before is None or (state == before).all(), "the caller's state is not written to"
        kept.append(state := after)
    first, _ = policy.predict(batch[0])
    again, _ = policy.predict(batch[0], kept[-1], episode_start=np.array([True, False, True]))
    assert (again == first).all(1).tolist() == [True, False, True]
    one, state = policy.predict(batch[0, 0])
    assert (one.shape, np.shape(state)) == ((1,), (1, policy.actor_critic.state_size))
    assert policy.predict(batch[0, 0], state, np.zeros(1, bool))[1].shape == np.shape(state)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"expected a state \(3, .*as the last predict\(\) gave it"):
        policy.predict(batch[0], state)
