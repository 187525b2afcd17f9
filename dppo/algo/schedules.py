"""Schedules: the learning rate, the clip range and the entropy bonus's weight over a run, and the rate that follows the
KL.
"""

from __future__ import annotations

import math

LR_BOUNDS = (1e-6, 1e-2)
"""Bounds of a learning rate that follows the KL, as in rl_games and Isaac Gym."""


def scheduled(value: float, fraction_done: float, schedule: str) -> float:
    """Returns `value` after a share `fraction_done` in [0, 1] of the run.

    constant: value;  linear: value (1 - f);  cosine: value (1 + cos(pi f)) / 2

    Source: linear: Schulman et al. 2017, table 5; cosine: Loshchilov and Hutter 2017 (SGDR), eq. 5, to 0, without
    restarts.
    """
    if schedule == "linear":
        return value * max(0.0, 1.0 - fraction_done)
    if schedule == "cosine":
        # rounded: the last bits of a cosine depend on the CPU, and each worker computes it for itself
        return value * round(0.5 + 0.5 * math.cos(math.pi * fraction_done), 12)
    return value


def adapted_lr(lr: float, kl: float, target: float) -> float:
    """Returns the learning rate for the next iteration: 1.5 times smaller where the mean KL of an iteration's updates
    was above twice the target, 1.5 times larger where it was below half of the target. The rate stays within LR_BOUNDS.
    A rate that was set outside of them moves no further out.

    Source: Makoviychuk and Makoviichuk 2021 (rl_games), AdaptiveScheduler, with an iteration in the place of an epoch.
    """
    low, high = LR_BOUNDS
    if kl > 2.0 * target:
        return max(lr / 1.5, min(lr, low))
    if kl < 0.5 * target:
        return min(lr * 1.5, max(lr, high))
    return lr
