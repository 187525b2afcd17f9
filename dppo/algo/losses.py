"""Computes PPO and A3C losses, and their gradients in closed form with respect to the network's outputs.

Pure NumPy. The learner passes the network's outputs in and sends `d_head` and `d_value` back through the network: a
NumPy network through its own backward, a torch network through autograd. So there is one copy of every loss.

Everything is a **sum** over the samples of the minibatch, not a mean: sums of ranks add up, and one division by the
count of all samples gives the average by samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dppo.algo.schedules import scheduled
from dppo.config import A3CConfig, PPOConfig
from dppo.data import Minibatch
from dppo.seams import Distribution

METRICS = ("count", "loss", "policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")
"""The entries of `LossGradient.sums`, in this order. They travel in the tail of the gradient's message."""

KL_COEF_BOUNDS = (1e-6, 1e6)
"""Bounds of the adapted weight of the KL penalty: 34 iterations lead from either back to 1. Without bounds the weight
may reach infinity, or 0, and no factor leads back from 0."""
MAX_LOG_RATIO = 20.0  # exp(20) is 5e8: far outside any clip range, yet no overflow to inf and then NaN


@dataclass(slots=True)
class LossGradient:
    """The gradients and the metrics of a loss that is summed over B samples."""

    d_head: np.ndarray
    """The gradient with respect to the head, [B, K] float32."""
    d_value: np.ndarray
    """The gradient with respect to the value, [B] float32."""
    sums: np.ndarray
    """The sums that METRICS names, [len(METRICS)] float64."""


def check(head: np.ndarray, value: np.ndarray, batch: Minibatch) -> None:
    """Raises ValueError where the shapes do not fit."""
    n = len(batch)
    if head.ndim != 2 or head.shape[0] != n or value.shape != (n,):
        raise ValueError(f"expected head [B={n}, K] and value [B={n}], got head={head.shape}, value={value.shape}")


def approx_kl(log_ratio: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """Estimates KL[old | new], [B], as (r - 1) - log r: unbiased, never negative. Source: Schulman 2020, k3."""
    return (ratio - 1.0) - log_ratio


def explained_variance(targets: tuple[float, float], errors: tuple[float, float], count: float) -> float:
    """Returns 1 - Var(target - value) / Var(target), from (sum, sum of squares) pairs over `count` samples. Returns 0
    where that is undefined: all targets have one value, whatever its size, up to rounding.
    """
    if count == 0:
        return 0.0
    mean_square = targets[1] / count
    variance = mean_square - (targets[0] / count) ** 2
    residual = errors[1] / count - (errors[0] / count) ** 2
    return 1.0 - residual / variance if variance > 1e-12 * mean_square else 0.0


def _value_loss(value: np.ndarray, batch: Minibatch, clip: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the value loss 1/2 (V - R)^2, [B], and its gradient. With clip > 0 the loss is the larger one of the
    value's and the clipped value's.
    """
    error = value - batch.returns
    loss = np.float32(0.5) * error * error
    if clip == 0:
        return loss, error
    change = value - batch.values
    clipped_error = batch.values + np.clip(change, -clip, clip) - batch.returns
    clipped_loss = 0.5 * clipped_error * clipped_error
    worse = clipped_loss > loss
    inside = np.abs(change) < clip
    return np.where(worse, clipped_loss, loss), np.where(worse, clipped_error * inside, error)


def _sums(policy_loss: np.ndarray, value_loss: np.ndarray, entropy: np.ndarray, kl: np.ndarray) -> np.ndarray:
    """Returns the count and the sums of the four arguments [B], in one call: [len(METRICS)] float64. The rest is 0."""
    sums = np.zeros(len(METRICS))
    sums[0] = len(policy_loss)
    np.add.reduce((policy_loss, value_loss, entropy, kl), axis=1, dtype=np.float64, out=sums[2:6])
    return sums


def kl_sum(distribution: Distribution, head: np.ndarray, batch: Minibatch) -> float:
    """Sums KL[old | new] over the minibatch. The ranks average this sum before the hinge of `ppo`'s kl objective."""
    return float(distribution.kl(batch.heads, head).sum(dtype=np.float64))


def ppo(
    distribution: Distribution,
    head: np.ndarray,
    value: np.ndarray,
    batch: Minibatch,
    cfg: PPOConfig,
    kl_coef: float = 0.0,
    mean_kl: float = 0.0,
    fraction_done: float = 0.0,
) -> LossGradient:
    """Computes the loss of proximal policy optimisation.

        r = pi(a|s) / pi_old(a|s)
        clip:  L = sum -min(r A, clip(r, 1-eps, 1+eps) A)
        kl:    L = sum -r A + kl_coef KL[pi_old | pi] + kl_hinge max(0, mean KL - 2 kl_target)^2
        both:  + value_coef 1/2 (V - R)^2 - entropy_coef H[pi]

    eps (cfg.clip) and entropy_coef follow their schedules.

    Args:
      distribution: the distribution of the actions, parametrised by `head`.
      head: [B, K] float32, the network's first output.
      value: [B] float32, the network's second output, in units of the normalised return.
      batch: the samples; their advantages are normalised already.
      cfg: weights and clip range.
      kl_coef: for the objective kl: the penalty's present weight.
      mean_kl: for the objective kl: the mean KL of the update before, over the samples of **all** ranks, so that the
        hinge does not depend on the layout; 0 before the first update, where the policy is still the one that acted.
      fraction_done: share of the run that is done, in [0, 1].

    Source: Schulman et al. 2017, eqs. 7 and 9; Heess et al. 2017, algorithm 1 and its hinge term; the value's
    clipping is from OpenAI Baselines' ppo2.
    """
    check(head, value, batch)
    clip = scheduled(cfg.clip, fraction_done, cfg.clip_schedule)
    entropy_coef = scheduled(cfg.entropy_coef, fraction_done, cfg.entropy_schedule)
    log_prob, entropy, pullback = distribution.evaluate(head, batch.actions)
    log_ratio = np.minimum(log_prob - batch.log_probs, np.float32(MAX_LOG_RATIO))
    ratio = np.exp(log_ratio)
    gain = ratio * batch.advantages
    # minimum and maximum take a fraction of np.clip's time on a minibatch
    clipped_ratio = np.minimum(np.maximum(ratio, np.float32(1.0 - clip)), np.float32(1.0 + clip))
    d_log_prob = -gain
    if cfg.objective == "clip":
        clipped_gain = clipped_ratio * batch.advantages
        d_log_prob *= gain <= clipped_gain
        gain = np.minimum(gain, clipped_gain)
    value_loss, value_error = _value_loss(value, batch, cfg.value_clip)
    d_head = pullback(d_log_prob, -entropy_coef)
    penalty = 0.0
    if cfg.objective == "kl":
        hinge = max(0.0, mean_kl - 2.0 * cfg.kl_target)
        d_head += distribution.kl_backward(batch.heads, head, kl_coef + 2.0 * cfg.kl_hinge * hinge)
        penalty = kl_coef * kl_sum(distribution, head, batch) + len(batch) * cfg.kl_hinge * hinge**2
    sums = _sums(-gain, value_loss, entropy, approx_kl(log_ratio, ratio))
    sums[6] = np.count_nonzero(clipped_ratio != ratio)
    sums[1] = sums[2] + penalty + cfg.value_coef * sums[3] - entropy_coef * sums[4]
    return LossGradient(d_head, np.float32(cfg.value_coef) * value_error, sums)


def a3c(
    distribution: Distribution,
    head: np.ndarray,
    value: np.ndarray,
    batch: Minibatch,
    cfg: A3CConfig,
    fraction_done: float = 0.0,
) -> LossGradient:
    """Computes the loss of the advantage actor-critic.

        L = sum -log pi(a|s) A + value_coef 1/2 (R - V)^2 - entropy_coef H[pi]

    entropy_coef follows its schedule.

    Args: as in `ppo`.

    Source: Mnih et al. 2016, algorithm S3 and section 4 (entropy); value_coef as in the usual implementations.
    """
    check(head, value, batch)
    entropy_coef = scheduled(cfg.entropy_coef, fraction_done, cfg.entropy_schedule)
    log_prob, entropy, pullback = distribution.evaluate(head, batch.actions)
    log_ratio = np.minimum(log_prob - batch.log_probs, np.float32(MAX_LOG_RATIO))
    value_loss, value_error = _value_loss(value, batch, 0.0)
    d_head = pullback(-batch.advantages, -entropy_coef)
    sums = _sums(-log_prob * batch.advantages, value_loss, entropy, approx_kl(log_ratio, np.exp(log_ratio)))
    sums[1] = sums[2] + cfg.value_coef * sums[3] - entropy_coef * sums[4]
    return LossGradient(d_head, np.float32(cfg.value_coef) * value_error, sums)


def adapted_kl_coef(kl_coef: float, kl: float, target: float) -> float:
    """Returns the penalty's weight for the next iteration: 1.5 times more where the KL was above twice the target, 1.5
    times less where it was below half of the target. The weight stays within KL_COEF_BOUNDS. A weight that was set
    outside of them moves no further out: 0 stays 0. Source: Heess et al. 2017, algorithm 1; the bounds: ours."""
    low, high = KL_COEF_BOUNDS
    if kl > 2.0 * target:
        return min(kl_coef * 1.5, max(kl_coef, high))
    if kl < 0.5 * target:
        return max(kl_coef / 1.5, min(kl_coef, low))
    return kl_coef
