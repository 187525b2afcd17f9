"""The T-maze needs memory, pays what it says, and is deterministic."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import dppo.envs.probes_of_memory

assert dppo.envs.probes_of_memory

Policy = Callable[[np.ndarray, np.ndarray], int]
"""From the first observation and the present one to an action."""


def play(policy: Policy, seed: int, **kwargs: object) -> tuple[float, int]:
    """Return and length of an episode."""
    env = gymnasium.make("dppo/ProbeTMaze-v0", **kwargs)
    first, _ = env.reset(seed=seed)
    observation, earned, length, done = first, 0.0, 0, False
    while not done:
        observation, reward, done, _, _ = env.step(policy(first, observation))
        earned, length = earned + float(reward), length + 1
    return earned, length


def remembers(first: np.ndarray, now: np.ndarray) -> int:
    return 0 if not now[2] else 1 if first[0] < 0 else 2


def remembers_picture(first: np.ndarray, now: np.ndarray) -> int:
    return 0 if now[3, 0, 0] != 255 or (now == first).all() else 1 if first[0, 0, 0] == 255 else 2


@pytest.mark.parametrize("length", [1, 5, 20])
def test_a_policy_with_memory_earns_1(length: int) -> None:
    assert {play(remembers, seed, length=length) for seed in range(20)} == {(1.0, length + 1)}
    assert {play(remembers_picture, seed, length=length, image=True) for seed in range(20)} == {(1.0, length + 1)}


@pytest.mark.parametrize("turn", [0, 1, 2])
def test_a_policy_without_memory_earns_half_at_most(turn: int) -> None:
    """All junctions look alike, so that it takes one turn in all of them."""
    mean = np.mean([play(lambda _, now: turn if now[2] else 0, seed)[0] for seed in range(200)])
    assert mean == pytest.approx(0.5 if turn else 0.0, abs=0.1)


def test_a_wrong_turn_in_the_corridor_costs_a_tenth() -> None:
    assert play(lambda _, now: 1, 0, length=3)[0] in (pytest.approx(0.7), pytest.approx(-0.3))


@pytest.mark.parametrize("image", [False, True])
def test_it_is_a_proper_environment(image: bool) -> None:
    check_env(gymnasium.make("dppo/ProbeTMaze-v0", image=image).unwrapped, skip_render_check=True)
