"""What a worker's episodes have come to so far, worked out by hand; and how they are brought back after a resume."""

from __future__ import annotations

import math
import time
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from dppo.config import ModelConfig
from dppo.data import EnvState, Episode, Rollout
from dppo.envs.leaves import are_equal
from dppo.seeding import EpisodeSeeds
from dppo.training.episode_sums import EpisodeSums
from dppo.training.replay import Replay
from tests.parts import Parts, make_parts, probe, settle

ROLLOUT = (
    "observations", "inputs", "actions", "env_actions", "rewards", "terminations", "truncations", "valid", "heads",
    "log_probs", "values", "next_values", "first_row", "final_observations",
)  # fmt: skip
ENVIRONMENTS = [
    "CartPole-v1",
    "Pendulum-v1",
    probe("Truncation"),
    probe("Copy"),
    probe("Bits"),
    "tests.any_space:Masked",
]


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


# -- restoring from a checkpoint --------------------


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


for _class in (Restless, Level, Reorders):
    creator: Any = _class  # whose type Gymnasium's stubs do not know to be one
    gymnasium.register(f"{_class.__name__}-v0", creator, max_episode_steps=10)
uneven: Any = Uneven
gymnasium.register("Uneven-v0", uneven, max_episode_steps=5000)


def normalised(**kwargs: Any) -> gymnasium.Env[Any, Any]:
    """Rewards divided by their running deviation, which no reset forgets."""
    return gymnasium.wrappers.NormalizeReward(gymnasium.make("Pendulum-v1", **kwargs))


gymnasium.register("NormalisedPendulum-v0", normalised)


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
    other.state.moments.unpack(place.state.moments.pack())
    other.state.begin_iteration()
    return other, other.collector.restore(saved, place.collector.row, 1000, deadline)


def assert_same_rollouts(a: Parts, b: Parts) -> None:
    (first, first_returns), (second, second_returns) = a.rollout(40), b.rollout(40)
    for name in ROLLOUT:
        assert are_equal(*(np.asarray(getattr(rollout, name)) for rollout in (first, second))), name
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


def test_environments_of_composite_actions_that_were_not_saved_begin_new_episodes() -> None:
    place = make_parts(env="tests.any_space:Masked", num_envs=3)
    place.rollout(10)
    saved = states(place)
    del saved[1]
    other, problems = go_on(place, saved)
    assert problems == []
    other.rollout(3)
    assert other.reports[-1].episode_lengths.tolist() == [6, 3, 6]


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
    rollout, discounted = other.rollout(4)
    assert rollout.episodes == []
    assert (other.reports[-1].episodes_cut, other.reports[-1].episode_lengths.tolist()) == ([2, 3], [4, 4])
    assert other.reports[-1].discounted_returns == pytest.approx(discounted[-1])


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


# -- agents that share a simulator --------------------


def test_an_agent_that_waits_has_begun_with_its_simulator() -> None:
    """Environments 0 and 1 are agents of one simulator: it begins anew once both have ended."""
    sums = EpisodeSums(2, first_env=4, gamma=0.9, agents=2)
    assert count(sums, 0, [[1, 10], [2, 20], [0, 30]], [(1, 0)]) == [Episode(1, 4, 3.0, 2)]
    assert sums.first_rows.tolist() == [0, 0]
    assert count(sums, 3, [[0, 40], [5, 50]], [(0, 1)]) == [Episode(3, 5, 100.0, 4)]
    assert sums.first_rows.tolist() == [4, 4]
    assert (sums.last.first_rows.tolist(), sums.last.returns.tolist()) == ([0, 0], [3, 100])
    assert sums.last.last_rewards.tolist() == [0, 40], "rewards of the simulator's last row"
    assert sums.returns.tolist() == [5, 50]


HERD = "tests.herd:Herd"


@pytest.mark.parametrize(("env", "core"), [(HERD, ""), ("tests.herd:FlockVector", ""), (HERD, "gru")])
def test_agents_are_brought_back_to_the_bit_wherever_they_were(env: str, core: str) -> None:
    model = ModelConfig(hidden=(8,), core=core, core_size=4) if core else ModelConfig(hidden=(8,))
    waited = between = 0
    for rows in (9, 14, 23) if core else range(1, 24):
        place = make_parts(env=env, worker=2, num_envs=6, model=model)
        settle(place)
        for part in (rows // 2, rows - rows // 2):
            place.rollout(part)
        saved = states(place)
        numbers = np.array([saved[e].episode for e in range(12, 18)]).reshape(2, 3)
        waited += (numbers != numbers[:, :1]).any()
        between += any(len(saved[e].last_actions) for e in saved)
        other, problems = go_on(place, saved)
        assert problems == []
        assert_same_rollouts(place, other)
    assert core or (waited > 3 and between), "they were at all kinds of moments"


def test_agents_that_remember_lose_their_episodes_together() -> None:
    for rows in range(13, 30):
        place = make_parts(env=HERD, env_kwargs={"fault": "remembers"}, worker=1, num_envs=6)
        place.rollout(rows)
        saved = states(place)
        other, problems = go_on(place, saved)
        told = [f"simulator of {first}..{first + 2} could not be replayed" for first in (6, 9)]
        assert [line.split(":")[0] for line in problems] == told
        numbers = other.seeds.episodes.reshape(2, 3)
        assert (numbers == numbers[:, :1]).all(), "all agents have begun the same episode"
        assert all(numbers[(env - 6) // 3, 0] > saved[env].episode - 1 for env in saved)
        rollout, _ = other.rollout(1)
        assert rollout.valid.all()
        assert other.reports[-1].episodes_cut == [*range(6, 12)]


def test_a_simulator_of_which_an_agent_was_not_saved_begins_anew() -> None:
    place = make_parts(env=HERD, num_envs=6)
    place.rollout(14)
    saved = states(place)
    del saved[1]
    other, problems = go_on(place, saved)
    assert problems == []
    assert other.seeds.episodes.tolist()[:3] == [1000] * 3
    np.testing.assert_array_equal(other.rollout(9)[0].observations[:, 3:], place.rollout(9)[0].observations[:, 3:])


def test_rows_in_which_agents_wait_are_not_learnt_from() -> None:
    place = make_parts(env=HERD, num_envs=6, horizon=40)
    rollout, _ = place.rollout()
    ended = rollout.terminations | rollout.truncations
    assert 0 < rollout.num_steps < 240 and place.reports[-1].env_steps == rollout.num_steps
    assert not (ended & ~rollout.valid).any() and not rollout.rewards[~rollout.valid].any()
    assert len(rollout.episodes) == ended.sum()
    assert sum(e.length for e in rollout.episodes) + place.reports[-1].episode_lengths.sum() == rollout.num_steps
