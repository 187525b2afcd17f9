"""Every probe in spaces of several kinds has the values that it says, and is deterministic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from dppo.envs import probes_of_spaces
from dppo.envs.vector import make_vector_env
from tests.parts import probe

NAMES = [probe.__name__ for probe in probes_of_spaces.PROBES]
EPISODES = 200

Policy = Callable[[Any, Any], Any]
"""From an observation and a mask to an action."""


def make(name: str, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    return gymnasium.make(f"dppo/{name}-v0", **kwargs)


def rewards(name: str, policy: Policy, **kwargs: Any) -> np.ndarray:
    """Of episodes with the seeds 0, 1, …"""
    env, out = make(name, **kwargs), []
    for seed in range(EPISODES):
        observation, info = env.reset(seed=seed)
        _, reward, terminated, truncated, _ = env.step(policy(observation, info.get("action_mask")))
        assert terminated and not truncated
        out.append(reward)
    return np.array(out)


def xor(observation: Any, mask: Any) -> int:
    return int((observation["vector"][0] > 0) != (observation["image"].mean() > 128))


def copied(observation: Any, mask: Any) -> dict[str, Any]:
    return {"drive": (observation["gear"], observation["force"]), "switches": observation["switches"]}


def legal(observation: Any, mask: Any) -> int:
    kind = int(observation[0] > 0)
    return next(action for action in (kind, kind + 2) if mask[action])


OPTIMAL: list[tuple[str, Policy, float]] = [
    ("ProbeInputs", xor, 1.0),
    ("ProbeParts", copied, 2.0),
    ("ProbeMask", legal, 1.0),
    ("ProbeChoice", lambda observation, mask: int((observation + 3) // 3 % 2), 1.0),
    ("ProbeManyChoices", lambda observation, mask: int((observation - 10) // 3 % 2), 1.0),
]


@pytest.mark.parametrize(("name", "policy", "value"), OPTIMAL)
def test_the_optimal_policy_earns_the_optimal_value(name: str, policy: Policy, value: float) -> None:
    np.testing.assert_array_equal(rewards(name, policy), value)


@pytest.mark.parametrize(
    "policy",
    [
        lambda observation, mask: int(observation["vector"][0] > 0),
        lambda observation, mask: int(observation["image"].mean() > 128),
        lambda observation, mask: 1,
    ],
    ids=["vector", "image", "neither"],
)
def test_neither_the_vector_nor_the_image_is_enough(policy: Policy) -> None:
    assert rewards("ProbeInputs", policy).mean() == pytest.approx(0.5, abs=0.1)


def test_each_part_of_an_action_is_paid_for_itself() -> None:
    def wrong(observation: Any, mask: Any) -> dict[str, Any]:
        action = copied(observation, mask)
        switches = action["switches"] ^ np.array([0, 1], np.int8)
        return {"drive": (observation["gear"] % 3 + 1, observation["force"] + np.float32(0.5)), "switches": switches}

    np.testing.assert_allclose(rewards("ProbeParts", wrong), 0.0 - 0.25 + 0.5, atol=1e-6)


def test_the_illegal_action_would_pay_and_is_never_taken() -> None:
    def illegal(observation: Any, mask: Any) -> int:
        return int(np.flatnonzero(~mask).item())

    assert (rewards("ProbeMask", illegal, pays=True) == 10.0).all()
    with pytest.raises(AssertionError, match=r"the environment got action \d, which its mask rules out"):
        rewards("ProbeMask", illegal)
    first_legal = rewards("ProbeMask", lambda observation, mask: int(np.flatnonzero(mask)[0]))
    assert first_legal.mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("name", ["ProbeChoice", "ProbeManyChoices"])
def test_one_action_for_all_choices_earns_half(name: str) -> None:
    assert rewards(name, lambda observation, mask: 0).mean() == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("name", NAMES)
def test_gymnasium_accepts_it(name: str) -> None:
    kwargs = {"pays": True} if name == "ProbeMask" else {}
    check_env(make(name, **kwargs).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_made_by_its_full_id_and_repeats_by_its_seed(name: str) -> None:
    streams = []
    for _ in range(2):
        envs = make_vector_env(probe(name.removeprefix("Probe")), 3, lambda index: 10 + index)
        rows = [envs.reset().tobytes()]
        assert (envs.masks is not None) == (name == "ProbeMask")
        rows += [] if envs.masks is None else [envs.masks.tobytes()]
        streams.append(rows)
    assert streams[0] == streams[1]
