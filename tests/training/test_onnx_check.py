"""The comparison of an ONNX file with its policy finds what is wrong in either."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from dppo.config import ModelConfig
from dppo.envs.leaves import leaves
from dppo.training.exported import export
from dppo.training.onnx_check import Difference, _choice_distance, _samples, drawn_observations, largest_difference
from tests.exported import MANY_OBSERVED, policy_of
from tests.models import structured_networks

SMALL = ModelConfig(hidden=(8,))
GIVEN: dict[str, Any] = {"mask_size": 0, "reward_scale": 1.0, "is_sampled": False}


def test_observations_are_drawn_from_the_space_about_the_means_of_training() -> None:
    policy = policy_of(MANY_OBSERVED, spaces.Discrete(2), SMALL)
    inputs = policy.actor_critic.inputs
    drawn = drawn_observations(inputs, MANY_OBSERVED, 200, np.random.default_rng(0))
    for leaf in leaves(MANY_OBSERVED):
        assert all(leaf.space.contains(value) for value in leaf.of(drawn)), leaf
        if leaf.shape != (0,):
            assert np.ptp(leaf.of(drawn).astype(float)) > 0, leaf
    vectors = inputs.vectors(drawn)
    floats = inputs.normalised(drawn)[("float",)]
    np.testing.assert_allclose(floats.mean(0), 0.0, atol=0.5)
    np.testing.assert_allclose(floats.std(0), 2.0, atol=0.3)
    assert np.abs(vectors).max() <= policy.config.moments.clip


def test_a_network_that_knows_small_numbers_only_is_given_small_ones() -> None:
    """`Table` has four entries for pixels."""
    factory = f"{structured_networks.__name__}:Table"
    policy = policy_of(structured_networks.SPACE, spaces.Discrete(2), ModelConfig(factory=factory))
    samples = _samples(policy.actor_critic, policy.spaces, 150, **GIVEN)
    assert [len(sample.observations) for sample in samples] == [1, 100, 49]
    assert np.unique(np.concatenate([sample.observations["image"] for sample in samples])).tolist() == [0, 1]


class TakesNothing(structured_networks.Plain):
    def features(self, observations: Any) -> Any:
        if len(observations["vector"]) > 20:
            raise IndexError("too many")
        return super().features(observations)


def test_what_cannot_be_compared_is_told() -> None:
    policy = policy_of(structured_networks.SPACE, spaces.Discrete(2), ModelConfig(factory=f"{__name__}:TakesNothing"))
    with pytest.raises(ValueError, match="the network cannot be compared, it raises IndexError: too many"):
        largest_difference(policy.actor_critic, policy.spaces, b"", 100, **GIVEN)
    policy = policy_of(structured_networks.SPACE, spaces.Discrete(2), SMALL)
    with pytest.raises(RuntimeError, match="onnxruntime cannot compute it: "):
        largest_difference(policy.actor_critic, policy.spaces, b"no file", 100, **GIVEN)


def test_every_difference_is_found() -> None:
    policy = policy_of(spaces.Box(-1, 1, (4,)), spaces.Box(-1, 1, (2,)), SMALL)
    data, small = export(policy)
    assert small.size < 1e-6
    parts, given = policy.actor_critic, GIVEN | {"reward_scale": policy.reward_scale}

    def difference(**changed: Any) -> Difference:
        return largest_difference(parts, policy.spaces, data, 100, **(given | changed))

    assert difference() == difference()
    assert difference(reward_scale=2 * policy.reward_scale).where == "value"
    for name, where in {"policy.bias": "action", "value.bias": "value", "log_std": "log_prob"}.items():
        parts.flat.parameters[name] += 1e-3
        found = difference()
        assert found.where == where and found.size > 1e-4, name
        parts.flat.parameters[name] -= 1e-3
    parts.inputs.vector_leaves[0][1].clip = 0.5  # type: ignore[union-attr]
    assert difference().size > 1e-3


def test_of_two_equal_choices_either_may_be_taken() -> None:
    (leaf,) = leaves(spaces.Discrete(3, start=5))
    scores = np.array([[1.0, 1.0 - 1e-7, 0.0], [1.0, 0.5, -np.inf]], np.float32)

    def distance(*taken: int) -> float:
        return _choice_distance(leaf, (3,), np.array(taken), np.array([5, 5]), scores)

    assert distance(5, 5) == 0.0
    assert 0.0 < distance(6, 5) < 1e-6
    assert distance(5, 6) == 0.5
    assert distance(5, 7) == distance(8, 5) == np.inf
