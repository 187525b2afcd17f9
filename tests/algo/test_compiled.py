"""The kernels in C against their twins in NumPy: to the bit where all ranks depend on it, else to rounding."""

from __future__ import annotations

import importlib
import math
import shutil
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from dppo.algo import compiled, losses, moments
from dppo.algo.optim import Adam
from dppo.config import A3CConfig, ModelConfig, MomentsConfig, OptimConfig, PPOConfig
from dppo.data import Minibatch
from dppo.models import gaussian, mlp
from dppo.models.distributions import make_distribution
from dppo.models.policy import ActorCritic, make_policy

kernels = compiled.kernels
pytestmark = pytest.mark.skipif(
    kernels is None and shutil.which("cc") is None, reason="there is no C compiler, and so there are no kernels"
)
RNG = np.random.default_rng(0)
SPACES = (spaces.Discrete(2), spaces.Discrete(7), spaces.Box(-1, 1, (1,)), spaces.Box(-2, 1, (6,)))
EVERY_OBJECTIVE = [
    PPOConfig(),
    PPOConfig(value_clip=0.1, entropy_coef=0.01),
    PPOConfig(clip=0.3, clip_schedule="linear", entropy_coef=0.5, entropy_schedule="linear", value_coef=0.7),
    A3CConfig(),
    A3CConfig(entropy_coef=0.1, value_coef=0.3),
]


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_pip_has_built_the_kernels() -> None:
    """Where there is a compiler: this checkout is installed with them, and they are not skipped unseen."""
    assert kernels is not None, "run: pip install -e . (or python setup.py build_ext --inplace)"


@pytest.mark.parametrize("shape", [(2, 64, 64), (2, 7, 17), (1, 1, 3), (2, 0, 5)])
def test_what_is_element_by_element_has_numpys_bits(shape: tuple[int, int, int]) -> None:
    groups, _, width = shape
    x, bias, d_out, out = normal(*shape), normal(groups, 1, width), normal(*shape), np.tanh(normal(*shape))
    sums = x.copy()
    kernels.add_bias(sums, bias, width)
    np.testing.assert_array_equal(sums, x + bias)
    gradient = out.copy()
    kernels.tanh_gradient(d_out, gradient)
    np.testing.assert_array_equal(gradient, d_out * (np.float32(1) - out * out))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_inputs_are_normalised_with_numpys_bits(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of float64 too, from which a large mean is subtracted in float64."""
    rows, mean = (1e6 + 5 * normal(9, 17)).astype(kind), (1e6 + normal(17)).astype(kind)
    rows[2, 3:6] = np.nan, np.inf, -np.inf
    expected = moments.normalise(rows, mean, inverse_std := np.abs(normal(17)), 3.0)
    monkeypatch.setattr(moments, "kernels", None)
    np.testing.assert_array_equal(moments.normalise(rows, mean, inverse_std, 3.0), expected)
    np.testing.assert_array_equal(moments.normalise(rows[:, ::2], mean[::2], inverse_std[::2], 3.0), expected[:, ::2])


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (-2.0, 0.5), (-np.inf, 3.0)])
def test_actions_are_sent_with_numpys_bits(
    bounds: tuple[float, float], kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    actions, sent = 3 * normal(50, 6), []
    for part in (kernels, None):
        monkeypatch.setattr(gaussian, "kernels", part)
        sent.append(gaussian.DiagGaussian(spaces.Box(*bounds, (2, 3), kind)).to_env(actions))  # type: ignore[arg-type]
    compiled_one, plain = sent
    np.testing.assert_array_equal(compiled_one, plain)
    assert compiled_one.dtype == plain.dtype == kind and compiled_one.shape == (50, 2, 3)


@pytest.mark.parametrize("size", [1, 15, 16, 11_085])
def test_a_step_of_adam_has_numpys_bits(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas with and without a compiler stay equal."""
    both = []
    for part in (kernels, None):
        monkeypatch.setattr("dppo.algo.optim.kernels", part)
        rng = np.random.default_rng(1)
        adam, params = Adam(size, OptimConfig(name="adam")), rng.standard_normal(size).astype(np.float32)
        for scale in (1.0, 1 / 3, 1e-3):
            adam.step(
                params, (rng.standard_normal(size) * 10.0 ** rng.integers(-20, 5)).astype(np.float32), 3e-4, scale
            )
        both.append((params, adam.state))
    np.testing.assert_array_equal(both[0][0], both[1][0])
    np.testing.assert_array_equal(both[0][1], both[1][1])


def parts(space: spaces.Space[Any], rows: int) -> tuple[Any, np.ndarray, np.ndarray, Minibatch]:
    """A distribution, heads and values of a network, and samples that an older one has acted on."""
    distribution = make_distribution(space)
    head, value = normal(rows, distribution.head_size), normal(rows)
    if distribution.log_std_size:
        head[:, distribution.network_outputs :] = 0.3 * head[0, distribution.network_outputs :]
    kinds = {"normal": normal, "gumbel": lambda *shape: RNG.gumbel(size=shape).astype(np.float32)}
    ((kind, size),) = distribution.noise_kinds
    actions = distribution.sample(head, kinds[kind](rows, size))
    policy = make_policy(spaces.Box(-1, 1, (3,)), space, ModelConfig(hidden=(4,)), MomentsConfig(), RNG)
    rollout = policy.blank_rollout(0, rows, 1)
    computed = {"advantages": normal(rows, 1), "returns": normal(rows, 1), "firsts": np.ones((rows, 1), bool)}
    samples = Minibatch.of(rollout, **computed)
    samples.actions, samples.heads, samples.values = actions, head, value + 0.2 * normal(rows)
    samples.log_probs = distribution.evaluate(head, actions)[0] + 0.3 * normal(rows)
    return distribution, head, value, samples


@pytest.mark.parametrize("cfg", EVERY_OBJECTIVE, ids=str)
@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("rows", [1, 64])
def test_losses_equal_their_twins(space: spaces.Space[Any], cfg: PPOConfig | A3CConfig, rows: int) -> None:
    distribution, head, value, samples = parts(space, rows)
    name = "ppo" if isinstance(cfg, PPOConfig) else "a3c"
    expected, actual = (
        getattr(module, name)(distribution, head, value, samples, cfg, fraction_done=0.4)
        for module in (losses, compiled)
    )
    np.testing.assert_allclose(actual.d_head, expected.d_head, rtol=2e-5, atol=1e-6)
    np.testing.assert_array_equal(actual.d_value, expected.d_value)
    np.testing.assert_allclose(actual.sums, expected.sums, rtol=1e-5, atol=1e-5)
    assert actual.d_head.dtype == actual.d_value.dtype == np.float32 and actual.sums.dtype == np.float64


def test_a_ruled_out_action_has_no_part_in_a_compiled_loss() -> None:
    distribution, head, value, samples = parts(spaces.Discrete(5), 64)
    masks = RNG.random((64, 5)) < 0.5
    masks[np.arange(64), samples.actions] = True
    masked = distribution.masked(head, masks)
    cfg = PPOConfig(entropy_coef=0.1)
    expected, actual = (module.ppo(distribution, masked, value, samples, cfg) for module in (losses, compiled))
    np.testing.assert_allclose(actual.d_head, expected.d_head, rtol=2e-5, atol=1e-6)
    assert (actual.d_head[~masks] == 0.0).all() and np.isfinite(actual.d_head).all()
    np.testing.assert_allclose(actual.sums, expected.sums, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.Box(-1, 1, (2,))], ids=str)
@pytest.mark.parametrize("column", ["head", "value", "log_probs", "advantages", "returns"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_the_sums(space: spaces.Space[Any], column: str, bad: float) -> None:
    """As in NumPy: the learner looks at them before it uses a gradient."""
    distribution, head, value, samples = parts(space, 8)
    arrays = {"head": head, "value": value}
    array = arrays[column] if column in arrays else getattr(samples, column)
    array[3] = bad
    with np.errstate(all="ignore"):
        expected, actual = (
            module.ppo(distribution, head, value, samples, PPOConfig(entropy_coef=0.1)) for module in (losses, compiled)
        )
    assert math.isfinite(actual.sums.sum()) == math.isfinite(expected.sums.sum())


def test_other_losses_and_distributions_are_left_to_numpy() -> None:
    for space, cfg in ((spaces.Box(-1, 1, (2,)), PPOConfig(objective="kl")), (spaces.MultiBinary(3), PPOConfig())):
        distribution = make_distribution(space)
        policy = make_policy(spaces.Box(-1, 1, (3,)), space, ModelConfig(hidden=(4,)), MomentsConfig(), RNG)
        rollout = policy.blank_rollout(0, 4, 1)
        ones = {"advantages": np.ones((4, 1), np.float32), "returns": np.ones((4, 1), np.float32)}
        samples = Minibatch.of(rollout, **ones, firsts=np.ones((4, 1), bool))
        samples.heads[...] = samples.log_probs[...] = samples.actions[...] = samples.values[...] = 0
        head, value = np.zeros((4, distribution.head_size), np.float32), np.zeros(4, np.float32)
        expected, actual = (module.ppo(distribution, head, value, samples, cfg, 0.5) for module in (losses, compiled))
        np.testing.assert_array_equal(actual.d_head, expected.d_head)
        np.testing.assert_array_equal(actual.sums, expected.sums)


def act(policy: ActorCritic, inputs: np.ndarray) -> np.ndarray:
    noise = np.zeros((len(inputs), policy.distribution.noise_size), np.float32)
    return policy.act(inputs, noise)[1].copy()


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("hidden", [(), (64, 64), (5,), (33, 100, 17)], ids=str)
@pytest.mark.parametrize("size", [1, 4, 17])
def test_a_compiled_tower_equals_numpys_and_each_row_has_its_own_bits(
    hidden: tuple[int, ...], activation: str, size: int
) -> None:
    """So environments have the same episodes however they are spread over ranks."""
    cfg = ModelConfig(hidden=hidden, activation=activation)  # type: ignore[arg-type]
    policies = [
        make_policy(
            spaces.Box(-1, 1, (size,)), spaces.Discrete(6), replace(cfg, backend=backend), MomentsConfig(),
            np.random.default_rng(3),
        )
        for backend in ("auto", "numpy")
    ]  # fmt: skip
    for policy in policies:
        policy.flat.vector += 0.1 * np.random.default_rng(4).standard_normal(policy.flat.size).astype(np.float32)
    assert [policy.network.is_compiled for policy in policies] == [True, False]
    inputs = normal(19, size)
    heads = act(policies[0], inputs)
    np.testing.assert_allclose(heads, act(policies[1], inputs), rtol=1e-4, atol=2e-6)
    for rows in (1, 3, 4, 5, 8):
        np.testing.assert_array_equal(act(policies[0], inputs[:rows]), heads[:rows])


def test_tanh_and_exp_are_right_to_two_units_in_the_last_place() -> None:
    x = np.concatenate((np.linspace(-12, 12, 20_001), 10.0 ** np.linspace(-30, 0, 301))).astype(np.float32)[:, None]
    out, one, zero = np.empty_like(x), np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32)
    kernels.tower(x, out, x[:0], len(x), False, one, zero, one, zero)
    expected = np.tanh(x.astype(np.float64))
    assert (np.abs(out - expected) <= 2.5 * np.spacing(np.abs(expected).astype(np.float32))).all()
    bad = np.array([[np.nan], [np.inf], [-np.inf]], np.float32)
    kernels.tower(bad, out := np.empty_like(bad), x[:0], 3, False, one, zero, one, zero)
    np.testing.assert_array_equal(out[:, 0], [np.nan, 1.0, -1.0])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: kernels.add_bias(normal(2, 3), normal(4), 4), "shapes do not fit"),
        (lambda: kernels.add_bias(np.zeros(4), normal(2), 2), "must be float32"),
        (lambda: kernels.tanh_gradient(normal(4), normal(5)), "wrong number"),
        (lambda: kernels.tower(normal(2, 3), normal(2, 2), normal(0), 2, False), "does not fit"),
        (
            lambda: kernels.tower(normal(2, 3), normal(2, 2), normal(0), 2, False, normal(4, 2), normal(2)),
            "weights do not fit",
        ),
        (lambda: kernels.tower(normal(2, 3), normal(2, 2), normal(0), 2, False, normal(3, 2)), "too few"),
        (lambda: kernels.adam(normal(3)), "too few"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()


def test_arrays_that_cannot_be_written_to_or_are_not_contiguous_are_refused() -> None:
    fixed = normal(2, 2)
    fixed.flags.writeable = False
    for call in (
        lambda: kernels.tanh_gradient(fixed, fixed),
        lambda: kernels.tanh_gradient(normal(4, 4).T, normal(16)),
    ):
        with pytest.raises((ValueError, BufferError)):
            call()


def test_an_action_out_of_range_is_refused() -> None:
    distribution, head, value, samples = parts(spaces.Discrete(3), 4)
    samples.actions[2] = 3
    with pytest.raises(ValueError, match="out of range"):
        compiled.ppo(distribution, head, value, samples, PPOConfig())


def test_without_the_extension_everything_is_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dppo.algo.kernels", None)
    spec = importlib.util.find_spec("dppo.algo.compiled")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.kernels is None
    monkeypatch.setattr(mlp, "kernels", None)
    policy = make_policy(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), ModelConfig(), MomentsConfig(), RNG)
    assert not policy.network.is_compiled and policy.description.split(", ")[1] == "closed-form gradient in NumPy"
    head, value = policy.forward(normal(5, 3))
    policy.backward(normal(*head.shape), normal(*value.shape))
    assert np.isfinite(policy.flat.gradient).all()


def test_views_into_what_a_network_has_computed_are_taken() -> None:
    """A network of the user's may give columns of one layer: neither head nor value lies in one piece then."""
    for space in (spaces.Discrete(4), spaces.Box(-1, 1, (2,))):
        distribution, head, value, samples = parts(space, 16)
        both = np.concatenate((head, value[:, None]), axis=1)
        expected, actual = (
            compiled.ppo(distribution, *split, samples, PPOConfig())
            for split in ((head, value), (both[:, :-1], both[:, -1]))
        )
        np.testing.assert_array_equal(actual.d_head, expected.d_head)
        np.testing.assert_array_equal(actual.d_value, expected.d_value)


def test_bounds_of_any_order_in_memory_and_actions_of_any_type_are_sent() -> None:
    low = np.array([[-1, -2, -3], [-1, -2, -3]], np.float32).T
    space = spaces.Box(low, -low, dtype=np.float32)
    assert not space.low.flags.c_contiguous
    sent = make_distribution(space).to_env(np.full((2, 6), 5.0, np.float32))
    np.testing.assert_array_equal(sent, np.broadcast_to(space.high, (2, 3, 2)))
    np.testing.assert_array_equal(make_distribution(space).to_env(np.full((2, 6), 5.0)), sent)


def test_no_row_is_no_head() -> None:
    policy = make_policy(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), ModelConfig(), MomentsConfig(), RNG)
    assert policy.greedy(np.empty((0, 3), np.float32)).shape == (0,)


def test_what_is_not_finite_shows_in_the_gradient_as_well() -> None:
    distribution, head, value, samples = parts(spaces.Discrete(2), 1)
    samples.advantages[0] = np.nan
    loss = compiled.ppo(distribution, head, value, samples, PPOConfig())
    assert np.isnan(loss.d_head).all()
