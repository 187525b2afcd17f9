"""Normals: worked by hand, samples in their proportions, units between the policy and the Box."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from gymnasium import spaces

from dppo.models.gaussian import DiagGaussian


def test_gaussian_worked_by_hand() -> None:
    """Mean 1, deviation 2, action 5, two deviations away: exp(-2) / (2 sqrt(2 pi))."""
    head, distribution = np.array([[1.0, np.log(2.0)]]), DiagGaussian(spaces.Box(-1, 1, (1,)))
    log_prob, entropy, _ = distribution.evaluate(head, np.array([[5.0]]))
    assert np.exp(log_prob).item() == pytest.approx(np.exp(-2) / (2 * np.sqrt(2 * np.pi)))
    assert entropy.item() == pytest.approx(0.5 * np.log(2 * np.pi * np.e * 4))


def test_gaussian_samples_have_mean_and_deviation() -> None:
    head = np.array([[1.0, -2.0, np.log(0.5), np.log(3.0)]], np.float32).repeat(20_000, 0)
    noise = np.random.default_rng(0).standard_normal((20_000, 2), dtype=np.float32)
    actions = DiagGaussian(spaces.Box(-1, 1, (2,))).sample(head, noise)
    np.testing.assert_allclose(actions.mean(0), [1.0, -2.0], atol=0.06)
    np.testing.assert_allclose(actions.std(0), [0.5, 3.0], rtol=0.02)


def test_gaussian_units_span_the_bounds() -> None:
    """-1, 0 and 1 are low, centre and high, in each dimension."""
    space = spaces.Box(np.array([-2.0, 0.0]), np.array([3.0, 0.5]), dtype=np.float64)
    env_actions = DiagGaussian(space).to_env(np.array([[-1, -1], [0, 0], [1, 1]], np.float32))
    np.testing.assert_allclose(env_actions, [[-2.0, 0.0], [0.5, 0.25], [3.0, 0.5]])
    assert env_actions.dtype == space.dtype


def test_gaussian_actions_are_clipped_to_the_bounds_on_the_way_and_stay_as_sampled() -> None:
    distribution = DiagGaussian(spaces.Box(-2.0, 3.0, (1,), np.float32))
    actions = distribution.sample(np.zeros((2, 2), np.float32), np.array([[5.0], [-7.0]], np.float32))
    assert distribution.to_env(actions).tolist() == [[3.0], [-2.0]]
    assert actions.tolist() == [[5.0], [-7.0]]


@pytest.mark.parametrize("limit", [np.inf, np.finfo(np.float32).max, 1e10])
def test_gaussian_units_are_the_environments_where_it_is_unbounded(limit: float) -> None:
    space = spaces.Box(np.array([-limit, 0.0, -1.0]), np.array([limit, limit, 1.0]), dtype=np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distribution = DiagGaussian(space)
    env_actions = distribution.to_env(np.array([[7.0, -4.0, 0.5]], np.float32))
    np.testing.assert_allclose(env_actions, [[7.0, 0.0, 0.5]])  # the second has one bound, and is clipped there


def test_gaussian_actions_have_the_shape_of_the_box() -> None:
    distribution = DiagGaussian(spaces.Box(-1.0, 1.0, (2, 3), np.float32))
    assert distribution.head_size == 12
    assert distribution.to_env(np.zeros((4, 6), np.float32)).shape == (4, 2, 3)
