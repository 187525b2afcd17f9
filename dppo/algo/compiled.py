"""The hot loops in C (kernels.c), where pip found a compiler. Each has its twin in NumPy, which is the reference.

| kernel | twin | results are equal |
|---|---|---|
| add_bias, tanh_gradient | models/mlp.py | to the bit |
| adam | optim.py | to the bit: all ranks make the same step, with and without it |
| normalise | moments.py | to the bit |
| scaled | models/gaussian.py, `to_env` | to the bit |
| tower | models/mlp.py, a tower | to rounding |
| categorical_loss, gaussian_loss | losses.py | to rounding |
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from dppo.algo import losses
from dppo.algo.losses import METRICS, LossGradient
from dppo.algo.schedules import scheduled
from dppo.config import A3CConfig, PPOConfig
from dppo.data import Minibatch
from dppo.seams import Distribution

kernels: Any
"""The extension; None where there is none."""
try:
    kernels = import_module("dppo.algo.kernels")
except ImportError:
    kernels = None


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
    """Computes `losses.ppo`."""
    if distribution.compiled_loss is None or cfg.objective != "clip":
        return losses.ppo(distribution, head, value, batch, cfg, kl_coef, mean_kl, fraction_done)
    clip = scheduled(cfg.clip, fraction_done, cfg.clip_schedule)
    entropy_coef = scheduled(cfg.entropy_coef, fraction_done, cfg.entropy_schedule)
    return _loss(distribution, head, value, batch, (False, clip, cfg.value_clip, cfg.value_coef, entropy_coef))


def a3c(
    distribution: Distribution,
    head: np.ndarray,
    value: np.ndarray,
    batch: Minibatch,
    cfg: A3CConfig,
    fraction_done: float = 0.0,
) -> LossGradient:
    """Computes `losses.a3c`."""
    if distribution.compiled_loss is None:
        return losses.a3c(distribution, head, value, batch, cfg, fraction_done)
    entropy_coef = scheduled(cfg.entropy_coef, fraction_done, cfg.entropy_schedule)
    return _loss(distribution, head, value, batch, (True, 0.0, 0.0, cfg.value_coef, entropy_coef))


def _loss(
    distribution: Distribution,
    head: np.ndarray,
    value: np.ndarray,
    batch: Minibatch,
    factors: tuple[bool, float, float, float, float],
) -> LossGradient:
    losses.check(head, value, batch)
    assert distribution.compiled_loss is not None
    loss = LossGradient(np.empty(head.shape, np.float32), np.empty(len(value), np.float32), np.empty(len(METRICS)))
    numbers = batch.log_probs, batch.advantages, batch.returns, batch.values
    distribution.compiled_loss(
        _floats(head), _floats(value), np.ascontiguousarray(batch.actions), *map(_floats, numbers), loss.d_head,
        loss.d_value, loss.sums, *factors,
    )  # fmt: skip
    return loss


def _floats(array: np.ndarray) -> np.ndarray:
    """Returns the array itself where a kernel can take it: a network may give views into what it has computed."""
    return np.ascontiguousarray(array, np.float32)
