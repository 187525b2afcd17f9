"""What `env`, `env_kwargs` and `wrappers` make, and what is said where they cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from dppo.envs.cartpole import CartPoleVector
from dppo.envs.maker import EnvMaker
from dppo.envs.vector import EnvList, NativeVector, make_vector_env
from tests.envs import sims_of_others

OURS = sims_of_others.__name__
Tank = sims_of_others.Tank


def named(name: str) -> str:
    return f"{OURS}:{name}"


def rewards(maker: EnvMaker, steps: int = 3) -> list[float]:
    env = maker.make()
    env.reset(seed=1)
    return [float(env.step(0)[1]) for _ in range(steps)]


# -- what is made --------------------


def test_a_class_or_a_function_needs_no_registration() -> None:
    env = EnvMaker(named("Tank")).make().unwrapped
    assert isinstance(env, Tank) and (env.scale, env.length) == (1.0, 6)
    env = EnvMaker(named("Tank"), {"scale": 3.0, "valves": [1, 2]}).make().unwrapped
    assert isinstance(env, Tank) and (env.scale, env.valves) == (3.0, [1, 2])
    env = EnvMaker(named("double_tank"), {"depth": 4.0}).make().unwrapped
    assert isinstance(env, Tank) and env.scale == 8.0
    assert env.spec is not None and env.spec.kwargs == {"depth": 4.0}


def test_a_registered_id_wins_over_an_attribute_of_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gymnasium.registry, "limited", EnvSpec("limited", f"{OURS}:Tank", max_episode_steps=2))
    env = EnvMaker(named("limited")).make()
    assert env.spec is not None and env.spec.id == "limited" and isinstance(env, gymnasium.wrappers.TimeLimit)


def test_arguments_go_over_those_of_the_registration() -> None:
    assert rewards(EnvMaker(named("TankOfOthers-v0"))) == [5.0] * 3
    assert rewards(EnvMaker("TankOfOthers-v0", {"scale": 2.0})) == [2.0] * 3
    assert gymnasium.spec("TankOfOthers-v0").kwargs == {"scale": 5.0}, "the registration is left as it was"


@pytest.mark.parametrize(("limit", "expected"), [(2, 2), (-1, 6), (None, 4)])
def test_the_limit_of_steps_is_an_argument_as_in_gymnasium_make(limit: int | None, expected: int) -> None:
    env = EnvMaker("TankOfOthers-v0", {} if limit is None else {"max_episode_steps": limit}).make()
    env.reset(seed=0)
    assert next(t for t in range(1, 10) if env.step(0)[3]) == expected


def test_wrappers_are_innermost_first() -> None:
    assert rewards(EnvMaker(named("Tank"), {}, [named("negated"), named("plus_one")])) == [0.0] * 3
    assert rewards(EnvMaker(named("Tank"), {}, [named("plus_one"), named("negated")])) == [-2.0] * 3
    assert rewards(EnvMaker(named("Tank"), {}, [named("plus_one")] * 2)) == [3.0] * 3
    flat = EnvMaker("TankOfOthers-v0", {}, ["gymnasium.wrappers:FlattenObservation"]).make()
    assert isinstance(flat, gymnasium.wrappers.FlattenObservation)


def test_each_environment_has_arguments_of_its_own() -> None:
    given = {"valves": {"sizes": [1]}}
    maker = EnvMaker(named("WroteOnce"), given)
    for _ in range(2):
        env = maker.make().unwrapped
        assert isinstance(env, Tank) and env.valves == {"sizes": [1], "uses": 1}
    assert given == {"valves": {"sizes": [1]}}


def test_what_is_registered_as_nondeterministic_is_not_replayed_either_way() -> None:
    assert not make_vector_env("DiceOfOthers-v0", 1, lambda _: 0).replayable
    assert not make_vector_env(named("dice"), 1, lambda _: 0, kwargs={"sides": 3}).replayable
    assert make_vector_env(named("Tank"), 1, lambda _: 0).replayable


def test_a_spec_of_the_users_own_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for own in ("a text", property(lambda env: None)):
        monkeypatch.setattr(Tank, "spec", own)
        assert EnvMaker(named("Tank")).make().spec == (own if own == "a text" else None)


def test_the_list_steps_what_is_made() -> None:
    envs = make_vector_env(named("Tank"), 2, lambda i: 7 + i, kwargs={"scale": 3.0}, wrappers=[named("limited")])
    assert isinstance(envs, EnvList) and envs.description == f"2 x {named('Tank')}, stepped one after another"
    single = Tank(3.0)
    np.testing.assert_array_equal(envs.reset()[0], single.reset(seed=7)[0])
    for t in range(1, 4):
        step = envs.step(np.array([1, 0]))
        observation, reward, *_ = single.step(1)
        assert step.rewards[0] == reward == 3.0 and step.truncations.all() == (t == 3)
    np.testing.assert_array_equal(step.final_observations[0], observation)


# -- CartPole's own vector forms --------------------


@pytest.mark.parametrize(
    ("kwargs", "wrappers", "form"),
    [
        ({}, [], CartPoleVector),
        ({"max_episode_steps": 30}, [], CartPoleVector),
        ({"max_episode_steps": -1}, [], EnvList),
        ({"sutton_barto_reward": False}, [], EnvList),
        ({}, [named("negated")], EnvList),
    ],
)
def test_the_form_in_numpy_stands_in_only_for_what_it_honours(
    kwargs: dict[str, Any], wrappers: list[str], form: type
) -> None:
    envs = make_vector_env("CartPole-v1", 2, lambda i: i, kwargs=kwargs, wrappers=wrappers)
    assert isinstance(envs, form)
    single = make_vector_env("CartPole-v1", 2, lambda i: i, "sync", kwargs=kwargs, wrappers=wrappers)
    np.testing.assert_array_equal(envs.reset(), single.reset())
    for t in range(60):
        one, other = envs.step(np.array([t % 2, 1])), single.step(np.array([t % 2, 1]))
        for name in ("observations", "rewards", "terminations", "truncations", "final_envs", "final_observations"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_native_form_gets_the_arguments() -> None:
    envs = make_vector_env("CartPole-v1", 2, lambda _: 0, "native", kwargs={"sutton_barto_reward": True})
    assert isinstance(envs, NativeVector)
    envs.reset()
    assert envs.step(np.zeros(2, np.int64)).rewards.tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="'CartPole-v1' cannot be made: it takes no argument 'sutton'; did you mean"):
        make_vector_env("CartPole-v1", 2, lambda _: 0, "native", kwargs={"sutton": True})


# -- the specification --------------------


def test_the_specification_of_a_callable_has_name_arguments_and_wrappers() -> None:
    maker = EnvMaker(named("double_tank"), {"depth": 4.0, "length": 5}, [named("negated"), named("plus_one")])
    described = json.loads(maker.to_json())
    assert (described["id"], described["entry_point"]) == (named("double_tank"), named("double_tank"))
    assert described["kwargs"] == {"depth": 4.0, "length": 5}
    assert [w["entry_point"] for w in described["additional_wrappers"]] == [named("negated"), named("plus_one")]
    again = gymnasium.make(EnvSpec.from_json(maker.to_json()))
    again.reset(seed=1)
    assert again.step(0)[1] == -7.0


def test_the_specification_of_an_id_has_the_arguments_over_those_of_the_registration() -> None:
    described = json.loads(EnvMaker(named("TankOfOthers-v0"), {"length": 2, "max_episode_steps": 9}).to_json())
    assert (described["id"], described["kwargs"]) == ("TankOfOthers-v0", {"scale": 5.0, "length": 2})
    assert described["max_episode_steps"] == 9
    assert json.loads(EnvMaker("CartPole-v1").to_json()) == json.loads(gymnasium.spec("CartPole-v1").to_json())


def test_where_json_lacks_a_value_the_specification_has_what_was_set() -> None:
    maker = EnvMaker("DiceOfOthers-v0", {"length": 2}, [named("negated")])  # its entry point is a class
    wrapper = {"name": "negated", "entry_point": named("negated"), "kwargs": {}}
    assert json.loads(maker.to_json()) == {
        "id": "DiceOfOthers-v0", "kwargs": {"length": 2}, "additional_wrappers": [wrapper],
    }  # fmt: skip


# -- what is said --------------------


def message(env: str, kwargs: dict[str, Any] | None = None, wrappers: tuple[str, ...] = ()) -> str:
    with pytest.raises(ValueError) as error:
        EnvMaker(env, kwargs, wrappers).make()
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("name", "kwargs", "parts"),
    [
        ("double_tank", {}, ["it needs 'depth': give --env-kwargs depth=VALUE", "double_tank(depth, length=6)"]),
        ("double_tank", {}, ["what is not of TOML, a function of yours passes (--env module:function)"]),
        (
            "double_tank",
            {"depth": 1, "lenght": 3},
            ["cannot be made: it takes no argument 'lenght'; did you mean 'length'? The constructor is double_tank("],
        ),
        ("double_tank", {"depth": 1, "zzz": 3}, ["no argument 'zzz'. The constructor is double_tank(depth, length=6)"]),
        # constructors with **kwargs take everything: what refuses it further inside is shown with its line
        (
            "Deep",
            {"lenght": 3},
            ["TypeError: Tank.__init__() got an unexpected", "sims_of_others.py:", "did you mean 'length'?", "Deep("],
        ),
        ("TankOfOthers-v0", {"lenght": 3}, ["env='TankOfOthers-v0'", "did you mean 'length'?", "Tank(scale=1.0, leng"]),
        ("TankOfOthers-v0", {"length": 0}, ["RuntimeError: a tank needs time (", "sims_of_others.py:"]),
        ("Tank", {"length": "x"}, ["TypeError: '<' not supported", "sims_of_others.py:"]),
        ("TankOfOthers-v0", {"max_episode_steps": 2.5}, ["max_episode_steps=2.5", "a positive whole number, or -1"]),
        ("TankOfOthers-v0", {"max_episode_steps": 0}, ["a positive whole number, or -1"]),
        ("no_licence", {}, [f"env='{OURS}:no_licence' cannot be made: RuntimeError: no licence (", ".py:"]),
        ("nothing", {}, ["returned nothing: return the environment"]),
        ("the_class", {}, ["returned the class Tank itself"]),
        ("a_number", {}, ["returned 3 (int), and must return a gymnasium.Env"]),
        ("a_vector", {}, ["a vector of environments: return a single one", "--vectorization native"]),
        ("Duck", {}, ["which is no gymnasium.Env: write `class Duck(gymnasium.Env)`"]),
        ("DuckOfOthers-v0", {}, ["its entry point returned Duck, which is no gymnasium.Env"]),
        ("FromGym", {}, ["of the old package gym", "shimmy's GymV21CompatibilityV0", "pip install 'shimmy[gym-v21]'"]),
        ("Old", {}, ["reset() of Old takes no seed", "return (observation, info)", "GymV21CompatibilityV0"]),
        ("not_called", {}, ["is an object of Tank, which cannot be called: name its class"]),
        ("Tnk", {}, ["no environment 'Tnk' is registered", f"did you mean '{OURS}:Tank'?"]),
        ("Zzzzzzz", {}, ["does not register it, and has no class or function of that name"]),
    ],
)  # fmt: skip
def test_a_constructor_that_makes_nothing_is_explained(name: str, kwargs: dict[str, Any], parts: list[str]) -> None:
    text = message(named(name), kwargs)
    for part in parts:
        assert part in text


def test_an_argument_of_gymnasiums_own_environments_is_named_with_the_nearest() -> None:
    text = message("CartPole-v1", {"sutton_barto": True})
    assert "did you mean 'sutton_barto_reward'? The constructor is CartPoleEnv(sutton_barto_reward=False" in text
    pytest.importorskip("mujoco")
    text = message("HalfCheetah-v5", {"ctrl_cost_wieght": 0.2})
    assert "did you mean 'ctrl_cost_weight'?" in text and "HalfCheetahEnv(xml_file=" in text
    assert "did you mean 'width'?" in message("HalfCheetah-v5", {"widht": 3}), "which its base class takes"


@pytest.mark.parametrize(
    ("wrapper", "parts"),
    [
        (named("negatd"), ["has no 'negatd'", f"did you mean '{OURS}:negated'?"]),
        (named("Zzzzzzz"), ["it has no class or function of that name"]),
        ("no_such_module:f", ["cannot import 'no_such_module': ModuleNotFoundError: No module named 'no_such_module'"]),
        ("folder/mine.py:f", ["name the module, not its file: mine:f, with PYTHONPATH=folder"]),
        (named("OURS"), ["has no 'OURS'"]),
        (named("HERE"), ["is an object of str, which cannot be called"]),
        (named("a_number"), ["returned 3 (int), and must return a gymnasium.Env"]),
        (named("broken_wrapper"), ["cannot be put around it: ZeroDivisionError: a bug (", "sims_of_others.py:"]),
        (
            "gymnasium.wrappers:TimeLimit",
            ["it needs 'max_episode_steps' as well, and a wrapper is given the environment alone", "TimeLimit(env, "],
        ),
    ],
)  # fmt: skip
def test_a_wrapper_that_does_not_fit_is_explained(wrapper: str, parts: list[str]) -> None:
    text = message(named("Tank"), {}, (named("limited"), wrapper))
    assert text.startswith(f"wrappers={wrapper!r}")
    for part in parts:
        assert part in text


def test_where_a_wrapper_fails_the_environment_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[object] = []
    monkeypatch.setattr(Tank, "close", lambda env: closed.append(env))
    message(named("Tank"), {}, (named("broken_wrapper"),))
    assert len(closed) == 1


def test_a_module_is_found_where_python_finds_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_users_module.py").write_text(
        f"from {OURS} import Tank\n\ndef make(scale):\n    return Tank(scale)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert rewards(EnvMaker("a_users_module:make", {"scale": 4.0})) == [4.0] * 3
