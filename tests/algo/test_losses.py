"""PPO and A3C: values by hand and as the papers write them; every gradient against autograd and differences."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from gymnasium import spaces

from dppo.algo import losses
from dppo.algo.losses import METRICS, LossGradient
from dppo.config import A3CConfig, ModelConfig, MomentsConfig, PPOConfig
from dppo.data import Minibatch
from dppo.models.distributions import Categorical, make_distribution
from dppo.models.policy import ActorCritic, make_policy
from dppo.seeding import draw_rows
from tests import torch_reference as reference

KL_COEF = 0.7
CASES: dict[str, PPOConfig | A3CConfig] = {
    "clip": PPOConfig(objective="clip", clip=0.2, entropy_coef=0.03, value_coef=0.6),
    "value_clip": PPOConfig(objective="clip", clip=0.1, value_clip=0.3, entropy_coef=0.02),
    "kl": PPOConfig(objective="kl", kl_target=0.001, kl_hinge=5.0, entropy_coef=0.03),
    "a3c": A3CConfig(entropy_coef=0.05, value_coef=0.4),
}
Config = PPOConfig | A3CConfig

every_case = pytest.mark.parametrize("cfg", CASES.values(), ids=CASES)
every_space = pytest.mark.parametrize("space_name", reference.SPACES)


def differentiate(
    distribution: losses.Distribution, head: np.ndarray, value: np.ndarray, batch: Minibatch, cfg: Config
) -> LossGradient:
    """The loss of dppo that `cfg` belongs to, with the mean KL that a single rank has."""
    if isinstance(cfg, A3CConfig):
        return losses.a3c(distribution, head, value, batch, cfg)
    mean_kl = losses.kl_sum(distribution, head, batch) / len(batch)
    return losses.ppo(distribution, head, value, batch, cfg, KL_COEF, mean_kl)


def torch_loss(
    space: spaces.Space, head: torch.Tensor, value: torch.Tensor, batch: Minibatch, cfg: Config
) -> torch.Tensor:
    """The same loss, from torch.distributions and the papers' expressions."""
    old_log_probs, old_values, advantages, returns = reference.tensors(
        batch.log_probs, batch.values, batch.advantages, batch.returns
    )
    log_prob = reference.log_prob(space, head, batch.actions)
    ratio = (log_prob - old_log_probs).exp()
    value_clip = 0.0
    if isinstance(cfg, A3CConfig):
        policy_loss = -(log_prob * advantages).sum()
    elif cfg.objective == "clip":
        policy_loss = reference.ppo_clip(ratio, advantages, cfg.clip)
        value_clip = cfg.value_clip
    else:
        kl = reference.kl(space, reference.tensors(batch.heads)[0], head)
        policy_loss = reference.ppo_kl(ratio, advantages, kl, KL_COEF, cfg.kl_target, cfg.kl_hinge)
    entropy = reference.entropy(space, head).sum()
    value_loss = reference.value_loss(value, old_values, returns, value_clip)
    return policy_loss + cfg.value_coef * value_loss - cfg.entropy_coef * entropy


def random_batch(space: spaces.Space, head: np.ndarray, value: np.ndarray, rng: np.random.Generator) -> Minibatch:
    """Samples of a policy near that of `head`, so that some ratios are clipped on either side and some are not."""
    b, dtype = len(head), head.dtype
    actions = reference.random_actions(space, b, rng)
    old_heads = head + rng.normal(0.0, 0.15, head.shape).astype(dtype)
    old_log_probs = make_distribution(space).evaluate(old_heads, actions)[0]
    noise = rng.standard_normal((3, b)).astype(dtype)
    return Minibatch(
        inputs=np.empty((b, 0), np.float32),
        masks=np.empty((b, 0), bool),
        states=np.empty((b, 0), np.float32),
        firsts=np.ones(b, bool),
        actions=actions,
        heads=old_heads,
        log_probs=old_log_probs,
        values=value + dtype.type(0.5) * noise[0],
        advantages=noise[1],
        returns=value + noise[2],
    )


def random_outputs(
    space: spaces.Space, rng: np.random.Generator, batch: int = 60
) -> tuple[np.ndarray, np.ndarray, Minibatch]:
    """Head, value and samples, in float64."""
    head = rng.normal(0.0, 0.7, (batch, make_distribution(space).head_size))
    value = rng.standard_normal(batch)
    return head, value, random_batch(space, head, value, rng)


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Of a whole vector."""
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def sums(result: LossGradient) -> dict[str, float]:
    """The metric sums by name."""
    return dict(zip(METRICS, result.sums.tolist(), strict=True))


# -- by hand: two actions, logits 0, so that each has probability 1/2 and the entropy is log 2 --------------------

EVEN = Categorical(spaces.Discrete(2))


def one_sample(ratio: float, advantage: float, value: float, old_value: float, target: float) -> Minibatch:
    """Action 0, whose probability has gone from 1/2 / ratio to 1/2."""
    old = 0.5 / ratio
    return Minibatch(
        inputs=np.empty((1, 0), np.float32),
        masks=np.empty((1, 0), bool),
        states=np.empty((1, 0), np.float32),
        firsts=np.ones(1, bool),
        actions=np.array([0]),
        heads=np.log([[old, 1 - old]]),
        log_probs=np.log([old]),
        values=np.array([old_value]),
        advantages=np.array([advantage]),
        returns=np.array([target]),
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "d_logit"),
    [
        (1.0, 3.0, -3.0, -1.5),  # d/dz_0 of -r A is -r A (1 - p)
        (1.1, 1.0, -1.1, -0.55),  # inside the range
        (1.5, 1.0, -1.2, 0.0),  # has risen enough already
        (1.5, -1.0, 1.5, 0.75),  # has risen, but should fall
        (0.8, -1.0, 0.9, 0.0),  # has fallen enough already
        (0.8, 1.0, -0.8, -0.4),  # has fallen, but should rise
    ],
)
def test_ppo_clip_worked_by_hand(ratio: float, advantage: float, loss: float, d_logit: float) -> None:
    """Clip range 0.2 above, 0.1 below: the six places of Schulman et al.'s figure 1."""
    cfg = PPOConfig(clip=0.2 if ratio >= 1 else 0.1)
    result = losses.ppo(EVEN, np.zeros((1, 2)), np.zeros(1), one_sample(ratio, advantage, 0, 0, 0), cfg)
    assert sums(result)["policy_loss"] == pytest.approx(loss)
    np.testing.assert_allclose(result.d_head, [[d_logit, -d_logit]], atol=1e-12)
    assert sums(result)["clip_fraction"] == (abs(ratio - 1) > cfg.clip)


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "d_value"),
    [
        (1.5, 1.0, 3.0, 1.62, 0.0),  # clipped to 1.2: its error 1.8 is the larger, and there the slope is 0
        (1.1, 1.0, 3.0, 1.805, -1.9),  # inside the range
        (1.5, 1.0, 0.0, 1.125, 1.5),  # clipped to 1.2, but the plain error 1.5 is the larger
    ],
)
def test_value_loss_worked_by_hand(value: float, old: float, target: float, loss: float, d_value: float) -> None:
    batch = one_sample(1.0, 0.0, value, old, target)
    cfg = PPOConfig(value_clip=0.2, value_coef=1.0)
    result = losses.ppo(EVEN, np.zeros((1, 2)), np.array([value]), batch, cfg)
    assert sums(result)["value_loss"] == pytest.approx(loss)
    np.testing.assert_allclose(result.d_value, [d_value], atol=1e-12)


def test_a3c_worked_by_hand() -> None:
    """-log(1/2) 2 + 0.5 1/2 (1 - 3)^2 - 0.1 log 2; d/dz_0 = -2 (1 - 1/2), the entropy is at its maximum."""
    cfg = A3CConfig(entropy_coef=0.1, value_coef=0.5)
    result = losses.a3c(EVEN, np.zeros((1, 2)), np.array([1.0]), one_sample(1.0, 2.0, 1, 1, 3), cfg)
    assert sums(result)["loss"] == pytest.approx(2 * np.log(2) + 1.0 - 0.1 * np.log(2))
    np.testing.assert_allclose(result.d_head, [[-1.0, 1.0]], atol=1e-12)
    np.testing.assert_allclose(result.d_value, [-1.0])


def test_kl_penalty_and_hinge_worked_by_hand() -> None:
    """KL = 1/4 log(1/2) + 3/4 log(3/2) = 0.1308; hinge 50 (0.1308 - 0.02)^2; penalty weight 2."""
    kl = 0.25 * np.log(0.5) + 0.75 * np.log(1.5)
    cfg = PPOConfig(objective="kl", kl_target=0.01, kl_hinge=50.0)
    batch = one_sample(2.0, 1.0, 0, 0, 0)
    result = losses.ppo(EVEN, np.zeros((1, 2)), np.zeros(1), batch, cfg, kl_coef=2.0, mean_kl=kl)
    assert sums(result)["loss"] == pytest.approx(-2.0 + 2.0 * kl + 50.0 * (kl - 0.02) ** 2)
    slope = -2.0 * 0.5 + (2.0 + 100.0 * (kl - 0.02)) * (0.5 - 0.25)  # dKL/dz_0 = p - p_old
    np.testing.assert_allclose(result.d_head, [[slope, -slope]])


@pytest.mark.parametrize(("kl", "expected"), [(0.021, 3.0), (0.02, 2.0), (0.01, 2.0), (0.005, 2.0), (0.0049, 4 / 3)])
def test_penalty_grows_above_twice_the_target_and_shrinks_below_half(kl: float, expected: float) -> None:
    """Heess et al. 2017, algorithm 1, with factor 1.5."""
    assert losses.adapted_kl_coef(2.0, kl, target=0.01) == pytest.approx(expected)


def test_the_penalty_stays_within_bounds_and_comes_back_from_them() -> None:
    coef = 1.0
    for _ in range(5000):
        coef = losses.adapted_kl_coef(coef, 0.0, 0.01)
    assert coef == 1e-6
    for _ in range(35):
        coef = losses.adapted_kl_coef(coef, 1.0, 0.01)
    assert coef > 1.0
    for _ in range(5000):
        coef = losses.adapted_kl_coef(coef, np.inf, 0.01)
    assert coef == 1e6
    assert losses.adapted_kl_coef(coef, np.nan, 0.01) == 1e6


@pytest.mark.parametrize("coef", [0.0, 1e-9, 1e9])
def test_a_penalty_that_was_set_outside_of_the_bounds_does_not_run_further(coef: float) -> None:
    outward = 0.0 if coef < 1 else 1.0
    assert losses.adapted_kl_coef(coef, outward, 0.01) == coef
    assert losses.adapted_kl_coef(0.0, 1.0, 0.01) == 0.0  # there is no penalty, and none comes


def test_approx_kl_worked_by_hand() -> None:
    ratio = np.array([1.0, 2.0, 0.5])
    np.testing.assert_allclose(losses.approx_kl(np.log(ratio), ratio), [0, 1 - np.log(2), np.log(2) - 0.5])


def test_approx_kl_is_the_kl_in_expectation() -> None:
    """Sum over the actions of pi_old(a) (r - 1 - log r), r = pi(a) / pi_old(a)."""
    rng = np.random.default_rng(0)
    old, new = rng.normal(size=(2, 1, 5))
    distribution = Categorical(spaces.Discrete(5))
    log_old, log_new = (distribution.evaluate(h.repeat(5, 0), np.arange(5))[0] for h in (old, new))
    estimate = losses.approx_kl(log_new - log_old, np.exp(log_new - log_old))
    assert np.dot(np.exp(log_old), estimate) == pytest.approx(distribution.kl(old, new).item())


def test_explained_variance_worked_by_hand() -> None:
    targets, values = np.array([1.0, 2.0, 3.0, 6.0]), np.array([1.0, 1.0, 4.0, 6.0])
    error = targets - values
    pairs = [(a.sum(), (a * a).sum()) for a in (targets, error)]
    assert losses.explained_variance(pairs[0], pairs[1], 4) == pytest.approx(1 - error.var() / targets.var())
    assert losses.explained_variance((4.0, 4.0), (0.0, 0.0), 4) == 0.0  # constant targets: undefined
    assert losses.explained_variance((0.0, 0.0), (0.0, 0.0), 0) == 0.0


@pytest.mark.parametrize("unit", [1e-9, 1e-3, 1.0, 1e9])
def test_explained_variance_does_not_depend_on_the_unit(unit: float) -> None:
    assert losses.explained_variance((0.0, 4 * unit**2), (0.0, unit**2), 4) == pytest.approx(0.75)
    constant = np.full(999, 0.1 * unit)
    assert losses.explained_variance((constant.sum(), (constant**2).sum()), (0.0, unit**2), 999) == 0.0


# -- values and gradients with respect to the outputs, in float64 --------------------


@every_case
@every_space
def test_loss_is_the_papers_expression(cfg: Config, space_name: str) -> None:
    space = reference.SPACES[space_name]
    head, value, batch = random_outputs(space, np.random.default_rng(1))
    torch_head, torch_value = reference.tensors(head, value)
    expected = torch_loss(space, torch_head, torch_value, batch, cfg)
    result = sums(differentiate(make_distribution(space), head, value, batch, cfg))
    assert result["loss"] == pytest.approx(expected.item(), rel=1e-6)
    assert result["count"] == 60
    assert result["entropy"] == pytest.approx(reference.entropy(space, torch_head).sum().item(), rel=1e-6)


@every_case
@every_space
def test_gradient_of_the_outputs_is_autograds(cfg: Config, space_name: str) -> None:
    space = reference.SPACES[space_name]
    head, value, batch = random_outputs(space, np.random.default_rng(2))
    leaves = [t.requires_grad_() for t in reference.tensors(head, value)]
    torch_loss(space, leaves[0], leaves[1], batch, cfg).backward()
    result = differentiate(make_distribution(space), head, value, batch, cfg)
    for actual, leaf in zip((result.d_head, result.d_value), leaves, strict=True):
        assert leaf.grad is not None
        np.testing.assert_allclose(actual, leaf.grad.numpy(), rtol=1e-6, atol=1e-8)


@every_case
@every_space
def test_gradient_of_the_outputs_is_the_central_difference(cfg: Config, space_name: str) -> None:
    space, h = reference.SPACES[space_name], 1e-6
    distribution = make_distribution(space)
    head, value, batch = random_outputs(space, np.random.default_rng(3), batch=12)

    def loss() -> float:
        return sums(differentiate(distribution, head, value, batch, cfg))["loss"]

    result = differentiate(distribution, head, value, batch, cfg)
    for array, gradient in ((head, result.d_head), (value, result.d_value)):
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + h
            above = loss()
            array[index] = kept - h
            below = loss()
            array[index] = kept
            assert gradient[index] == pytest.approx((above - below) / (2 * h), rel=1e-4, abs=1e-6)


# -- sums over samples --------------------


@every_case
@every_space
def test_parts_of_a_minibatch_add_up_to_the_whole(cfg: Config, space_name: str) -> None:
    """So ranks may hold any number of samples each; only the hinge needs the mean KL of all of them."""
    space = reference.SPACES[space_name]
    distribution = make_distribution(space)
    head, value, batch = random_outputs(space, np.random.default_rng(7))
    mean_kl = losses.kl_sum(distribution, head, batch) / len(batch)

    def part(index: np.ndarray) -> LossGradient:
        if isinstance(cfg, A3CConfig):
            return losses.a3c(distribution, head[index], value[index], batch[index], cfg)
        return losses.ppo(distribution, head[index], value[index], batch[index], cfg, KL_COEF, mean_kl)

    whole = part(np.arange(60))
    pieces = [part(index) for index in np.split(np.arange(60), [0, 7, 41])]  # the first is empty
    np.testing.assert_allclose(sum(p.sums for p in pieces), whole.sums, rtol=1e-9)
    np.testing.assert_allclose(np.concatenate([p.d_head for p in pieces]), whole.d_head, rtol=1e-9)
    np.testing.assert_allclose(np.concatenate([p.d_value for p in pieces]), whole.d_value, rtol=1e-9)


@every_space
def test_before_the_first_step_the_ratio_is_one(space_name: str) -> None:
    space = reference.SPACES[space_name]
    distribution = make_distribution(space)
    head, value, batch = random_outputs(space, np.random.default_rng(8))
    batch.heads, batch.log_probs = head, distribution.evaluate(head, batch.actions)[0]
    result = sums(losses.ppo(distribution, head, value, batch, PPOConfig()))
    assert (result["approx_kl"], result["clip_fraction"]) == (0.0, 0.0)
    assert result["policy_loss"] == pytest.approx(-batch.advantages.sum())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("cfg", [CASES["clip"], CASES["kl"], CASES["a3c"]], ids=["clip", "kl", "a3c"])
def test_a_policy_that_has_moved_very_far_overflows_nothing(cfg: Config) -> None:
    batch = one_sample(1.0, -1.0, 0, 0, 0)
    batch.log_probs = np.array([-200.0], np.float32)
    result = differentiate(EVEN, np.zeros((1, 2), np.float32), np.zeros(1, np.float32), batch, cfg)
    assert np.isfinite(result.sums).all() and np.isfinite(result.d_head).all()


def test_gradients_of_float32_outputs_are_float32() -> None:
    for cfg in CASES.values():
        for space in reference.SPACES.values():
            head, value, batch = random_outputs(space, np.random.default_rng(9))
            head, value = head.astype(np.float32), value.astype(np.float32)
            batch = random_batch(space, head, value, np.random.default_rng(9))
            result = differentiate(make_distribution(space), head, value, batch, cfg)
            assert result.d_head.dtype == result.d_value.dtype == np.float32
            assert result.sums.dtype == np.float64


MASKED = {name: space for name, space in reference.SPACES.items() if name != "Box"}


@pytest.mark.filterwarnings("error")
@every_case
@pytest.mark.parametrize("space_name", MASKED)
def test_actions_that_a_mask_rules_out_count_for_nothing(cfg: Config, space_name: str) -> None:
    """Logits of -inf: the loss is that of the other actions, its gradient the central difference, and 0 there."""
    distribution, rng = make_distribution(MASKED[space_name]), np.random.default_rng(3)
    head, value = rng.normal(0.0, 0.7, (40, distribution.head_size)), rng.standard_normal(40)
    masked = np.zeros(head.shape, bool)
    masked[::2, 1] = True  # of MultiDiscrete's first part it leaves one
    old_head = head + rng.normal(0.0, 0.15, head.shape)
    head[masked] = old_head[masked] = -np.inf
    noise = draw_rows(rng, distribution.noise_kinds, 40)
    batch = random_batch(MASKED[space_name], np.where(masked, 0.0, head), value, rng)
    batch.heads, batch.actions = old_head, distribution.sample(old_head, noise)
    batch.log_probs = distribution.evaluate(old_head, batch.actions)[0]
    result = differentiate(distribution, head, value, batch, cfg)
    assert np.isfinite(result.sums).all()
    assert np.isfinite(result.d_head).all()
    assert not result.d_head[masked].any()
    for row, column in list(zip(*np.nonzero(~masked), strict=True))[:30]:
        ends = []
        for h in (1e-5, -1e-5):
            moved = head.copy()
            moved[row, column] += h
            ends.append(sums(differentiate(distribution, moved, value, batch, cfg))["loss"])
        expected = (ends[0] - ends[1]) / 2e-5
        assert result.d_head[row, column] == pytest.approx(expected, abs=1e-5)


def test_wrong_shapes_are_refused_with_both_sides() -> None:
    batch = one_sample(1.0, 1.0, 0, 0, 0)
    with pytest.raises(ValueError, match=r"\[B=1, K\].*value=\(1, 1\)"):
        losses.ppo(EVEN, np.zeros((1, 2)), np.zeros((1, 1)), batch, PPOConfig())
    with pytest.raises(ValueError, match=r"head=\(2, 2\)"):
        losses.a3c(EVEN, np.zeros((2, 2)), np.zeros(1), batch, A3CConfig())


# -- through the flat buffer, in float32 --------------------


def random_policy(space: spaces.Space, rng: np.random.Generator, backend: str = "numpy") -> tuple[ActorCritic, int]:
    """A network of random shape and weights; with it the length of an observation."""
    size = int(rng.integers(1, 8))
    hidden = tuple(int(n) for n in rng.integers(3, 20, size=rng.integers(0, 4)))
    cfg = ModelConfig(hidden=hidden, backend=backend)  # type: ignore[arg-type]
    observations = spaces.Box(-1.0, 1.0, (size,), np.float32)
    policy = make_policy(observations, space, cfg, MomentsConfig(), rng, len(METRICS))
    policy.flat.vector += rng.normal(0.0, 0.15, policy.flat.size).astype(np.float32)
    return policy, size


def flat_cases(
    rng: np.random.Generator, space_name: str, backend: str = "numpy"
) -> Iterator[tuple[spaces.Space, ActorCritic, Minibatch]]:
    """Policies of random shapes, with samples."""
    for _ in range(3):
        space = reference.random_space(space_name, rng)
        policy, size = random_policy(space, rng, backend)
        inputs = rng.standard_normal((int(rng.integers(40, 80)), size)).astype(np.float32)
        head, value = policy.forward(inputs)
        batch = random_batch(space, head.copy(), value.copy(), rng)
        batch.inputs = inputs
        yield space, policy, batch


def flat_gradient(policy: ActorCritic, batch: Minibatch, cfg: Config) -> tuple[np.ndarray, dict[str, float]]:
    """What a training step puts into the buffer, and its metrics."""
    head, value = policy.forward(batch.inputs)
    result = differentiate(policy.distribution, head, value, batch, cfg)
    policy.backward(result.d_head, result.d_value)
    return policy.flat.gradient.copy(), sums(result)


def assert_every_branch_is_taken(cfg: Config, policy: ActorCritic, batch: Minibatch, metrics: dict[str, float]) -> None:
    """Else the comparison would prove less than it says."""
    if isinstance(cfg, A3CConfig):
        return
    if cfg.objective == "clip":
        assert 0 < metrics["clip_fraction"] < len(batch)
    else:
        head, _ = policy.forward(batch.inputs)
        assert losses.kl_sum(policy.distribution, head, batch) / len(batch) > 2 * cfg.kl_target
    if cfg.value_clip:
        outside = np.abs(policy.value(batch.inputs) - batch.values) > cfg.value_clip
        assert 0 < outside.sum() < len(batch)


@every_case
@every_space
def test_flat_gradient_is_autograds_through_an_ordinary_module(cfg: Config, space_name: str) -> None:
    for space, policy, batch in flat_cases(np.random.default_rng(4), space_name):
        actual, metrics = flat_gradient(policy, batch, cfg)
        assert_every_branch_is_taken(cfg, policy, batch, metrics)
        module = reference.ActorCritic(policy.flat.shapes, policy.flat.vector)
        head, value = module(*reference.tensors(batch.inputs))
        torch_loss(space, head, value, batch, cfg).backward()
        assert relative_error(actual, module.flat_gradient()) < 1e-5


@every_case
@every_space
def test_flat_gradient_of_the_torch_network_is_autograds_too(cfg: Config, space_name: str) -> None:
    """`backend=torch` keeps weights as [out, in] under names of its own: they are put into our order first."""

    def in_our_order(views: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        policy, value = ({n: v.T for n, v in views.items() if n.startswith(f"{t}_tower")} for t in ("policy", "value"))
        ours = {}
        for i, (ours_p, ours_v) in enumerate(zip(policy.values(), value.values(), strict=True)):
            kind = ("weight", "bias")[i % 2]
            if i < len(policy) - 2:
                ours[f"hidden.{i // 2}.{kind}"] = np.stack((ours_p, ours_v))
            else:
                ours |= {f"policy.{kind}": ours_p, f"value.{kind}": ours_v}
        return ours | {n: v for n, v in views.items() if n == "log_std"}

    for space, policy, batch in flat_cases(np.random.default_rng(5), space_name, backend="torch"):
        flat_gradient(policy, batch, cfg)
        parameters = in_our_order(policy.flat.parameters)
        vector = np.concatenate([p.reshape(-1) for p in parameters.values()])
        module = reference.ActorCritic({name: p.shape for name, p in parameters.items()}, vector)
        head, value = module(*reference.tensors(batch.inputs))
        torch_loss(space, head, value, batch, cfg).backward()
        actual = np.concatenate([g.reshape(-1) for g in in_our_order(policy.flat.gradients).values()])
        assert relative_error(actual, module.flat_gradient()) < 1e-5


@every_case
@every_space
def test_flat_gradient_is_the_central_difference(cfg: Config, space_name: str) -> None:
    """Along the gradient and along a random direction, in steps that float32 can still tell apart."""
    # a seed with which no sample crosses a kink within the step; with 6 one does, and float64 shows the same gap
    rng = np.random.default_rng(8)
    for _, policy, batch in flat_cases(rng, space_name):
        gradient, _ = flat_gradient(policy, batch, cfg)
        kept = policy.flat.vector.copy()
        for direction in (gradient, rng.standard_normal(len(gradient)).astype(np.float32)):
            step = direction * np.float32(5e-5 / np.linalg.norm(direction))
            ends, values = (kept - step, kept + step), []
            for end in ends:
                policy.flat.vector[:] = end
                values.append(flat_gradient(policy, batch, cfg)[1]["loss"])
            policy.flat.vector[:] = kept
            moved = ends[1].astype(np.float64) - ends[0]  # what rounding has left of two steps
            expected = float(np.dot(gradient, moved))
            scale = float(np.linalg.norm(gradient) * np.linalg.norm(moved))
            assert values[1] - values[0] == pytest.approx(expected, abs=5e-3 * scale)
