"""The actor-critic: spaces that it fits, its head, acting and differentiating."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from dppo.config import ModelConfig, MomentsConfig
from dppo.envs.leaves import array_type
from dppo.models.policy import ROWS, ROWS_OF_IMAGES, ActorCritic, make_policy
from dppo.seeding import draw_rows
from tests import torch_reference as reference

OBSERVATIONS = spaces.Box(-1.0, 1.0, (5,), np.float32)
every_space = pytest.mark.parametrize("space", reference.SPACES.values(), ids=reference.SPACES)


def make(space: spaces.Space, seed: int = 0, cfg: ModelConfig | None = None) -> ActorCritic:
    rng = np.random.default_rng(seed)
    return make_policy(OBSERVATIONS, space, cfg or ModelConfig(hidden=(16,)), MomentsConfig(), rng, num_sums=2)


def inputs_of(batch: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 5)).astype(np.float32)


def noise_of(policy: ActorCritic, batch: int) -> np.ndarray:
    distribution = policy.distribution
    return draw_rows(np.random.default_rng(2), distribution.noise_kinds, batch)


def assert_equal_to_rounding(actual: np.ndarray, expected: np.ndarray) -> None:
    """Acting may be compiled, and forward is not: sums come in another order."""
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


@every_space
def test_acting_samples_from_the_head_of_forward(space: spaces.Space) -> None:
    policy = make(space)
    inputs, noise = inputs_of(ROWS), noise_of(policy, ROWS)  # BLAS may round another number of rows otherwise
    actions, head, _ = policy.act(inputs, noise)
    actions, head = actions.copy(), head.copy()
    forward_head, forward_value = policy.forward(inputs)
    assert_equal_to_rounding(head, forward_head)
    np.testing.assert_array_equal(policy.value(inputs), forward_value)
    np.testing.assert_array_equal(policy.distribution.sample(head, noise), actions)


@every_space
def test_a_row_of_seven_environments_is_the_beginning_of_one_of_eight(space: spaces.Space) -> None:
    policy = make(space)
    inputs, noise = inputs_of(ROWS), noise_of(policy, ROWS)
    actions, head = (array.copy() for array in policy.act(inputs, noise)[:2])
    fewer_actions, fewer_heads, _ = policy.act(inputs[:7], noise[:7])
    np.testing.assert_array_equal(fewer_heads, head[:7])
    np.testing.assert_array_equal(fewer_actions, actions[:7])


def test_images_have_blocks_of_their_own_in_which_a_row_has_the_same_bits() -> None:
    """Four environments of images cost no padding, and act as they do among sixteen."""
    image = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    policy = make_policy(image, spaces.Discrete(6), ModelConfig(), MomentsConfig(), np.random.default_rng(0))
    observations = np.random.default_rng(1).integers(256, size=(16, 4, 84, 84), dtype=np.uint8)
    noise = noise_of(policy, 16)
    head, values = (np.copy(array) for array in policy.act(observations, noise)[1:])
    for n in (1, 2, ROWS_OF_IMAGES, 6, 8, 12):
        _, fewer, fewer_values = policy.act(observations[:n], noise[:n])
        np.testing.assert_array_equal(fewer, head[:n])
        np.testing.assert_array_equal(fewer_values, values[:n])


def test_rows_that_only_fill_a_block_are_observations_too() -> None:
    """Zero is none of a choice that starts above it: neither an index of an embedding nor one of the inputs."""
    space = spaces.Dict({"many": spaces.Discrete(100, start=7), "few": spaces.Discrete(3, start=50)})
    policy = make_policy(space, spaces.Discrete(3), ModelConfig(hidden=(4,)), MomentsConfig(), np.random.default_rng(0))
    observations = np.zeros(2, array_type(space)[1])
    observations["many"], observations["few"] = [7, 106], [50, 52]
    _, head, _ = policy.act(observations, noise_of(policy, 2))
    np.testing.assert_allclose(head, policy.forward(observations)[0], rtol=1e-5)


@every_space
@pytest.mark.parametrize("batch", [7, 8])
def test_the_head_is_written_where_it_is_wanted_and_nowhere_else(space: spaces.Space, batch: int) -> None:
    """Into one row of a rollout's heads; it stays when the network's own buffers are written again."""
    policy = make(space)
    inputs, noise = inputs_of(batch), noise_of(policy, batch)
    expected_actions, expected_head = (array.copy() for array in policy.act(inputs, noise)[:2])
    heads = np.full((3, batch, policy.distribution.head_size), 99.0, np.float32)
    actions, head, _ = policy.act(inputs, noise, heads[1])
    assert np.shares_memory(head, heads[1])
    np.testing.assert_array_equal(actions, expected_actions)
    policy.act(10 * inputs, noise)
    np.testing.assert_array_equal(heads[1], expected_head)
    np.testing.assert_array_equal(heads[::2], 99.0)


@every_space
def test_greedy_is_the_mode(space: spaces.Space) -> None:
    policy = make(space)
    inputs = inputs_of(7)
    assert_equal_to_rounding(policy.greedy(inputs), policy.distribution.mode(policy.forward(inputs)[0]))


@every_space
def test_initial_actions_hardly_depend_on_the_observation(space: spaces.Space) -> None:
    """The policy's last layer starts small: every action can happen before anything was learnt."""
    head = make(space).forward(10 * inputs_of(50))[0]
    assert np.abs(head).max() < 0.1


@every_space
def test_the_same_stream_gives_the_same_policy(space: spaces.Space) -> None:
    for backend in ("numpy", "torch"):
        cfg = ModelConfig(hidden=(4,), backend=backend)  # type: ignore[arg-type]
        first, second, other = make(space, 3, cfg), make(space, 3, cfg), make(space, 4, cfg)
        assert first.flat.fingerprint() == second.flat.fingerprint() != other.flat.fingerprint()


def test_a_box_policy_has_one_log_std_for_all_states() -> None:
    policy = make(reference.SPACES["Box"], cfg=ModelConfig(hidden=(4,), log_std_init=-0.5))
    head = policy.forward(inputs_of(6))[0]
    np.testing.assert_array_equal(head[:, 2:], np.full((6, 2), -0.5, np.float32))
    policy.flat.parameters["log_std"][:] = 0.25, 0.75
    np.testing.assert_array_equal(
        policy.forward(inputs_of(6))[0][:, 2:], np.tile(np.array([0.25, 0.75], np.float32), (6, 1))
    )


def test_the_gradient_of_log_std_is_the_sum_over_samples() -> None:
    policy = make(reference.SPACES["Box"])
    policy.forward(inputs_of(6))
    d_head = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    policy.backward(d_head, np.zeros(6, np.float32))
    np.testing.assert_allclose(policy.flat.gradients["log_std"], d_head[:, 2:].sum(0), rtol=1e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("log_std", "kept"),
    [(-25.0, -20.0), (-500.0, -20.0), (-20.0, -20.0), (-19.0, -19.0), (3.0, 3.0), (25.0, 20.0), (1e9, 20.0)],
)
def test_a_log_std_is_kept_within_bounds_in_which_all_is_finite(log_std: float, kept: float) -> None:
    policy = make(reference.SPACES["Box"])
    policy.flat.parameters["log_std"][:] = [log_std, 0.0]
    before = {name: values.copy() for name, values in policy.flat.parameters.items() if name != "log_std"}
    policy.flat.keep_within_bounds()
    np.testing.assert_array_equal(policy.flat.parameters["log_std"], np.array([kept, 0.0], np.float32))
    assert all(np.array_equal(policy.flat.parameters[name], values) for name, values in before.items())
    actions, head, _ = policy.act(inputs_of(6), noise_of(policy, 6))
    log_prob, entropy, pullback = policy.distribution.evaluate(head, actions)
    assert np.isfinite(actions).all() and np.isfinite(log_prob).all() and np.isfinite(entropy).all()
    policy.forward(inputs_of(6))
    policy.backward(pullback(np.ones(6, np.float32), 0.5), np.zeros(6, np.float32))
    assert np.isfinite(policy.flat.gradient).all()


def test_room_for_sums_is_behind_the_gradient() -> None:
    policy = make(reference.SPACES["Discrete"])
    assert len(policy.flat.sums) == 2
    assert len(policy.flat.summed) == policy.flat.size + 2


def test_the_description_counts_the_parameters() -> None:
    """(5 + 1) 16 + (16 + 1) 4 for the policy, (5 + 1) 16 + (16 + 1) for the value."""
    policy = make(reference.SPACES["Discrete"])
    assert policy.flat.size == 6 * 16 + 17 * 4 + 6 * 16 + 17
    assert f"{policy.flat.size} parameters" in policy.description


def test_masks_rule_actions_out_wherever_the_policy_is_asked() -> None:
    policy, rng = make(spaces.Discrete(4)), np.random.default_rng(3)
    inputs, masks = inputs_of(ROWS), rng.random((ROWS, 4)) < 0.5
    masks[:, 2] |= ~masks.any(axis=1)
    heads = np.full((ROWS, 4), np.nan, np.float32)
    actions, head, _ = policy.act(inputs, noise_of(policy, ROWS), heads, masks)
    assert head is heads and masks[np.arange(ROWS), actions].all()
    np.testing.assert_array_equal(np.isneginf(head), ~masks)
    assert_equal_to_rounding(policy.forward(inputs, masks)[0], head)
    np.testing.assert_array_equal(policy.greedy(inputs, masks), np.where(masks, head, -np.inf).argmax(axis=1))
    policy.backward(np.where(masks, 1.0, 0.0).astype(np.float32), np.zeros(ROWS, np.float32))
    assert np.isfinite(policy.flat.gradient).all()


def test_a_rollout_of_the_policy_has_its_types() -> None:
    space = spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(-2.0, 2.0, (2,), np.float64)})
    rng = np.random.default_rng(0)
    policy = make_policy(OBSERVATIONS, space, ModelConfig(hidden=(4,)), MomentsConfig(), rng, 0, 3)
    rollout = policy.blank_rollout(7, 5, 2)
    assert (rollout.first_row, rollout.inputs.shape, rollout.masks.shape) == (7, (5, 2, 5), (5, 2, 3))
    assert rollout.actions.dtype["b"].base == np.float32 and rollout.env_actions.dtype["b"].base == np.float64
    assert rollout.valid.all() and not (rollout.terminations | rollout.truncations).any()
    plain = make(spaces.Discrete(2)).blank_rollout(0, 5, 2)
    assert plain.env_actions is plain.actions and plain.masks.shape == (5, 2, 0)
