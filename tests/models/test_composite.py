"""Dict and Tuple actions: the sums of their parts, torch's numbers and gradients, the environment's own structure."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from dppo.envs.leaves import are_equal, array_type, leaves, to_value
from dppo.models.composite import Composite
from dppo.models.distributions import make_distribution
from dppo.seeding import ActionNoise, draw_rows
from tests import torch_reference as reference
from tests.models.masking import CASES, random_masks

NESTED = CASES["Dict"]
SPACES: dict[str, spaces.Space] = {
    "nested": NESTED,
    "one part": spaces.Dict({"a": spaces.Box(-1.0, 1.0, (2,))}),
    "no normals": spaces.Tuple([spaces.Discrete(3), spaces.MultiBinary(2)]),
    "normals first": spaces.Tuple([spaces.Box(-1.0, 1.0, (2,)), spaces.Dict({"b": spaces.Box(0.0, 1.0, ())})]),
}
every_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


def random_case(space: spaces.Space, batch: int = 25, dtype: type = np.float64) -> tuple[np.ndarray, ...]:
    """Heads of an old policy and a new one, actions of the old, and d_log_prob."""
    distribution, rng = make_distribution(space), np.random.default_rng(0)
    old, new = rng.normal(0.0, 1.0, (2, batch, distribution.head_size)).astype(dtype)
    actions = distribution.sample(old, draw_rows(rng, distribution.noise_kinds, batch))
    return old, new, actions, rng.standard_normal(batch).astype(dtype)


# -- by hand --------------------


def test_a_choice_and_a_number_worked_by_hand() -> None:
    """Choice 1 of (1/4, 3/4), and 5 of mean 1 and deviation 2: 3/4 exp(-2) / (2 sqrt(2 pi)). The head: two logits, the
    mean, the log deviation.
    """
    distribution = make_distribution(spaces.Tuple([spaces.Discrete(2), spaces.Box(-1.0, 1.0, (1,))]))
    actions = np.zeros(1, distribution.action_type[1])
    actions["0"], actions["1"] = 1, 5.0
    log_prob, entropy, pullback = distribution.evaluate(np.array([[0.0, np.log(3.0), 1.0, np.log(2.0)]]), actions)
    assert np.exp(log_prob).item() == pytest.approx(0.75 * np.exp(-2) / (2 * np.sqrt(2 * np.pi)))
    choice = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert entropy.item() == pytest.approx(choice + 0.5 * np.log(2 * np.pi * np.e * 4))
    np.testing.assert_allclose(pullback(np.ones(1), 0.0), [[-0.25, 0.25, 1.0, 3.0]])


def test_the_columns_of_head_noise_and_masks_worked_by_hand() -> None:
    """All outputs come first, in the order of the leaves, then all log deviations; a Dict sorts its keys."""
    distribution = make_distribution(
        spaces.Tuple(
            [
                spaces.Box(-1.0, 1.0, (2,)),
                spaces.Dict({"y": spaces.Box(-1.0, 1.0, (1,)), "x": spaces.MultiDiscrete([2, 3])}),
                spaces.MultiBinary(1),
            ]
        )
    )
    assert (distribution.network_outputs, distribution.log_std_size, distribution.head_size) == (9, 3, 12)
    assert distribution.noise_kinds == (("normal", 2), ("gumbel", 5), ("normal", 1), ("uniform", 1))
    assert (distribution.noise_size, distribution.choices, distribution.mask_size) == (9, (2, 3), 5)
    means, logits, mean, bit = [1.0, 2.0], [0.0, 9.0, 0.0, 0.0, 9.0], [3.0], [9.0]
    head = np.array([[*means, *logits, *mean, *bit, *np.log([10.0, 20.0, 30.0])]], np.float32)
    noise = np.array([[0.5, 0.25, 0, 0, 0, 0, 0, -0.5, 0.5]], np.float32)
    (action,) = distribution.sample(head, noise)
    assert action["0"] == pytest.approx([6.0, 7.0])  # 1 + 10 / 2 and 2 + 20 / 4
    assert action["1"]["x"].tolist() == [1, 2]
    assert action["1"]["y"] == pytest.approx([-12.0])  # 3 - 30 / 2
    assert action["2"].tolist() == [1]
    masked = distribution.masked(head, np.array([[True, False, False, True, True]]))
    assert np.flatnonzero(masked == -np.inf).tolist() == [3, 4]


def test_a_tuple_of_discretes_is_a_multi_discrete() -> None:
    parts = make_distribution(spaces.Tuple([spaces.Discrete(2), spaces.Discrete(4), spaces.Discrete(3)]))
    whole = make_distribution(spaces.MultiDiscrete([2, 4, 3]))
    rng = np.random.default_rng(0)
    head, noise = rng.normal(size=(9, 9)).astype(np.float32), draw_rows(rng, whole.noise_kinds, 9)
    actions = parts.sample(head, noise)
    expected = whole.sample(head, noise)
    np.testing.assert_array_equal(reference.columns_of(spaces.Tuple([spaces.Discrete(2)] * 3), actions), expected)
    for own, other in zip(parts.evaluate(head, actions)[:2], whole.evaluate(head, expected)[:2], strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-6)
    np.testing.assert_array_equal(parts.kl_backward(-head, head, 0.5), whole.kl_backward(-head, head, 0.5))


# -- torch's numbers --------------------


@every_space
def test_log_prob_entropy_and_kl_are_torchs(space: spaces.Space) -> None:
    reference.assert_same(make_distribution(space), space, *random_case(space)[:3])


@every_space
@pytest.mark.parametrize("d_entropy", [0.0, 0.3])
def test_backward_is_autograds(space: spaces.Space, d_entropy: float) -> None:
    old, new, actions, d_log_prob = random_case(space)
    torch_old, leaf, torch_d = reference.tensors(old, new, d_log_prob)
    total = (reference.log_prob(space, leaf.requires_grad_(), actions) * torch_d).sum()
    (total + d_entropy * reference.entropy(space, leaf).sum()).backward()
    assert leaf.grad is not None
    actual = make_distribution(space).evaluate(new, actions)[2](d_log_prob, d_entropy)
    np.testing.assert_allclose(actual, leaf.grad, rtol=1e-6, atol=1e-9)
    leaf.grad = None
    (1.7 * reference.kl(space, torch_old, leaf).sum()).backward()
    actual = make_distribution(space).kl_backward(old, new, 1.7)
    np.testing.assert_allclose(actual, leaf.grad, rtol=1e-6, atol=1e-9)


@every_space
def test_float32_heads_give_float32_and_nothing_is_written_on(space: spaces.Space) -> None:
    old, new, actions, d_log_prob = random_case(space, dtype=np.float32)
    kept = old.copy(), new.copy(), actions.copy(), d_log_prob.copy()
    distribution = make_distribution(space)
    log_prob, entropy, pullback = distribution.evaluate(new, actions)
    results = [log_prob, entropy, pullback(d_log_prob, 0.1), pullback(d_log_prob, 0.1)]
    results += [distribution.kl(old, new), distribution.kl_backward(old, new, 0.5)]
    assert {r.dtype for r in results} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(results[2], results[3])
    for array, before in zip((old, new, actions, d_log_prob), kept, strict=True):
        assert are_equal(array, before)


# -- samples --------------------


def test_parts_are_sampled_in_proportion_and_independently() -> None:
    space = spaces.Dict({"bit": spaces.MultiBinary(1), "choice": spaces.Discrete(2), "number": spaces.Box(-1, 1, (1,))})
    distribution = make_distribution(space)
    bit, choice = np.array([0.3, 0.7]), np.array([0.4, 0.6])
    head = np.concatenate(([np.log(0.7 / 0.3)], np.log(choice), [2.0, np.log(3.0)])).astype(np.float32)
    noise = ActionNoise(0, 0, 200, distribution.noise_kinds).rows(0, 1000).reshape(200_000, -1)
    actions = distribution.sample(np.tile(head, (200_000, 1)), noise)
    joint = np.bincount(2 * actions["bit"][:, 0] + actions["choice"], minlength=4).reshape(2, 2) / 200_000
    np.testing.assert_allclose(joint, np.outer(bit, choice), atol=0.005)
    for mask in (actions["choice"] == 0, actions["bit"][:, 0] == 1):
        number = actions["number"][mask, 0]
        assert (number.mean(), number.std()) == pytest.approx((2.0, 3.0), abs=0.06)


@every_space
def test_samples_of_a_row_do_not_depend_on_its_neighbours(space: spaces.Space) -> None:
    _, head, _, _ = random_case(space, batch=9, dtype=np.float32)
    distribution = make_distribution(space)
    noise = draw_rows(np.random.default_rng(2), distribution.noise_kinds, 9)
    together = distribution.sample(head, noise)
    for i in range(9):
        assert are_equal(distribution.sample(head[i : i + 1], noise[i : i + 1]), together[i : i + 1])


@every_space
def test_the_mode_is_the_most_probable(space: spaces.Space) -> None:
    _, head, _, _ = random_case(space, batch=200)
    distribution = make_distribution(space)
    best = distribution.evaluate(head, distribution.mode(head))[0]
    noise = draw_rows(np.random.default_rng(1), distribution.noise_kinds, 200)
    assert (best >= distribution.evaluate(head, distribution.sample(head, noise))[0]).all()


# -- actions as arrays --------------------


@every_space
def test_actions_have_the_type_that_is_announced_and_lie_like_the_space(space: spaces.Space) -> None:
    _, head, actions, _ = random_case(space)
    distribution = make_distribution(space)
    assert isinstance(distribution, Composite)
    assert (actions.shape[1:], actions.dtype) == distribution.action_type
    assert distribution.mode(head).dtype == actions.dtype
    for leaf in leaves(space):
        part = leaf.of(actions)
        alone = make_distribution(leaf.space)
        assert (part.shape[1:], part.dtype) == alone.action_type
        np.testing.assert_array_equal(leaf.of(distribution.to_env(actions)), alone.to_env(part))


@every_space
@pytest.mark.filterwarnings("ignore:.*Casting input x")  # Gymnasium's, of a Box without axes
def test_the_environment_gets_a_value_of_its_space(space: spaces.Space) -> None:
    _, _, actions, _ = random_case(space)
    sent = make_distribution(space).to_env(actions)
    assert (sent.shape[1:], sent.dtype) == array_type(space)
    assert all(space.contains(to_value(space, row)) for row in sent)


def test_what_lies_between_the_fields_is_zero() -> None:
    pair = spaces.Tuple([spaces.Box(0, 1, (1,), np.uint8), spaces.Box(-1.0, 1.0, (1,), np.float64)])
    space = spaces.Dict({"a": spaces.MultiBinary(1), "b": pair})
    distribution = make_distribution(space)
    head = np.full((50, distribution.head_size), -1.0, np.float32)
    noise = np.zeros((50, distribution.noise_size), np.float32)
    for _ in range(20):
        dirt = [np.full(50 * size, 255, np.uint8) for size in range(8, 64, 8)]
        del dirt  # the next arrays find it in their memory
        actions = distribution.sample(head, noise)
        for array in (actions, distribution.mode(head), distribution.to_env(actions)):
            clean = np.zeros(50, array.dtype)
            for leaf in leaves(space):
                leaf.of(clean)[...] = leaf.of(array)
            assert array.tobytes() == clean.tobytes()


@every_space
def test_rows_are_dealt_with_as_of_any_array(space: spaces.Space) -> None:
    """A rollout is reshaped, cut into minibatches and joined."""
    _, head, actions, _ = random_case(space, batch=24)
    log_prob = make_distribution(space).evaluate(head, actions)[0]
    rows = np.random.default_rng(0).permutation(24)
    rollout = np.stack([actions[:12], actions[12:]])
    for same in (rollout.reshape(24), np.concatenate((actions[:5], actions[5:]))):
        assert are_equal(same, actions)
    for chosen in (actions.take(rows), actions[rows]):
        np.testing.assert_allclose(make_distribution(space).evaluate(head[rows], chosen)[0], log_prob[rows])


# -- masks --------------------


def test_masks_of_parts_are_those_of_the_whole() -> None:
    distribution = make_distribution(NESTED)
    assert distribution.choices == (3, 3, 3, 2, 3)
    masks = random_masks(distribution.choices, 8, np.random.default_rng(0))
    head = np.random.default_rng(1).normal(size=(8, distribution.head_size)).astype(np.float32)
    masked = distribution.masked(head, masks)
    np.testing.assert_array_equal(masked[masked != -np.inf], head[masked != -np.inf])
    assert (masked == -np.inf).sum() == (~masks).sum()
    assert masked.dtype == head.dtype and np.isfinite(head).all()
    assert distribution.masked(head, np.ones_like(masks)) is head
