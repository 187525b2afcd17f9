"""The T-maze pays for memory, and for nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import dppo.envs.probes_of_memory  # noqa: F401 (registers it)
from dppo.envs.vector import make_vector_env

ID = "dppo/TMaze-v0"
Policy = Callable[[Any, Any], int]
"""From the first observation of the episode and the present one to an action."""


def episode(seed: int, policy: Policy, **kwargs: Any) -> tuple[list[Any], list[float]]:
    """Observations and rewards."""
    env = gymnasium.make(ID, **kwargs)
    observation, _ = env.reset(seed=seed)
    seen, rewards, ended = [observation], [], False
    while not ended:
        observation, reward, ended, truncated, _ = env.step(policy(seen[0], observation))
        assert not truncated
        seen.append(observation)
        rewards.append(float(reward))
    return seen, rewards


def side_of(first: Any) -> int:
    """The side that a first observation shows."""
    return int(first[0] > 0) if first.ndim == 1 else int(first[0, -1, 0] > 0)


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("length", [0, 1, 20])
def test_who_remembers_earns_one_at_the_end_of_length_plus_two_steps(length: int, image: bool) -> None:
    for seed in range(20):
        _, rewards = episode(seed, lambda first, _: side_of(first), length=length, image=image)
        assert rewards == [0.0] * (length + 1) + [1.0]


@pytest.mark.parametrize("policy", [lambda _, now: 0, lambda _, now: 1, lambda _, now: side_of(now)])
def test_who_only_reacts_earns_half(policy: Policy) -> None:
    returns = [sum(episode(seed, policy, length=3)[1]) for seed in range(400)]
    assert np.mean(returns) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("image", [False, True])
def test_both_sides_look_the_same_after_the_first_observation(image: bool) -> None:
    """Whatever was done; and corridor and junction can be told apart."""
    rng = np.random.default_rng(0)
    seen: dict[int, list[np.ndarray]] = {0: [], 1: []}
    for seed in range(20):
        observations, _ = episode(seed, lambda *_: int(rng.integers(2)), length=5, image=image)
        seen[side_of(observations[0])].append(np.stack(observations[:-1]))
    left, right = (np.stack(episodes) for episodes in seen.values())
    assert (left == left[:1]).all() and (right == right[:1]).all() and left.shape[1] == right.shape[1] == 7
    np.testing.assert_array_equal(left[0, 1:], right[0, 1:])
    assert len(np.unique([left[0, 0], right[0, 0], left[0, 1], left[0, -1]], axis=0)) == 4
    assert (left[0, 1:-1] == left[0, 1]).all()


@pytest.mark.parametrize("image", [False, True])
def test_gymnasium_accepts_it(image: bool) -> None:
    check_env(gymnasium.make(ID, image=image).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("image", [False, True])
def test_it_is_made_by_its_full_id_with_arguments_and_repeats_by_its_seed(image: bool) -> None:
    firsts = []
    for _ in range(2):
        kwargs = {"length": 2, "image": image}
        envs = make_vector_env(f"dppo.envs.probes_of_memory:{ID}", 8, lambda index: 10 + index, kwargs=kwargs)
        firsts.append(envs.reset().copy())
        ends = [envs.step(np.zeros(8, np.int64)).terminations.copy() for _ in range(4)]
        assert [end.all() for end in ends] == [end.any() for end in ends] == [False, False, False, True]
    np.testing.assert_array_equal(*firsts)
    assert {side_of(first) for first in firsts[0]} == {0, 1}


def test_a_length_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="length=-1 must be at least 0"):
        gymnasium.make(ID, length=-1)
