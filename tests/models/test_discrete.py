"""Choices: Boxes of integers, and masks, against the same choices among what is legal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from dppo.models.discrete import Categorical, MultiCategorical
from dppo.models.distributions import make_distribution
from dppo.seeding import Purpose, draw_rows, generator
from tests.models.masking import CASES, expected_of_legal, random_masks

every_case = pytest.mark.parametrize("space", CASES.values(), ids=CASES)
INF = np.inf


# -- Boxes of integers --------------------


@pytest.mark.parametrize(
    ("space", "actions", "expected"),
    [
        (spaces.Box(-3, 2, (2,), np.int64), [[0, 5], [3, 4]], [[-3, 2], [0, 1]]),
        (spaces.Box(0, 255, (), np.uint8), [[0], [255]], [0, 255]),
        (spaces.Box(-128, 127, (1, 2), np.int8), [[0, 255], [128, 127]], [[[-128, 127]], [[0, -1]]]),
        (spaces.Box(np.array([5, -1]), np.array([5, 4]), dtype=np.int16), [[0, 5]], [[5, 4]]),
        (spaces.Box(2**63, 2**63 + 3, (1,), np.uint64), [[0], [3]], [[2**63], [2**63 + 3]]),
        (spaces.Box(0, 1, (3,), bool), [[0, 1, 1]], [[False, True, True]]),
        (spaces.Box(1, 1, (1,), bool), [[0]], [[True]]),
    ],
    ids=str,
)
def test_an_integer_counts_from_the_lower_bound_in_the_shape_and_type_of_the_box(
    space: spaces.Box, actions: Any, expected: Any
) -> None:
    sent = make_distribution(space).to_env(np.array(actions))
    assert sent.tolist() == expected
    assert sent.dtype == space.dtype
    assert all(space.contains(np.asarray(action)) for action in sent)


def test_a_box_of_integers_has_a_categorical_per_element() -> None:
    box = make_distribution(spaces.Box(np.array([[-1, 7]]), np.array([[1, 8]]), dtype=np.int32))
    as_choices = MultiCategorical(spaces.MultiDiscrete([3, 2]))
    assert isinstance(box, MultiCategorical)
    assert (box.choices, box.head_size, box.action_type) == ((3, 2), 5, ((2,), np.int64))
    rng = np.random.default_rng(0)
    head, noise = rng.normal(size=(9, 5)), draw_rows(rng, box.noise_kinds, 9)
    actions = box.sample(head, noise)
    np.testing.assert_array_equal(actions, as_choices.sample(head, noise))
    for own, other in zip(box.evaluate(head, actions)[:2], as_choices.evaluate(head, actions)[:2], strict=True):
        np.testing.assert_array_equal(own, other)


def test_256_values_are_not_too_many() -> None:
    space = spaces.Box(0, 255, (2,), np.uint8)
    distribution = make_distribution(space)
    noise = draw_rows(np.random.default_rng(0), distribution.noise_kinds, 2000)
    sent = distribution.to_env(distribution.sample(np.zeros((2000, 512), np.float32), noise))
    assert (sent.min(), sent.max(), sent.dtype) == (0, 255, np.uint8)


# -- masks, by hand --------------------


@pytest.mark.filterwarnings("error")
def test_a_mask_worked_by_hand() -> None:
    """Weights 1, 2, 4, 1 of which the third is not legal: probabilities 1/4, 1/2, 0, 1/4."""
    distribution = Categorical(spaces.Discrete(4))
    head = distribution.masked(np.log([[1.0, 2.0, 4.0, 1.0]]), np.array([[True, True, False, True]]))
    log_prob, entropy, pullback = distribution.evaluate(head, np.array([1]))
    assert log_prob.item() == pytest.approx(np.log(0.5))
    assert entropy.item() == pytest.approx(1.5 * np.log(2))
    np.testing.assert_allclose(pullback(np.ones(1), 0.0), [[-0.25, 0.5, 0.0, -0.25]])
    assert distribution.mode(head).tolist() == [1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_ruled_out_action_has_no_part_in_entropy_and_kl(dtype: type) -> None:
    """As if it were not there: 0 log 0 = 0."""
    head = np.array([[0.3, -np.inf, 1.0], [-np.inf, 0.2, -np.inf]], dtype)
    old = np.array([[0.1, -np.inf, 0.5], [-np.inf, -3.0, -np.inf]], dtype)
    distribution, without = Categorical(spaces.Discrete(3)), Categorical(spaces.Discrete(2))
    log_prob, entropy, pullback = distribution.evaluate(head, np.array([2, 1]))
    expected = without.evaluate(head[:1, [0, 2]], np.array([1]))
    assert log_prob.tolist() == [expected[0][0], 0.0]
    assert entropy.tolist() == [expected[1][0], 0.0]
    assert distribution.kl(old, head).tolist() == [without.kl(old[:1, [0, 2]], head[:1, [0, 2]])[0], 0.0]
    for gradient in (pullback(np.ones(2, dtype), 0.3), distribution.kl_backward(old, head, 1.0)):
        assert np.isfinite(gradient).all()
        assert not gradient[~np.isfinite(head)].any()


def test_a_mask_leaves_the_networks_outputs_as_they_are() -> None:
    """And costs nothing where all is legal."""
    distribution = MultiCategorical(spaces.MultiDiscrete([2, 3]))
    outputs = np.arange(5, dtype=np.float32)[None]
    masks = np.array([[True, False, False, True, True]])
    assert distribution.masked(outputs, masks).tolist() == [[0, -INF, -INF, 3, 4]]
    assert distribution.masked(outputs, masks).dtype == np.float32
    assert outputs.tolist() == [[0, 1, 2, 3, 4]]
    assert distribution.masked(outputs, np.ones_like(masks)) is outputs


@pytest.mark.parametrize("space", [spaces.MultiBinary(3), spaces.Box(-1.0, 1.0, (2,))], ids=str)
def test_bits_and_floats_have_no_mask(space: spaces.Space) -> None:
    distribution, head = make_distribution(space), np.zeros((2, 4), np.float32)
    assert (distribution.mask_size, distribution.choices) == (0, ())
    assert distribution.masked(head, np.empty((2, 0), bool)) is head


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_single_legal_action_is_certain(dtype: type) -> None:
    """Exactly: log p = 0, H = 0, and no gradient, whatever the logits are."""
    distribution = MultiCategorical(spaces.MultiDiscrete([3, 2]))
    raw = np.array([[5.0, -7.0, 80.0, 0.0, 1.0], [0.0, 1e38, -1e38, -1e38, 1e38]], dtype)
    masks = np.array([[False, True, False, True, False], [False, False, True, True, False]])
    head, actions = distribution.masked(raw, masks), np.array([[1, 0], [2, 0]])
    log_prob, entropy, pullback = distribution.evaluate(head, actions)
    assert log_prob.tolist() == entropy.tolist() == [0.0, 0.0]
    assert not pullback(np.array([3.0, -2.0], dtype), 0.7).any()
    assert distribution.kl(head, head).tolist() == [0.0, 0.0]
    assert not distribution.kl_backward(distribution.masked(-raw, masks), head, 2.0).any()
    noise = draw_rows(np.random.default_rng(0), distribution.noise_kinds, 2)
    for chosen in (distribution.mode(head), distribution.sample(head, noise)):
        np.testing.assert_array_equal(chosen, actions)


# -- masks, against what is legal alone --------------------


@pytest.mark.filterwarnings("error")
@every_case
def test_a_masked_head_is_a_head_over_what_is_legal(space: spaces.Space) -> None:
    """Log-probability, entropy, KL and all gradients, row by row, as torch has them for the space of legal actions."""
    distribution, rng = make_distribution(space), np.random.default_rng(0)
    masks = random_masks(distribution.choices, 40, rng)
    old, head = (distribution.masked(rng.normal(0.0, 2.0, (40, distribution.head_size)), masks) for _ in range(2))
    actions = distribution.sample(old, draw_rows(rng, distribution.noise_kinds, 40))
    d_log_prob, d_entropy, weight = rng.standard_normal(40), 0.3, 1.7
    with np.errstate(divide="raise", over="raise", invalid="raise"):
        log_prob, entropy, pullback = distribution.evaluate(head, actions)
        gradients = pullback(d_log_prob, d_entropy), distribution.kl_backward(old, head, weight)
        kl = distribution.kl(old, head)
    for i in range(40):
        legal = expected_of_legal(space, old[i], head[i], actions[i : i + 1], d_log_prob[i], d_entropy, weight)
        np.testing.assert_allclose([log_prob[i], entropy[i], kl[i]], legal.figures, rtol=1e-6, atol=1e-12)
        for gradient, expected in zip(gradients, legal.gradients, strict=True):
            np.testing.assert_allclose(gradient[i], expected, rtol=1e-6, atol=1e-9)
            assert not gradient[i][head[i] == -INF].any(), "exactly 0"


@every_case
def test_gradients_through_a_mask_are_finite_differences(space: spaces.Space) -> None:
    """Of log-probability, entropy and KL, with respect to all outputs of the network, the ruled out ones included."""
    distribution, rng = make_distribution(space), np.random.default_rng(1)
    masks = random_masks(distribution.choices, 6, rng)
    outputs = rng.normal(size=(6, distribution.head_size))
    old = distribution.masked(rng.normal(size=outputs.shape), masks)
    actions = distribution.sample(old, draw_rows(rng, distribution.noise_kinds, 6))
    d_log_prob = rng.standard_normal(6)

    def total(outputs: np.ndarray) -> float:
        head = distribution.masked(outputs, masks)
        log_prob, entropy, _ = distribution.evaluate(head, actions)
        return float((d_log_prob * log_prob + 0.3 * entropy + 1.7 * distribution.kl(old, head)).sum())

    head = distribution.masked(outputs, masks)
    gradient = distribution.evaluate(head, actions)[2](d_log_prob, 0.3) + distribution.kl_backward(old, head, 1.7)
    for index in np.ndindex(outputs.shape):
        step = np.zeros_like(outputs)
        step[index] = 1e-6
        slope = (total(outputs + step) - total(outputs - step)) / 2e-6
        assert gradient[index] == pytest.approx(slope, rel=1e-5, abs=1e-7), index


@every_case
def test_what_is_not_legal_is_neither_sampled_nor_the_mode(space: spaces.Space) -> None:
    """Although its logits are far greater, and so is its noise."""
    distribution, rng = make_distribution(space), np.random.default_rng(2)
    masks = random_masks(distribution.choices, 500, rng)
    outputs = rng.normal(size=(500, distribution.head_size)).astype(np.float32)
    if distribution.mask_size == distribution.head_size:
        outputs[~masks] = 3e38
    head = distribution.masked(outputs, masks)
    for actions in (distribution.sample(head, draw_rows(rng, distribution.noise_kinds, 500)), distribution.mode(head)):
        log_prob = distribution.evaluate(head, actions)[0]
        assert (log_prob > -100).all(), "an action that is ruled out has -1e30"


def test_among_a_million_samples_none_is_illegal_and_rare_ones_keep_their_share() -> None:
    """The logits of the illegal ones are the greatest by far. Within five deviations."""
    probabilities = np.array([1e-4, 0.0, 1 - 1.01e-2, 0.0, 1e-2])
    outputs = np.log(probabilities, where=probabilities > 0, out=np.full(5, 90.0)).astype(np.float32)
    distribution = Categorical(spaces.Discrete(5))
    head = distribution.masked(outputs[None], (probabilities > 0)[None])
    noise = draw_rows(generator(0, Purpose.ACTIONS), distribution.noise_kinds, 1_000_000)
    counts = np.bincount(distribution.sample(head, noise), minlength=5)
    assert counts[1] == counts[3] == 0
    assert (np.abs(counts - 1e6 * probabilities) <= 5 * np.sqrt(1e6 * probabilities * (1 - probabilities))).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("legal", [-3e38, -1e30, 0.0, 3e38])
@pytest.mark.parametrize("illegal", [-3e38, 0.0, 3e38, np.nan])
def test_the_ends_of_float32_change_nothing(legal: float, illegal: float) -> None:
    """Two legal actions of one logit among illegal ones, with noise that is far beyond what is ever drawn."""
    distribution = Categorical(spaces.Discrete(4))
    masks = np.array([[False, True, False, True]])
    head = distribution.masked(np.where(masks, np.float32(legal), np.float32(illegal)), masks)
    assert np.isfinite(head[masks]).all()
    noise = np.array([[100, -100, 100, -100], [100, -100, 100, 100], [-100, -100, -100, -100]], np.float32)
    assert set(distribution.sample(head, noise)) <= {1, 3}
    log_prob, entropy, pullback = distribution.evaluate(head, np.array([3]))
    assert (log_prob.item(), entropy.item()) == pytest.approx((-np.log(2), np.log(2)))
    np.testing.assert_allclose(pullback(np.ones(1, np.float32), 0.1), [[0, -0.5, 0, 0.5]], atol=1e-6)
    assert distribution.kl(head, head).item() == 0.0
