"""Agents of one simulator as environments of the batch, against the simulator stepped by hand."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from dppo.envs.agents import AgentList
from dppo.envs.env_list import EnvList
from dppo.envs.probes_of_agents import parallel_env
from dppo.envs.vector import make_vector_env
from dppo.seams import Step
from dppo.seeding import EpisodeSeeds
from tests.herd import LONGEST, Herd

COWS = 3


def herds(num_envs: int = 2 * COWS, form: str = "Herd", **options: Any) -> tuple[AgentList, EpisodeSeeds]:
    """Returns simulators with three agents, and their seeds."""
    Herd.made = []
    restarts, first_env = options.pop("max_restarts", 0), options.pop("first_env", 0)
    seeds = EpisodeSeeds(5, first_env, num_envs, agents=COWS)
    envs = make_vector_env(
        f"tests.herd:{form}", num_envs, seeds.next, first_env=first_env, kwargs=options, max_restarts=restarts
    )
    assert isinstance(envs, AgentList)
    return envs, seeds


def actions_of(rows: int, num_envs: int = 2 * COWS) -> np.ndarray:
    return np.random.default_rng(1).integers(3, size=(rows, num_envs))


def copied(step: Step) -> dict[str, Any]:
    """What a row says, so that the rows after it leave it alone."""
    columns = ("observations", "rewards", "terminations", "truncations", "final_envs", "final_observations")
    valid = np.ones(len(step.rewards), bool) if step.valid is None else step.valid
    return {name: getattr(step, name).copy() for name in columns} | {"valid": valid.copy()}


def by_hand(seeds: EpisodeSeeds, simulator: int, actions: np.ndarray) -> list[dict[str, tuple[Any, ...]]]:
    """Plays one simulator through PettingZoo's own interface. Returns, by row, what each agent that was there has got:
    the observation before, reward, terminated, truncated, and the observation after.
    """
    herd, told, episode = Herd(COWS), [], 0
    observations, _ = herd.reset(seeds.of(COWS * simulator, 0))
    for row in actions:
        there = list(herd.agents)
        after, rewards, terminations, truncations, _ = herd.step({a: row[int(a[-1])] for a in there})
        told.append({a: (observations[a], rewards[a], terminations[a], truncations[a], after[a]) for a in there})
        observations = after
        if not herd.agents:
            episode += 1
            observations, _ = herd.reset(seeds.of(COWS * simulator, episode))
    return told


@pytest.mark.parametrize("form", ["Herd", "FlockVector"])
def test_every_agent_sees_and_earns_what_it_does_in_the_simulator_by_itself(form: str) -> None:
    envs, seeds = herds(form=form)
    actions = actions_of(120)
    expected = [by_hand(EpisodeSeeds(5, 0, 6, agents=COWS), s, actions[:, COWS * s : COWS * (s + 1)]) for s in (0, 1)]
    before, early = envs.reset(), 0
    for t, row in enumerate(actions):
        before = before.copy()
        step = copied(envs.step(row))
        finals = dict(zip(step["final_envs"].tolist(), step["final_observations"], strict=True))
        assert list(finals) == sorted(finals)
        for env in range(2 * COWS):
            simulator, agent = divmod(env, COWS)
            there = expected[simulator][t].get(f"cow_{agent}")
            assert bool(step["valid"][env]) == (there is not None), (t, env)
            if there is None:
                assert (step["rewards"][env], step["terminations"][env], step["truncations"][env]) == (0, False, False)
                early += 1
                continue
            seen, reward, terminated, truncated, after = there
            np.testing.assert_array_equal(before[env], seen)
            got = step["rewards"][env], step["terminations"][env], step["truncations"][env]
            assert got == (reward, terminated, truncated)
            assert (env in finals) == (terminated or truncated)
            np.testing.assert_array_equal(finals.get(env, step["observations"][env]), after)
        before = step["observations"]
    assert early > 20
    assert seeds.episodes.min() > 10


def test_an_agent_that_has_left_waits_with_its_last_observation_until_all_begin_together() -> None:
    envs, seeds = herds(COWS)
    envs.reset()
    waited = 0
    for row in actions_of(60, COWS):
        waits = seeds.episodes > seeds.episodes.min()
        step = envs.step(row)
        assert (step.valid is None) == (not waits.any())
        for env, final in zip(step.final_envs, step.final_observations, strict=True):
            assert (seeds.episodes == seeds.episodes.min()).all() or np.array_equal(step.observations[env], final)
        if (seeds.episodes == seeds.episodes.min()).all() and len(step.final_envs):
            assert step.observations[:, 1].tolist() == [0, 0, 0], "all have begun"
            waited += bool(waits.any())
    assert waited > 2


def test_truncation_keeps_the_true_last_observation_and_is_no_termination() -> None:
    envs, _ = herds(COWS)
    envs.reset()
    seen = 0
    for row in actions_of(200, COWS):
        step = envs.step(row)
        for env, final in zip(step.final_envs, step.final_observations, strict=True):
            if step.truncations[env]:
                seen += 1
                assert final[1] == LONGEST
    assert seen > 3


def test_agents_of_a_simulator_share_the_seed_of_an_episode() -> None:
    seeds = EpisodeSeeds(5, 6, 6, agents=COWS)
    alone = EpisodeSeeds(5, 6, 6)
    for episode in (0, 1, 70):
        assert [seeds.of(i, episode) for i in range(6)] == [alone.of(i, episode) for i in (0, 0, 0, 3, 3, 3)]


@pytest.mark.parametrize("form", ["Herd", "FlockVector"])
def test_seed_and_actions_of_all_agents_bring_a_simulator_back_wherever_it_was(form: str) -> None:
    envs, seeds = herds(form=form)
    other, _ = herds(form=form)
    envs.reset()
    actions = actions_of(40)
    begins, rewards = [0, 0], np.zeros((40, 6))
    restored = 0
    for t in range(39):
        step = envs.step(actions[t])
        rewards[t] = step.rewards
        now = step.observations.copy()
        numbers = seeds.episodes.reshape(2, COWS)
        for s in (0, 1):
            rows = slice(COWS * s, COWS * (s + 1))
            if (
                step.final_envs.size
                and (numbers[s] == numbers[s].min()).all()
                and set(step.final_envs) & {*range(6)[rows]}
            ):
                begins[s] = t + 1
        playing = [int(numbers[i // COWS].min()) for i in range(6)]
        histories = [actions[begins[i // COWS] : t + 1, i] for i in range(6)]
        earned: list[np.ndarray] = []
        again, failed = other.replay([seeds.of(i, e) for i, e in enumerate(playing)], histories, rewards=earned)
        assert failed == []
        np.testing.assert_array_equal(again, now)
        for i in range(6):
            np.testing.assert_array_equal(earned[i], rewards[begins[i // COWS] : t + 1, i])
        restored += (numbers != numbers.min(axis=1, keepdims=True)).any()
    assert restored > 10, "some agents were waiting"


def test_a_replay_that_ends_an_episode_on_the_way_or_takes_too_long_fails_for_all_agents() -> None:
    envs, seeds = herds()
    history = np.ones(40, np.int64)
    _, failed = envs.replay([seeds.of(i, 0) for i in range(6)], [history] * 3 + [history[:1]] * 3)
    assert failed[:3] == [0, 1, 2]
    _, failed = envs.replay([seeds.of(i, 0) for i in range(6)], [history] * 6, time.monotonic() - 1)
    assert failed == [*range(6)]
    _, failed = envs.replay(
        [seeds.of(i, 0) for i in range(6)], [history[:1], history[:1], history[:0]] + [history[:0]] * 3
    )
    assert failed == [0, 1, 2], "histories of one simulator that are not equally long"
    begun = envs.begin_episode(3)
    assert begun.shape == (COWS, 3) and begun[:, 1].tolist() == [0, 0, 0]
    assert seeds.episodes.tolist() == [-1, -1, -1, 0, 0, 0]


def test_a_row_survives_the_next_step() -> None:
    envs, _ = herds()
    before = envs.reset()
    for row in actions_of(30):
        kept = before.copy()
        after = envs.step(row)
        np.testing.assert_array_equal(before, kept)
        before = after.observations


@pytest.mark.parametrize(("form", "masks"), [("Herd", "info"), ("Herd", "leaf"), ("FlockVector", True)])
def test_masks_of_agents_are_those_of_their_infos_or_observations(form: str, masks: Any) -> None:
    envs, seeds = herds(form=form, masks=masks)
    assert envs.mask_size == 3
    observations = envs.reset()
    saw_waiting = False
    for _ in range(40):
        assert envs.masks is not None
        seen = observations["seen"] if masks == "leaf" else observations
        waits = seeds.episodes > seeds.episodes.reshape(2, COWS).min(axis=1).repeat(COWS)
        for i, row in enumerate(envs.masks):
            illegal = (int(seen[i, 1]) + i % COWS) % 3
            assert row.tolist() == [waits[i] or k != illegal for k in range(3)]
        saw_waiting |= bool(waits.any())
        legal = np.array([int(np.flatnonzero(row)[0]) for row in envs.masks])
        observations = envs.step(legal).observations
    assert saw_waiting


def test_without_masks_there_are_none() -> None:
    envs, _ = herds()
    assert envs.mask_size == 0 and envs.masks is None
    envs.reset()
    envs.step(actions_of(1)[0])
    assert envs.masks is None


def test_a_simulator_that_fails_is_made_anew_as_a_whole() -> None:
    envs, seeds = herds(fault="step raises", fails_from=4, max_restarts=2)
    envs.reset()
    steps = [copied(envs.step(row)) for row in actions_of(4)]
    waited = ~steps[3]["valid"][:COWS]
    assert envs.restarts == 2, "both have failed, once each"
    assert steps[3]["truncations"].tolist() == steps[3]["valid"].tolist()
    assert not steps[3]["terminations"].any() and not steps[3]["rewards"].any()
    np.testing.assert_array_equal(steps[3]["final_observations"], steps[2]["observations"][steps[3]["valid"]])
    assert steps[3]["observations"][:, 1].tolist() == [0] * 6
    assert seeds.episodes.tolist() == [1] * 6 and waited.shape == (COWS,)
    assert [herd.is_closed for herd in Herd.made] == [True, True, False, False]


def test_an_error_names_the_agents_of_the_simulator_and_ends_the_run() -> None:
    envs, _ = herds(fault="step raises", first_env=6)
    envs.reset()
    envs.step(actions_of(1)[0])
    with pytest.raises(RuntimeError, match="lightning") as caught:
        envs.step(actions_of(1)[0])
    assert "raised by simulator of environments 6..8 of 2 x tests.herd:Herd of 3 agents" in caught.value.__notes__[0]


def test_too_many_restarts_in_a_row_end_the_run() -> None:
    envs, _ = herds(fault="reset raises", max_restarts=2)
    with pytest.raises(RuntimeError, match="no grass") as caught:
        envs.reset()
    assert any("2 restarts of it in a row have not helped" in note for note in caught.value.__notes__)


def test_the_number_of_environments_counts_agents() -> None:
    with pytest.raises(ValueError, match=r"num_envs=8 counts agents here.*multiple of the 3 agents.*9 are 3 simulator"):
        herds(8)
    assert Herd.made[0].is_closed
    envs = make_vector_env("tests.herd:Herd", 4, lambda _: 0, rounds_up=True)
    assert (envs.num_envs, envs.agents, len(Herd.made)) == (6, ("cow_0", "cow_1", "cow_2"), 3)
    envs.close()
    assert all(herd.is_closed for herd in Herd.made)


def test_an_environment_without_agents_is_as_before() -> None:
    envs = make_vector_env("MountainCar-v0", 3, lambda _: 0, rounds_up=True)
    assert type(envs) is EnvList and (envs.num_envs, envs.agents) == (3, ())
    with pytest.raises(ValueError, match="no vector form of its own"):
        make_vector_env("tests.herd:Herd", 3, lambda _: 0, "native")


@pytest.mark.parametrize("form", ["Signs", "parallel_env"])
def test_the_probe_pays_what_it_says(form: str) -> None:
    seeds = EpisodeSeeds(0, 0, 12, agents=12)
    envs = make_vector_env(f"dppo.envs.probes_of_agents:{form}", 12, seeds.next)
    observations, returns, ended = envs.reset(), np.zeros(12), np.zeros(12, int)
    for _ in range(30):
        step = envs.step((observations[:, 0] > 0).astype(np.int64))
        observations = step.observations
        returns += step.rewards
        ended[step.final_envs] += 1
    assert ended.tolist() == [3] * 12
    assert (returns / 3).tolist() == [10, 8, 6] * 4 and returns.mean() / 3 == 8
    assert envs.agents[0] == ("agent_0" if form == "Signs" else "signaller_0")


def test_the_probe_remembers_what_all_agents_did() -> None:
    one, other = parallel_env(2), parallel_env(2)
    seen = []
    for env, actions in ((one, (0, 0)), (other, (0, 1))):
        env.reset(seed=3)
        seen.append(env.step(dict(zip(env.possible_agents, actions, strict=True)))[0]["signaller_0"])
    assert seen[0][0] == seen[1][0] and seen[0][1] != seen[1][1]
