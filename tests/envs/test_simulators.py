"""Which objects are simulators of agents, and what is wrong with those that cannot be used."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from dppo.envs.maker import EnvMaker
from dppo.envs.simulators import Simulator, as_simulator, is_simulator
from dppo.envs.vector import make_vector_env
from tests.herd import FlockVector, Herd


@pytest.fixture(autouse=True)
def forgotten() -> None:
    Herd.made = []


def test_a_vector_and_a_parallel_env_are_simulators_and_nothing_else_is() -> None:
    assert is_simulator(Herd()) and is_simulator(FlockVector()) and is_simulator(gymnasium.make_vec("CartPole-v1", 2))
    for other in (gymnasium.make("CartPole-v1"), Herd, 3, None, object()):
        assert not is_simulator(other)


def test_a_simulator_has_one_agents_spaces_and_all_agents_names() -> None:
    simulator = as_simulator(Herd(2))
    assert isinstance(simulator, Simulator) and simulator.names == ("cow_0", "cow_1")
    assert simulator.observation_space.shape == (3,) and simulator.action_space.n == 3
    observations, infos = simulator.reset(seed=4)
    assert observations.shape == (2, 3) and infos == {"cow_0": {}, "cow_1": {}}
    observations, rewards, terminations, truncations, infos = simulator.step(np.array([1, 2]))
    assert observations.dtype == np.float32 and rewards.tolist() == [1.0, 2.1]
    assert terminations.dtype == truncations.dtype == bool and terminations.shape == truncations.shape == (2,)


def test_agents_of_a_vector_are_numbered_where_they_have_no_names() -> None:
    vector = FlockVector()
    assert as_simulator(vector).names == ("goose_0", "goose_1", "goose_2")
    vector.possible_agents = None
    assert as_simulator(vector).names == ("agent_0", "agent_1", "agent_2")


def test_wrappers_go_around_the_simulator_and_may_repair_it() -> None:
    with pytest.raises(ValueError, match="cannot share a policy"):
        EnvMaker("tests.herd:Herd", {"fault": "other actions"}).make()
    made = EnvMaker("tests.herd:Herd", {"fault": "other actions"}, ["tests.envs.test_simulators:repaired"]).make()
    assert isinstance(made, Simulator)


def repaired(herd: Any) -> Any:
    herd.fault = ""
    return herd


def a_number(herd: Any) -> int:
    return 3


def message(form: str, *, wrappers: tuple[str, ...] = (), **kwargs: Any) -> str:
    """The message that a user gets at the latest in the third step."""
    with pytest.raises(ValueError) as caught:
        envs = make_vector_env(f"tests.herd:{form}", 3, lambda _: 7, kwargs=kwargs, wrappers=wrappers)
        envs.reset()
        for _ in range(3):
            envs.step(np.zeros(3, np.int64))
    return str(caught.value)


@pytest.mark.parametrize(
    ("form", "options", "parts"),
    [
        ("Unlisted", {}, ["Unlisted does not list all its agents in possible_agents"]),
        ("Turns", {}, ["Turns is an AECEnv of PettingZoo", "name its parallel_env", "aec_to_parallel(env)"]),
        ("NoSeed", {}, ["reset() of NoSeed takes no seed"]),
        ("Herd", {"agents": 0}, ["it has no agents"]),
        ("Herd", {"fault": "other observations"}, ["'cow_1' observes Box(", "'cow_0' observes Box(", "supersuit:pad"]),
        ("Herd", {"fault": "other actions"}, ["'cow_2' takes Discrete(4), and 'cow_0' takes Discrete(3)"]),
        ("Herd", {"fault": "agents change"}, ["possible_agents were ['cow_0', 'cow_1', 'cow_2'] and are", "'calf'"]),
        ("Herd", {"fault": "one is late"}, ["reset() returned no observation of ['cow_2']", "agents may end early"]),
        ("Herd", {"fault": "no infos"}, ["expected dicts of observations and of infos"]),
        ("Herd", {"fault": "no dicts"}, ["expected five dicts by agents"]),
        ("Herd", {"fault": "says nothing of one"}, ["nothing of the agent 'cow_2', which has not ended"]),
        ("Herd", {"fault": "leaves without a word"}, ["'cow_0' has left", "is neither terminated nor truncated"]),
        ("Herd", {"fault": "a wrong shape"}, ["agent 'cow_0': an observation has shape (2,)", "says (3,)"]),
        ("Herd", {"fault": "one more comes"}, ["the agents ['calf'] have come", "not in possible_agents"]),
        ("FlockVector", {"agents": 0, "names": []}, ["FlockVector': it has no agents: its num_envs is 0"]),
        ("FlockVector", {"fault": "names change"}, ["were ['goose_0', 'goose_1', 'goose_2'] and are", "'gosling'"]),
        ("FlockVector", {"names": ["a", "b"]}, ["it has 3 agents (num_envs) and 2 names (possible_agents)"]),
        ("FlockVector", {"names": ["a", "b", "a"]}, ["agents of the same name: ['a', 'b', 'a']"]),
        ("Herd", {"wrappers": ("tests.envs.test_simulators:a_number",)}, ["returned 3 (int)"]),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_explained(form: str, options: dict[str, Any], parts: list[str]) -> None:
    text = message(form, **options)
    for part in parts:
        assert part in text


def test_a_vector_that_resets_its_environments_one_by_one_is_no_simulator() -> None:
    with pytest.raises(ValueError, match=r"autoreset_mode'\], which is AutoresetMode.NEXT_STEP, must be .*DISABLED"):
        as_simulator(gymnasium.make_vec("CartPole-v1", 2))
    vector = FlockVector()
    for mode in (*AutoresetMode, "Disabled", "NextStep", "SameStep", None):
        vector.metadata = {"autoreset_mode": mode}
        if mode in (AutoresetMode.DISABLED, "Disabled"):
            assert len(as_simulator(vector).names) == 3
        else:
            with pytest.raises(ValueError, match=f"which is {mode}, must be"):
                as_simulator(vector)
    vector.metadata = {}
    with pytest.raises(ValueError, match="which is not there, must be"):
        as_simulator(vector)


@pytest.mark.parametrize(
    ("entry_point", "said"),
    [
        ("tests.herd:Herd", r"a simulator of agents, .* name the entry point itself \(--env tests\.herd:Herd\), or a"),
        (FlockVector, r"a simulator of agents, .* name the entry point itself \(--env tests\.herd:FlockVector\), or a"),
        (lambda: gymnasium.make_vec("CartPole-v1", 2), "a vector of environments: return a single one"),
    ],
)
def test_an_id_of_a_simulator_is_refused_with_the_name_that_will_do(entry_point: Any, said: str) -> None:
    gymnasium.register("Herd-v0", entry_point)
    try:
        with pytest.raises(ValueError, match=rf"^env='Herd-v0' cannot be made: its entry point returned \w+, {said}"):
            EnvMaker("Herd-v0").make()
    finally:
        gymnasium.registry.pop("Herd-v0")


def test_agents_that_are_all_gone_without_a_word_are_truncated() -> None:
    envs = make_vector_env("tests.herd:Herd", 3, lambda _: 7, kwargs={"fault": "over without a word", "fails_from": 1})
    envs.reset()
    step = envs.step(np.zeros(3, np.int64))
    assert step.truncations.all() and step.final_envs.tolist() == [0, 1, 2] and not step.terminations.any()
