"""The plain distributions: torch's numbers and gradients, samples in their proportions, actions as environments want
them.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from dppo.models.distributions import (
    Bernoulli,
    Categorical,
    MultiCategorical,
    make_distribution,
)
from dppo.seeding import draw_rows
from tests import torch_reference as reference

every_space = pytest.mark.parametrize("space", reference.SPACES.values(), ids=reference.SPACES)
NOISE_KINDS = {"Discrete": "gumbel", "MultiDiscrete": "gumbel", "MultiBinary": "uniform", "Box": "normal"}


def random_case(space: spaces.Space, seed: int = 0, batch: int = 25) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Heads of an old policy and a new one, float64, and actions."""
    rng = np.random.default_rng(seed)
    heads = rng.normal(0.0, 1.0, (2, batch, make_distribution(space).head_size))
    return heads[0], heads[1], reference.random_actions(space, batch, rng)


def even_noise(size: int) -> np.ndarray:
    """[size, 1] float32 in [0, 1), evenly spaced: frequencies under it are probabilities, to within 1 / size."""
    return ((np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size))[:, None]


def gumbel_noise(size: int, columns: int) -> np.ndarray:
    """[size, columns] float32, NumPy's own: frequencies under it are probabilities, to within 1 / sqrt(size)."""
    return np.random.default_rng(0).gumbel(size=(size, columns)).astype(np.float32)


# -- by hand --------------------


def test_categorical_worked_by_hand() -> None:
    """Probabilities 1/4, 1/2, 1/4: log p = log 1/2, H = 1/2 log 4 + 1/2 log 2."""
    head = np.log([[1.0, 2.0, 1.0]])
    log_prob, entropy, _ = Categorical(spaces.Discrete(3)).evaluate(head, np.array([1]))
    assert log_prob.item() == pytest.approx(np.log(0.5))
    assert entropy.item() == pytest.approx(1.5 * np.log(2))


def test_a_categorical_sample_is_the_argmax_of_head_and_noise() -> None:
    """0 + 0.5, 1 + 1 and 2 - 0.5; then 0 + 3, 1 + 1 and 2 + 0."""
    head, noise = np.array([[0.0, 1.0, 2.0]] * 2), np.array([[0.5, 1.0, -0.5], [3.0, 1.0, 0.0]])
    assert Categorical(spaces.Discrete(3)).sample(head, noise).tolist() == [1, 0]


def test_a_multi_categorical_sample_is_an_argmax_for_each_part() -> None:
    """1 + 0 and 0 + 2 for the first part; 0 + 1, 0 + 5 and 3 + 0.5 for the second."""
    head, noise = np.array([[1.0, 0.0, 0.0, 0.0, 3.0]]), np.array([[0.0, 2.0, 1.0, 5.0, 0.5]])
    assert MultiCategorical(spaces.MultiDiscrete([2, 3])).sample(head, noise).tolist() == [[1, 1]]


def test_multi_categorical_worked_by_hand() -> None:
    """(1/4, 3/4) and (1/2, 1/2) taken as (1, 0): 3/4 x 1/2."""
    head = np.log([[1.0, 3.0, 5.0, 5.0]])
    log_prob, _, _ = MultiCategorical(spaces.MultiDiscrete([2, 2])).evaluate(head, np.array([[1, 0]]))
    assert np.exp(log_prob).item() == pytest.approx(3 / 8)


def test_bernoulli_worked_by_hand() -> None:
    """Bits of probability 3/4 and 1/2, taken as (1, 0): 3/4 x 1/2."""
    log_prob, entropy, _ = Bernoulli(spaces.MultiBinary(2)).evaluate(np.log([[3.0, 1.0]]), np.array([[1, 0]]))
    assert np.exp(log_prob).item() == pytest.approx(3 / 8)
    assert entropy.item() == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) + np.log(2))


# -- torch's numbers --------------------


@every_space
def test_log_prob_entropy_and_kl_are_torchs(space: spaces.Space) -> None:
    reference.assert_same(make_distribution(space), space, *random_case(space)[:3])


@every_space
@pytest.mark.parametrize("d_entropy", [0.0, 0.3])
def test_backward_is_autograds(space: spaces.Space, d_entropy: float) -> None:
    _, head, actions = random_case(space)
    d_log_prob = np.random.default_rng(1).standard_normal(len(head))
    leaf = reference.tensors(head)[0].requires_grad_()
    total = (reference.log_prob(space, leaf, actions) * torch.from_numpy(d_log_prob)).sum()
    (total + d_entropy * reference.entropy(space, leaf).sum()).backward()
    assert leaf.grad is not None
    actual = make_distribution(space).evaluate(head, actions)[2](d_log_prob, d_entropy)
    np.testing.assert_allclose(actual, leaf.grad, rtol=1e-6, atol=1e-9)


@every_space
def test_a_pullback_may_be_called_again_and_writes_on_nothing_that_it_was_given(space: spaces.Space) -> None:
    """Neither on the head, of which the network has kept the buffer, nor on what `evaluate` returned."""
    _, head, actions = random_case(space)
    d_log_prob = np.random.default_rng(1).standard_normal(len(head))
    before = head.copy(), actions.copy(), d_log_prob.copy()
    log_prob, entropy, pullback = make_distribution(space).evaluate(head, actions)
    returned = log_prob.copy(), entropy.copy()
    np.testing.assert_array_equal(pullback(d_log_prob, 0.3), pullback(d_log_prob, 0.3))
    for array, kept in zip((head, actions, d_log_prob, log_prob, entropy), before + returned, strict=True):
        np.testing.assert_array_equal(array, kept)


@every_space
def test_kl_backward_is_autograds(space: spaces.Space) -> None:
    old, new, _ = random_case(space)
    torch_old, leaf = reference.tensors(old, new)
    (1.7 * reference.kl(space, torch_old, leaf.requires_grad_()).sum()).backward()
    assert leaf.grad is not None
    actual = make_distribution(space).kl_backward(old, new, 1.7)
    np.testing.assert_allclose(actual, leaf.grad, rtol=1e-6, atol=1e-9)


@every_space
def test_kl_of_a_policy_with_itself_is_zero_and_flat(space: spaces.Space) -> None:
    _, head, _ = random_case(space)
    distribution = make_distribution(space)
    np.testing.assert_allclose(distribution.kl(head, head), 0.0, atol=1e-12)
    np.testing.assert_allclose(distribution.kl_backward(head, head, 1.0), 0.0, atol=1e-12)


@every_space
def test_float32_heads_give_float32(space: spaces.Space) -> None:
    old, new, actions = random_case(space)
    old, new = old.astype(np.float32), new.astype(np.float32)
    distribution = make_distribution(space)
    results = [*distribution.evaluate(new, actions)[:2], distribution.kl(old, new)]
    results += [distribution.kl_backward(old, new, 0.5)]
    results += [distribution.evaluate(new, actions)[2](np.ones(len(new), np.float32), 0.1)]
    assert {r.dtype for r in results} == {np.dtype(np.float32)}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "space", [s for n, s in reference.SPACES.items() if n != "Box"], ids=lambda s: type(s).__name__
)
def test_certainty_is_finite(space: spaces.Space) -> None:
    distribution = make_distribution(space)
    head = np.full((4, distribution.head_size), -300.0, np.float32)
    head[:, 0] = 300.0
    actions = reference.random_actions(space, 4, np.random.default_rng(0))
    assert np.isfinite(distribution.evaluate(head, actions)[:2]).all()
    assert np.isfinite(distribution.evaluate(head, actions)[2](np.ones(4, np.float32), 0.1)).all()
    assert np.isfinite(distribution.kl(head, -head)).all()


@pytest.mark.filterwarnings("error")
def test_a_bit_that_is_ruled_out_or_forced_is_certain() -> None:
    head = np.array([[-np.inf, np.inf, 0.0]], np.float32)
    distribution = Bernoulli(spaces.MultiBinary(3))
    assert (distribution.sample(np.repeat(head, 50, 0), even_noise(50).repeat(3, 1))[:, :2] == [0, 1]).all()
    log_prob, entropy, pullback = distribution.evaluate(head, np.array([[0, 1, 1]]))
    assert log_prob.item() == pytest.approx(np.log(0.5))
    assert entropy.item() == pytest.approx(np.log(2))
    assert pullback(np.ones(1, np.float32), 0.3).tolist() == [[0.0, 0.0, 0.5]]
    assert distribution.kl(head, head).item() == 0.0
    assert distribution.kl_backward(head, head, 1.0).tolist() == [[0.0, 0.0, 0.0]]


# -- sampling --------------------


def test_categorical_samples_in_proportion() -> None:
    probabilities = np.array([0.1, 0.45, 0.05, 0.4])
    head = np.log(probabilities)[None].astype(np.float32) + np.float32(7)  # logits count up to a constant
    actions = Categorical(spaces.Discrete(4)).sample(head, gumbel_noise(2_000_000, 4))
    np.testing.assert_allclose(np.bincount(actions, minlength=4) / 2_000_000, probabilities, atol=1.1e-3)


def test_multi_categorical_samples_each_part_in_proportion_and_independently() -> None:
    first, second = np.array([0.3, 0.7]), np.array([0.2, 0.5, 0.3])
    head = np.log(np.concatenate((first, second)))[None].astype(np.float32)
    actions = MultiCategorical(spaces.MultiDiscrete([2, 3])).sample(head, gumbel_noise(500_000, 5))
    joint = np.bincount(3 * actions[:, 0] + actions[:, 1], minlength=6).reshape(2, 3) / 500_000
    np.testing.assert_allclose(joint, np.outer(first, second), atol=0.002)


def test_bernoulli_samples_in_proportion() -> None:
    probability = np.array([0.05, 0.5, 0.8])
    head = np.log(probability / (1 - probability))[None].repeat(1000, 0).astype(np.float32)
    bits = Bernoulli(spaces.MultiBinary(3)).sample(head, even_noise(1000).repeat(3, 1))
    np.testing.assert_allclose(bits.mean(0), probability, atol=1.1e-3)


ENDS = {"uniform": (0.0, np.nextafter(np.float32(1), np.float32(0))), "gumbel": (-4.0, 87.4)}
"""The least and the greatest noise of a kind in float32, or a little beyond."""


@pytest.mark.parametrize("space", [spaces.Discrete(5), spaces.MultiDiscrete([5, 2]), spaces.MultiBinary(2)], ids=str)
def test_the_ends_of_the_noise_give_actions_of_the_space(space: spaces.Space) -> None:
    """All numbers of a row at one end, or each at any."""
    distribution, rng = make_distribution(space), np.random.default_rng(0)
    head = rng.normal(0.0, 8.0, (200, distribution.head_size)).astype(np.float32)
    which = rng.integers(2, size=(200, distribution.noise_size))
    which[:50], which[50:100] = 0, 1
    noise = np.array(ENDS[distribution.noise_kinds[0][0]], np.float32)[which]
    for action in distribution.to_env(distribution.sample(head, noise)):
        assert space.contains(np.asarray(action, space.dtype))


def test_an_impossible_action_is_never_sampled() -> None:
    """Nor where the noise speaks for it as loudly as float32 lets it."""
    head = np.array([[-np.inf, 0.0, -np.inf]], np.float32)
    least, greatest = ENDS["gumbel"]
    for noise in (gumbel_noise(10_000, 3), np.array([[greatest, least, greatest]], np.float32)):
        assert set(Categorical(spaces.Discrete(3)).sample(head, noise)) == {1}
        both = MultiCategorical(spaces.MultiDiscrete([3, 3])).sample(np.tile(head, 2), np.tile(noise, 2))
        assert set(both.ravel()) == {1}


@every_space
def test_the_mode_is_the_most_probable(space: spaces.Space) -> None:
    _, head, _ = random_case(space, batch=6)
    distribution = make_distribution(space)
    mode = distribution.mode(head)
    best, _, _ = distribution.evaluate(head, mode)
    for seed in range(40):
        other = reference.random_actions(space, 6, np.random.default_rng(seed))
        assert (best >= distribution.evaluate(head, other)[0]).all()


@every_space
def test_samples_of_a_row_do_not_depend_on_its_neighbours(space: spaces.Space) -> None:
    _, head, _ = random_case(space, batch=9)
    distribution = make_distribution(space)
    noise = draw_rows(np.random.default_rng(2), distribution.noise_kinds, 9)
    together = distribution.sample(head, noise)
    for i in range(9):
        np.testing.assert_array_equal(distribution.sample(head[i : i + 1], noise[i : i + 1])[0], together[i])


# -- on the way to the environment --------------------


@pytest.mark.parametrize(
    ("space", "actions", "expected"),
    [
        (spaces.Discrete(3, start=-1), [0, 2], [-1, 1]),
        (spaces.Discrete(3), [0, 2], [0, 2]),
        (spaces.MultiDiscrete([3, 4], start=[10, -2]), [[0, 3]], [[10, 1]]),
        (spaces.MultiDiscrete(np.array([[2, 3], [4, 5]])), [[1, 2, 3, 4]], [[[1, 2], [3, 4]]]),
        (spaces.MultiBinary((2, 2)), [[1, 0, 0, 1]], [[[1, 0], [0, 1]]]),
    ],
    ids=str,
)
def test_discrete_actions_get_start_and_shape_of_their_space(space: Any, actions: Any, expected: Any) -> None:
    env_actions = make_distribution(space).to_env(np.array(actions))
    assert env_actions.tolist() == expected
    assert all(space.contains(np.asarray(a, space.dtype)) for a in env_actions)


# -- which one --------------------


@pytest.mark.parametrize("name", reference.SPACES)
def test_sizes_fit_together(name: str) -> None:
    distribution, is_box = make_distribution(reference.SPACES[name]), name == "Box"
    head = np.zeros((5, distribution.head_size), np.float32)
    actions = distribution.sample(head, np.zeros((5, distribution.noise_size), np.float32))
    log_prob, entropy, _ = distribution.evaluate(head, actions)
    assert log_prob.shape == entropy.shape == (5,)
    assert distribution.network_outputs == distribution.noise_size == distribution.head_size // (2 if is_box else 1)
    assert distribution.log_std_size == distribution.head_size - distribution.network_outputs
    assert distribution.noise_kinds == ((NOISE_KINDS[name], distribution.noise_size),)
    assert distribution.action_type == (actions.shape[1:], actions.dtype)


WHOLE = spaces.Box(0, 256, (2,), np.int32)  # 257 values


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (spaces.Text(3), ["action space Text(", "MultiBinary, Box, and Dict and Tuple of these are", "(env, function"]),
        (spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Tuple([spaces.Sequence(spaces.Discrete(2))])}),
         ["part 'b/0' of the action space, Sequence(Discrete(2)", "Dict and Tuple of these are", "function, space)"]),
        (spaces.Graph(spaces.Discrete(2), None), ["action space Graph(", "Dict and Tuple of these are"]),
        (spaces.Dict({"speed": WHOLE}), ["part 'speed' of", "at most 256 values per element, and one has 257",
                                         "a space with a Box of floats in this place, and a function that rounds"]),
        (WHOLE, ["action space Box(0, 256, (2,), int32)", "one has 257", "astype('int32'), Box(low, high"]),
        (spaces.Box(-np.inf, np.inf, (2,), np.int64), ["one has 18,446,744,073,709,551,616", "astype('int64')"]),
        (spaces.Tuple([spaces.Dict({})]), ["part '0' of the action space, Dict(),", "it has no part"]),
        (spaces.Dict({"a/b": spaces.Discrete(2)}), ["it has the key 'a/b': keys must be texts"]),
        (spaces.Box(0.0, 1.0, (3, 0)), ["it has no element", "function, space)"]),
        (spaces.MultiDiscrete([]), ["it has no element"]),
    ],
    ids=lambda case: type(case).__name__,
)  # fmt: skip
def test_a_refusal_names_the_part_the_reason_and_the_repair(space: spaces.Space, words: list[str]) -> None:
    with pytest.raises(ValueError, match="is not supported: ") as refused:
        make_distribution(space)
    for word in [*words, "register the environment with gymnasium.wrappers.TransformAction(env, "]:
        assert word in str(refused.value)


@pytest.mark.parametrize("high", [1000, np.iinfo(np.int64).max])
def test_the_advice_for_a_box_of_integers_works_when_it_is_followed(high: int) -> None:
    class Whole(gymnasium.Env):
        observation_space = spaces.Box(0, 1, (1,), np.float32)
        action_space = spaces.Box(np.array([[-2, 0]]), np.array([[3, high]]), dtype=np.int64)

        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, object]]:
            assert self.action_space.contains(action)
            return np.zeros(1, np.float32), 0.0, False, False, {}

    env = Whole()
    with pytest.raises(ValueError, match="TransformAction") as refused:
        make_distribution(env.action_space)
    advice = re.search(r"gymnasium\.wrappers\.TransformAction\(.*\)(?= around it)", str(refused.value))
    assert advice is not None
    names = {"low": env.action_space.low, "high": env.action_space.high, "Box": spaces.Box}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium's, of bounds that a float does not hold
        wrapped = eval(advice[0], {"gymnasium": gymnasium, "env": env} | names)
    distribution = make_distribution(wrapped.action_space)
    rng = np.random.default_rng(0)
    head = rng.normal(size=(200, distribution.head_size)).astype(np.float32)
    noise = rng.normal(size=(200, distribution.noise_size)).astype(np.float32)
    for action in distribution.to_env(distribution.sample(head, noise)):
        wrapped.step(action)
