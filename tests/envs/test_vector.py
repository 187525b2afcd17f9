"""All forms of a vector environment give the same transitions, true last observations and exact replays."""

from __future__ import annotations

import collections
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from dppo.envs.cartpole import CartPoleVector, is_plain_cartpole
from dppo.envs.vector import EnvList, NativeVector, make_vector_env
from dppo.seams import EpisodeSeed, Step, VectorEnv


def counting_seeds() -> EpisodeSeed:
    """Seeds as the trainer gives them: of their own for each environment and episode, whatever N is."""
    episodes: collections.Counter[int] = collections.Counter()

    def episode_seed(index: int) -> int:
        episodes[index] += 1
        return 1_000_000 * index + episodes[index]

    return episode_seed


def sample_actions(env: VectorEnv, num_rows: int, seed: int = 0) -> np.ndarray:
    """[num_rows, N, *act] random actions; those of an environment do not depend on N."""
    columns = []
    for index in range(env.num_envs):
        env.action_space.seed(seed + index)
        columns.append([env.action_space.sample() for _ in range(num_rows)])
    return np.stack([np.array(column) for column in columns], axis=1)


def register(env_id: str, creator: Any, **kwargs: Any) -> None:
    """`gymnasium.register`, whose types do not know that a class is a creator."""
    gymnasium.register(env_id, creator, **kwargs)


class Clock(gymnasium.Env[np.ndarray, Any]):
    """Observes (episode, time in it). Episodes of 2, 3 and 4 steps in turn, the last cut by the limit."""

    observation_space = gymnasium.spaces.Box(0.0, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self) -> None:
        self.episode = self.time = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode += 1
        self.time = 0
        return self.observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.time += 1
        length = (4, 2, 3)[self.episode % 3]
        return self.observe(), 10.0 * self.episode + self.time, self.time == length < 4, False, {}

    def observe(self) -> np.ndarray:
        return np.array([self.episode, self.time], np.float32)


class CarelessClock(Clock):
    """Hands out the same memory every time."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = np.empty(2, np.float32)

    def observe(self) -> np.ndarray:
        self.memory[:] = self.episode, self.time
        return self.memory


class Shaped(gymnasium.Env[Any, Any]):
    """Observes something of a shape, or in a space, that does not fit."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, space: gymnasium.Space[Any], observation: Any) -> None:
        self.observation_space, self.observation = space, observation

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self.observation, {}


def clock_vector(mode: AutoresetMode | None) -> Callable[..., SyncVectorEnv]:
    """A vector entry point that resets by `mode`, or does not say how."""

    def make(num_envs: int, max_episode_steps: int) -> SyncVectorEnv:
        def one() -> gymnasium.Env[Any, Any]:
            return gymnasium.wrappers.TimeLimit(Clock(), max_episode_steps)

        env = SyncVectorEnv([one] * num_envs, copy=False, autoreset_mode=mode or AutoresetMode.NEXT_STEP)
        if mode is None:
            del env.metadata["autoreset_mode"]
        return env

    return make


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Registers the environments of this file, and forgets whatever a test registers."""
    before = dict(gymnasium.registry)
    for mode in AutoresetMode:
        register(f"Clock{mode.value}-v0", Clock, max_episode_steps=4, vector_entry_point=clock_vector(mode))
    register("CarelessClock-v0", CarelessClock, max_episode_steps=4)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


# ------------------------------------------------------------------------------------------ all forms alike

CLOCKS = [
    pytest.param("ClockNextStep-v0", "sync", id="sync"),
    pytest.param("CarelessClock-v0", "sync", id="sync careless"),
    pytest.param("ClockNextStep-v0", "native", id="native next step"),
    pytest.param("ClockSameStep-v0", "native", id="native same step"),
    pytest.param("ClockDisabled-v0", "native", id="native disabled"),
]

# observation, reward, terminated, truncated, observation after: three episodes by hand
CLOCK_TRANSITIONS = [
    ((1, 0), 11.0, False, False, (1, 1)),
    ((1, 1), 12.0, True, False, (1, 2)),
    ((2, 0), 21.0, False, False, (2, 1)),
    ((2, 1), 22.0, False, False, (2, 2)),
    ((2, 2), 23.0, True, False, (2, 3)),
    ((3, 0), 31.0, False, False, (3, 1)),
    ((3, 1), 32.0, False, False, (3, 2)),
    ((3, 2), 33.0, False, False, (3, 3)),
    ((3, 3), 34.0, False, True, (3, 4)),
    ((4, 0), 41.0, False, False, (4, 1)),
]


def transitions(env: VectorEnv, num_rows: int) -> list[list[tuple[Any, ...]]]:
    """The valid transitions of each environment, as a rollout would put them together from `Step`s."""
    rows: list[list[tuple[Any, ...]]] = [[] for _ in range(env.num_envs)]
    observations = env.reset().copy()
    for _ in range(num_rows):
        step = env.step(np.zeros(env.num_envs, np.int64))
        finals = dict(zip(step.final_envs.tolist(), step.final_observations, strict=True))
        for index, row in enumerate(rows):
            if step.valid is not None and not step.valid[index]:
                continue
            terminated, truncated = bool(step.terminations[index]), bool(step.truncations[index])
            assert (index in finals) == (terminated or truncated)
            after = finals.get(index, step.observations[index])
            row.append(
                (
                    tuple(observations[index].tolist()),
                    float(step.rewards[index]),
                    terminated,
                    truncated,
                    tuple(after.tolist()),
                )
            )
        observations = step.observations.copy()
    return rows


@pytest.mark.parametrize(("env_id", "vectorization"), CLOCKS)
def test_transitions_are_those_of_the_hand_worked_case(env_id: str, vectorization: str) -> None:
    env = make_vector_env(env_id, 3, counting_seeds(), vectorization)
    for row in transitions(env, 15):
        assert row[: len(CLOCK_TRANSITIONS)] == CLOCK_TRANSITIONS


def test_only_next_step_has_rows_that_are_no_transitions() -> None:
    for env_id, vectorization in [parameters.values for parameters in CLOCKS]:
        env = make_vector_env(str(env_id), 2, counting_seeds(), str(vectorization))
        env.reset()
        valid = [env.step(np.zeros(2, np.int64)).valid for _ in range(6)]
        if (env_id, vectorization) == ("ClockNextStep-v0", "native"):
            assert [None if row is None else row.tolist() for row in valid] == [
                None,
                None,
                [False, False],  # the reset after the episode of two steps
                None,
                None,
                None,
            ]
        else:
            assert valid == [None] * 6


@pytest.mark.parametrize(("env_id", "vectorization"), [*CLOCKS, pytest.param("CartPole-v1", "auto")])
def test_a_step_outlives_the_next_one(env_id: str, vectorization: str) -> None:
    env = make_vector_env(env_id, 2, counting_seeds(), vectorization)
    env.reset()
    fields = ("observations", "rewards", "terminations", "truncations", "final_envs", "final_observations")

    def contents(step: Step) -> list[list[Any]]:
        return [getattr(step, field).tolist() for field in fields]

    step = env.step(np.zeros(2, np.int64))
    for _ in range(20):
        before = contents(step)
        following = env.step(np.zeros(2, np.int64))
        assert contents(step) == before
        step = following


@pytest.mark.parametrize("vectorization", ["auto", "sync"])
def test_episodes_begin_with_their_seeds_and_do_not_depend_on_n(vectorization: str) -> None:
    few, many = (make_vector_env("CartPole-v1", n, counting_seeds(), vectorization) for n in (2, 5))
    actions = sample_actions(many, 300)
    np.testing.assert_array_equal(few.reset(), many.reset()[:2])
    for row in actions:
        a, b = few.step(row[:2]), many.step(row)
        np.testing.assert_array_equal(a.observations, b.observations[:2])
        np.testing.assert_array_equal(a.terminations, b.terminations[:2])
        np.testing.assert_array_equal(a.final_observations, b.final_observations[b.final_envs < 2])


# ---------------------------------------------------------------------------------------------- CartPole


def test_auto_takes_the_fast_cartpole_for_gymnasiums_own_only() -> None:
    assert isinstance(make_vector_env("CartPole-v1", 2, counting_seeds()), CartPoleVector)
    assert isinstance(make_vector_env("CartPole-v0", 2, counting_seeds()), CartPoleVector)
    assert isinstance(make_vector_env("CartPole-v1", 2, counting_seeds(), "sync"), EnvList)
    assert isinstance(make_vector_env("CartPole-v1", 2, counting_seeds(), "native"), NativeVector)
    assert isinstance(make_vector_env("MountainCar-v0", 2, counting_seeds()), EnvList)
    entry_point = gymnasium.spec("CartPole-v1").entry_point
    register("MyCartPole-v1", entry_point, kwargs={"sutton_barto_reward": True})
    assert not is_plain_cartpole(gymnasium.spec("MyCartPole-v1"))
    gymnasium.spec("CartPole-v1").kwargs["sutton_barto_reward"] = True
    try:
        assert isinstance(make_vector_env("CartPole-v1", 2, counting_seeds()), EnvList)
    finally:
        gymnasium.spec("CartPole-v1").kwargs.clear()


def balance(observations: np.ndarray) -> np.ndarray:
    """Actions that keep a pole up for hundreds of steps, so that time limits are met, too."""
    position, velocity, angle, angular_velocity = observations.T
    return np.asarray(angle + 0.5 * angular_velocity + 0.05 * position + 0.1 * velocity > 0, np.int64)


@pytest.mark.parametrize("num_envs", [1, 3, 8, 37])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "CartPole-v0"])
def test_cartpole_is_bit_equal_to_single_cartpoles(env_id: str, num_envs: int) -> None:
    env, seeds = make_vector_env(env_id, num_envs, counting_seeds()), counting_seeds()
    assert isinstance(env, CartPoleVector)
    singles = [gymnasium.make(env_id) for _ in range(num_envs)]
    rng = np.random.default_rng(num_envs)
    observations = env.reset()
    expected = np.stack([single.reset(seed=seeds(i))[0] for i, single in enumerate(singles)])
    counts: collections.Counter[str] = collections.Counter()
    for row in range(max(1200, 4000 // num_envs)):
        np.testing.assert_array_equal(observations, expected)
        actions = balance(observations)
        # Some poles are left to chance, the others balanced, with a blunder now and then.
        actions[::3] = rng.integers(0, 2, len(actions[::3]))
        actions = np.where(rng.random(num_envs) < 0.05, rng.integers(0, 2, num_envs), actions)
        step = env.step(actions)
        finals = dict(zip(step.final_envs.tolist(), step.final_observations, strict=True))
        for index, single in enumerate(singles):
            expected[index], reward, terminated, truncated, _ = single.step(actions[index])
            assert step.rewards[index] == reward
            assert step.terminations[index] == terminated
            assert step.truncations[index] == truncated
            assert (index in finals) == (terminated or truncated), f"row {row}"
            if terminated or truncated:
                np.testing.assert_array_equal(finals[index], expected[index])
                expected[index], _ = single.reset(seed=seeds(index))
                counts["terminated" if terminated else "truncated"] += 1
            # Observations are rounded to float32, which hides a difference in the last bits; states are not.
            state: Any = single.unwrapped.state  # type: ignore[attr-defined]
            np.testing.assert_array_equal(env._physics._as_observed[index].reshape(4), state)
        observations = step.observations
        assert observations.dtype == finals.get(0, observations).dtype == np.float32
    assert counts["terminated"] > 5
    assert counts["truncated"] > 1 or num_envs == 1


@pytest.mark.parametrize("vectorization", ["auto", "sync"])
def test_begin_episode_begins_one_and_leaves_the_others(vectorization: str) -> None:
    env, other = (make_vector_env("CartPole-v1", 4, lambda index: 42, vectorization) for _ in range(2))
    env.reset()
    other.reset()
    for action in (0, 1, 0, 0):
        env.step(np.full(4, action))
        other.step(np.full(4, action))
    single = gymnasium.make("CartPole-v1")
    np.testing.assert_array_equal(env.begin_episode(2), single.reset(seed=42)[0])
    for action in (1, 1, 0, 1):
        observations = env.step(np.full(4, action)).observations
        expected = other.step(np.full(4, action)).observations
        expected[2] = single.step(action)[0]
        np.testing.assert_array_equal(observations, expected)


# ------------------------------------------------------------------------------------------------- replay

REPLAYED = [
    ("CartPole-v1", "auto"),
    ("CartPole-v1", "sync"),
    ("Pendulum-v1", "auto"),
    ("HalfCheetah-v5", "auto"),
    ("LunarLander-v3", "auto"),
]


@pytest.mark.parametrize(("env_id", "vectorization"), REPLAYED)
def test_replay_restores_every_bit_and_what_follows(
    env_id: str, vectorization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo 4 leaves a MUJOCO_LOG.TXT where it runs
    if env_id == "HalfCheetah-v5":
        pytest.importorskip("mujoco")
    if env_id == "LunarLander-v3":
        pytest.importorskip("Box2D")
    num_envs, rows = 4, 57
    seeds = counting_seeds()
    given: dict[int, int] = {}

    def recording(index: int) -> int:
        given[index] = seeds(index)
        return given[index]

    env = make_vector_env(env_id, num_envs, recording, vectorization)
    actions = sample_actions(env, rows + 100)
    replays: list[list[np.ndarray]] = [[] for _ in range(num_envs)]
    observations = env.reset()
    for row in actions[:rows]:
        step = env.step(row)
        observations = step.observations
        for index in range(num_envs):
            replays[index].append(row[index])
            if index in step.final_envs:
                replays[index].clear()
    # One that has only just begun: its history is empty.
    observations[1] = env.begin_episode(1)
    replays[1].clear()
    assert len({len(history) for history in replays}) > 1

    calls: list[int] = []

    def counting(index: int) -> int:
        calls.append(index)
        return 7

    copy = make_vector_env(env_id, num_envs, counting, vectorization)
    copy.reset()
    for row in actions[:33]:  # whatever it did before does not matter
        copy.step(row)
    calls.clear()
    act_shape = actions.shape[2:]
    saved = [np.array(history, actions.dtype).reshape(-1, *act_shape) for history in replays]
    replayed, failed = copy.replay([given[index] for index in range(num_envs)], saved)
    assert (failed, calls) == ([], [])
    np.testing.assert_array_equal(replayed, observations)
    assert replayed.dtype == observations.dtype

    running = np.ones(num_envs, bool)  # the two sources of seeds differ: compare up to the end of the episode
    for row in actions[rows:]:
        a, b = env.step(row), copy.step(row)
        np.testing.assert_array_equal(a.rewards[running], b.rewards[running])
        np.testing.assert_array_equal(a.terminations[running], b.terminations[running])
        np.testing.assert_array_equal(a.truncations[running], b.truncations[running])
        running &= ~(a.terminations | a.truncations)
        np.testing.assert_array_equal(a.observations[running], b.observations[running])
    env.close()
    copy.close()


def test_replay_keeps_the_time_limit() -> None:
    env = make_vector_env("CartPole-v0", 2, counting_seeds())
    single = gymnasium.make("CartPole-v0")
    observation, _ = single.reset(seed=5)
    history = []
    for _ in range(190):
        history.append(balance(observation[None])[0])
        observation, _, terminated, _, _ = single.step(history[-1])
        assert not terminated
    observations, failed = env.replay([5, 6], [np.array(history), np.array([], np.int64)])
    assert failed == []
    np.testing.assert_array_equal(observations[0], observation)
    for row in range(10):
        step = env.step(balance(observations))
        observations = step.observations
        assert step.truncations.tolist() == [row == 9, False]


@pytest.mark.parametrize("vectorization", ["auto", "sync"])
def test_replay_names_what_ends_on_the_way(vectorization: str) -> None:
    env = make_vector_env("CartPole-v1", 4, counting_seeds(), vectorization)
    replays = [np.ones(3, np.int64), np.ones(30, np.int64), np.zeros(0, np.int64), np.ones(600, np.int64)]
    observations, failed = env.replay(list(np.arange(1, 5)), replays)  # NumPy's integers are seeds, too
    assert failed == [1, 3]
    single = gymnasium.make("CartPole-v1")
    np.testing.assert_array_equal(observations[2], single.reset(seed=3)[0])
    single.reset(seed=1)
    for _ in range(3):
        expected, *_ = single.step(1)
    np.testing.assert_array_equal(observations[0], expected)
    for index in failed:
        np.testing.assert_array_equal(env.begin_episode(index), single.reset(seed=1_000_000 * index + 1)[0])
    assert not env.step(np.zeros(4, np.int64)).final_envs.size


# ------------------------------------------------------------------------------------------------- native


def test_native_cartpole_shows_last_observations_and_masks_resets() -> None:
    env = make_vector_env("CartPole-v1", 6, counting_seeds(), "native")
    assert not env.replayable
    assert "cannot be replayed" in env.description
    observations = env.reset().copy()
    ended = np.zeros(6, bool)
    num_terminated = num_truncated = 0
    for _ in range(1100):
        actions = balance(observations)
        actions[0] = 1
        step = env.step(actions)
        valid = np.ones(6, bool) if step.valid is None else step.valid
        np.testing.assert_array_equal(valid, ~ended)
        ended = step.terminations | step.truncations
        np.testing.assert_array_equal(ended.nonzero()[0], step.final_envs)
        np.testing.assert_array_equal(step.observations[ended], step.final_observations)
        outside = (np.abs(step.observations[:, 0]) > 2.4) | (np.abs(step.observations[:, 2]) > np.deg2rad(12))
        np.testing.assert_array_equal(outside, step.terminations)
        assert (np.abs(step.observations[~valid]) <= 0.05).all()
        num_terminated += int(step.terminations.sum())
        num_truncated += int(step.truncations.sum())
        observations = step.observations
    assert num_terminated > 10
    assert num_truncated > 5


def test_native_can_be_repeated_but_neither_replayed_nor_begun_singly() -> None:
    a, b = (make_vector_env("CartPole-v1", 3, counting_seeds(), "native") for _ in range(2))
    np.testing.assert_array_equal(a.reset(), b.reset())
    for row in sample_actions(a, 100):
        np.testing.assert_array_equal(a.step(row).observations, b.step(row).observations)
    with pytest.raises(NotImplementedError):
        a.replay([1, 2, 3], [np.zeros(0, np.int64)] * 3)
    with pytest.raises(NotImplementedError):
        a.begin_episode(0)


# ----------------------------------------------------------------------------------- what the list accepts


@pytest.mark.parametrize("env_id", ["FrozenLake-v1", "Acrobot-v1", "Pendulum-v1", "MountainCarContinuous-v0"])
def test_native_types_are_kept(env_id: str) -> None:
    env = make_vector_env(env_id, 2, counting_seeds())
    observations = env.reset()
    step = env.step(sample_actions(env, 1)[0])
    space = env.observation_space
    assert observations.dtype == step.observations.dtype == step.final_observations.dtype == space.dtype
    assert observations.shape == step.observations.shape == (2, *(space.shape or ()))
    assert step.final_observations.shape[1:] == (space.shape or ())
    assert env.description.startswith(f"2 x {env_id}")


def test_a_nondeterministic_environment_is_not_replayable() -> None:
    register("Dice-v0", Clock, nondeterministic=True, max_episode_steps=4)
    assert not make_vector_env("Dice-v0", 1, counting_seeds()).replayable
    assert make_vector_env("ClockDisabled-v0", 1, counting_seeds()).replayable


def test_an_error_inside_an_environment_is_kept_and_located() -> None:
    class Broken(Clock):
        def step(self, action: int) -> Any:
            raise ZeroDivisionError("user's bug")

    register("Broken-v0", Broken)
    env = make_vector_env("Broken-v0", 2, counting_seeds())
    env.reset()
    with pytest.raises(ZeroDivisionError, match="user's bug") as error:
        env.step(np.zeros(2, np.int64))
    assert error.value.__notes__ == ["raised by environment 0 of 2 x Broken-v0, stepped one after another"]


# ------------------------------------------------------------------------------------------------- errors


def message_of(env_id: str, num_envs: int = 2, vectorization: str = "auto") -> str:
    with pytest.raises(ValueError) as error:
        make_vector_env(env_id, num_envs, counting_seeds(), vectorization).reset()
    return str(error.value)


@pytest.mark.parametrize(
    ("env_id", "parts"),
    [
        ("CartPol-v1", ["env='CartPol-v1'", "did you mean 'CartPole-v1'?"]),
        ("cartpole-v1", ["did you mean 'CartPole-v1'?"]),
        ("CartPole", ["did you mean 'CartPole-v1'?"]),
        ("HalfCheetah", ["did you mean 'HalfCheetah-v5'?"]),
        ("dppo.envs.probes:dppo/ProbConstant-v0", ["did you mean 'dppo.envs.probes:dppo/ProbeConstant-v0'?"]),
        ("Zzzzzz-v0", ["no environment 'Zzzzzz-v0' is registered", "write 'the.module:Zzzzzz-v0'"]),
        ("json:Zzzzzz-v0", ["'json' was imported, but does not register it"]),
        ("no_such_package.envs:Mine-v0", ["cannot import 'no_such_package.envs'", "No module named"]),
        (":CartPole-v1", ["cannot import ''"]),
    ],
)
def test_an_unknown_environment_is_explained(env_id: str, parts: list[str]) -> None:
    message = message_of(env_id)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import not_installed_anywhere", "ModuleNotFoundError: No module named 'not_installed_anywhere'"),
        ("\nraise RuntimeError('licence server is down')", "RuntimeError: licence server is down"),
        ("def broken(:", "SyntaxError"),
    ],
)
def test_the_real_reason_of_a_failed_import_is_told(
    source: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"users_module_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    message = message_of(f"{name}:Mine-v0")
    assert f"cannot import '{name}'" in message
    assert reason in message
    assert f"{name}.py" in message  # and where


@pytest.mark.parametrize(
    ("env_id", "package", "extra"), [("Hopper-v5", "mujoco", "mujoco"), ("LunarLander-v3", "Box2D", "box2d")]
)
def test_a_missing_extra_is_named(env_id: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(f"gymnasium.envs.{extra}")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # what Python does for a module that must not be found
    message = message_of(env_id)
    assert f"env='{env_id}' cannot be made" in message
    assert f"pip install 'dppo[{extra}]'" in message


def test_wrong_arguments_are_explained() -> None:
    assert message_of("CartPole-v1", num_envs=0) == "num_envs=0 must be at least 1"
    assert "'auto', 'sync', 'native'" in message_of("CartPole-v1", vectorization="async")
    assert "has no vector form of its own" in message_of("Pendulum-v1", vectorization="native")
    register("ClockMute-v0", Clock, max_episode_steps=4, vector_entry_point=clock_vector(None))
    with pytest.warns(UserWarning, match="AutoresetMode"):
        assert "use vectorization='sync'" in message_of("ClockMute-v0", vectorization="native")


def test_observations_that_do_not_fit_are_explained() -> None:
    box = gymnasium.spaces.Box(0, 1, (3,), np.float32)
    text = gymnasium.spaces.Dict(a=box, mission=gymnasium.spaces.Text(9))
    register("Dict-v0", lambda: Shaped(text, {"a": np.zeros(3), "mission": "go"}))
    assert "in its leaf 'mission'" in message_of("Dict-v0")
    assert "FilterObservation(env, ['a'])" in message_of("Dict-v0")
    sequence = gymnasium.spaces.Sequence(gymnasium.spaces.Discrete(3))
    register("Sequence-v0", lambda: Shaped(sequence, (1, 2)))
    assert "TransformObservation(env, function, box)" in message_of("Sequence-v0")

    def whole(env: gymnasium.Env) -> gymnasium.Env:
        return gymnasium.wrappers.TransformObservation(env, lambda o: np.array([len(o), sum(o), 0], np.float32), box)

    register("SequenceInABox-v0", lambda: whole(Shaped(sequence, (1, 2))))
    np.testing.assert_array_equal(make_vector_env("SequenceInABox-v0", 1, lambda i: 0).reset(), [[2, 3, 0]])
    # NumPy would have spread this one number over all three.
    register("Short-v0", lambda: Shaped(box, np.zeros(1)))
    assert "shape (1,)" in message_of("Short-v0")
    assert "says (3,)" in message_of("Short-v0")


# ------------------------------------------------------------------------------ what goes in and what comes out


class Faulty(Clock):
    """Returns `wrong` instead of what is right, at step `at` of each episode; at 0: by reset."""

    def __init__(self, at: int, wrong: Any) -> None:
        super().__init__()
        self.at, self.wrong = at, wrong

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        result = super().reset(seed=seed)
        return self.wrong if self.at == 0 else result

    def step(self, action: int) -> Any:
        result = super().step(action)
        return self.wrong if self.time == self.at else result


RIGHT = (np.zeros(2, np.float32), 1.0, False, False, {})


@pytest.mark.parametrize(
    ("at", "wrong", "message"),
    [
        (0, RIGHT[0], r"reset\(\) returned an array of shape \(2,\) and type float32"),
        (0, (RIGHT[0][:1], {}), r"an observation has shape \(1,\)"),
        (1, RIGHT[1:], r"step\(\) returned 4 value"),
        (1, (RIGHT[0][None], *RIGHT[1:]), r"an observation has shape \(1, 2\)"),
        (2, (np.float32(0), *RIGHT[1:]), r"an observation has shape \(\)"),
        (2, (RIGHT[0], np.ones(1), *RIGHT[2:]), r"the reward an array of shape \(1,\)"),
        (2, (RIGHT[0], 1.0, None, *RIGHT[3:]), "terminated=None"),
    ],
    ids=str,
)
def test_what_an_environment_returns_is_checked_in_every_row_and_the_environment_is_named(
    at: int, wrong: Any, message: str
) -> None:
    """Of shape (1,) or () it would be spread over the row, in a later row as in the first."""
    register("Faulty-v0", lambda at, wrong: Faulty(at, wrong), kwargs={"at": at, "wrong": wrong})
    env = make_vector_env("Faulty-v0", 2, counting_seeds(), first_env=6)
    with pytest.raises(ValueError, match=message) as error:
        env.reset()
        for _ in range(4):
            env.step(np.zeros(2, np.int64))
    assert error.value.__notes__ == ["raised by environment 6 of 2 x Faulty-v0, stepped one after another"]
    assert "repair" in str(error.value)
    if at > 0:
        with pytest.raises(ValueError, match=message):
            env.replay([1, 2], [np.zeros(4, np.int64)] * 2)


def test_whole_numbers_and_floats_of_other_widths_stay_what_they_are() -> None:
    class Wide(Clock):
        observation_space = gymnasium.spaces.Box(0, 255, (2,), np.uint8)  # type: ignore[assignment]

        def observe(self) -> np.ndarray:
            return np.array([self.episode, self.time])

    register("Wide-v0", Wide, max_episode_steps=4)
    env = make_vector_env("Wide-v0", 1, counting_seeds())
    assert env.reset().tolist() == [[1, 0]]
    step = env.step(np.zeros(1, np.int64))
    assert step.observations.tolist() == [[1, 1]] and step.observations.dtype == np.uint8


class Greedy(Clock):
    """Writes to the action that it was given, now and in the next step."""

    def __init__(self, action_space: gymnasium.Space[Any]) -> None:
        super().__init__()
        self.action_space, self.before = action_space, None  # type: ignore[assignment]

    def step(self, action: Any) -> Any:
        self.got = np.array(action)
        for array in (action, self.before):
            if isinstance(array, np.ndarray):
                array[...] = 0
        self.before = action
        return super().step(action)


class GreedyVector(SyncVectorEnv):
    """Writes to all actions at once."""

    def step(self, actions: Any) -> Any:
        result = super().step(np.array(actions))
        actions[...] = 0
        return result


SPACES = [
    gymnasium.spaces.Discrete(3, start=1),
    gymnasium.spaces.MultiDiscrete([3, 4], start=[1, 1]),
    gymnasium.spaces.MultiBinary(4),
    gymnasium.spaces.MultiBinary((2, 2)),
    gymnasium.spaces.Box(1, 2, (3,)),
]


def greedy_vector(num_envs: int, space: gymnasium.Space[Any]) -> GreedyVector:
    return GreedyVector([lambda: Greedy(space)] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)


@pytest.mark.parametrize("vectorization", ["sync", "native"])
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_an_environment_that_changes_its_action_changes_nobody_elses(
    space: gymnasium.Space[Any], vectorization: str
) -> None:
    register("Greedy-v0", Greedy, vector_entry_point=greedy_vector)
    gymnasium.registry["Greedy-v0"].kwargs["action_space" if vectorization == "sync" else "space"] = space
    env = make_vector_env("Greedy-v0", 2, counting_seeds(), vectorization)
    env.reset()
    rows = sample_actions(env, 3) | 1 if space.dtype != np.float32 else sample_actions(env, 3)
    sent = rows.copy()
    for row in rows:
        env.step(row)
    np.testing.assert_array_equal(rows, sent)
    if vectorization == "sync":
        env.replay([1, 2], list(rows[:1].swapaxes(0, 1)))
        np.testing.assert_array_equal(rows, sent)


@pytest.mark.parametrize(
    ("part", "wrong", "message"),
    [
        (0, np.zeros((2, 1), np.float32), r"shape \(2, 1\), but its observation_space says \(2, 2\)"),
        (0, np.zeros(2, np.float32), r"shape \(2,\), but"),
        (0, np.zeros((2, 2), complex), "type complex128"),
        (1, 1.0, "the rewards"),
        (1, np.ones((2, 1)), "the rewards"),
        (2, True, "the terminations"),
        (3, np.array([None, None]), "the truncations"),
    ],
    ids=str,
)
def test_what_a_vector_form_returns_is_checked(part: int, wrong: Any, message: str) -> None:
    class Wrong(SyncVectorEnv):
        def step(self, actions: Any) -> Any:
            result = list(super().step(actions))
            result[part] = wrong
            return tuple(result)

    def make(num_envs: int) -> Wrong:
        return Wrong([Clock] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)

    register("WrongVector-v0", Clock, vector_entry_point=make)
    env = make_vector_env("WrongVector-v0", 2, counting_seeds(), "native")
    env.reset()
    with pytest.raises(ValueError, match=message):
        env.step(np.zeros(2, np.int64))


def test_a_vector_form_without_last_observations_is_refused() -> None:
    class Mute(SyncVectorEnv):
        def step(self, actions: Any) -> Any:
            return (*super().step(actions)[:4], {})

    def make(num_envs: int) -> Mute:
        return Mute([Clock] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)

    register("MuteVector-v0", Clock, vector_entry_point=make)
    env = make_vector_env("MuteVector-v0", 2, counting_seeds(), "native")
    env.reset()
    with pytest.raises(ValueError, match="have no 'final_obs'"):
        for _ in range(4):
            env.step(np.zeros(2, np.int64))


def test_a_vector_form_of_another_type_is_cast_to_that_of_its_space() -> None:
    class Double(SyncVectorEnv):
        def step(self, actions: Any) -> Any:
            observations, *rest = super().step(actions)
            return np.asarray(observations, np.float64), *rest

    def make(num_envs: int) -> Double:
        return Double([Clock] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)

    register("DoubleVector-v0", Clock, vector_entry_point=make)
    env = make_vector_env("DoubleVector-v0", 2, counting_seeds(), "native")
    assert env.reset().dtype == env.step(np.zeros(2, np.int64)).observations.dtype == np.float32
