"""Statistics of a few runs of a setting: the interquartile mean, and how far it may be trusted.

Pure NumPy; report.py calls it for its table and its learning curves.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Computes the mean of the middle half of the runs. It is less wasteful than the median, and one odd run moves it
    less than the mean.

        IQM = sum_i w_i x_(i) / (R / 2),    w_i = length of [i - 1, i] within [R / 4, 3 R / 4],  i = 1 … R

    where x_(1) <= … <= x_(R). Where 4 does not divide R, a run at the edge of the middle half counts by the part of it
    that lies within, so exactly half of the weight is used for every R: R = 1 gives the value, R = 2 and 3 weigh
    (1/2, 1/2) and (1/6, 2/3, 1/6). (rliable and scipy.stats.trim_mean round R / 4 down instead; with 4 dividing R all
    agree.)

    Args:
      values: [..., R], one number of each run; finite.

    Returns:
      [...] float64.

    Raises:
      ValueError: no run, or a value that is not finite.

    Source: Agarwal et al. 2021 (Deep RL at the Edge of the Statistical Precipice), section 4.3.
    """
    runs = np.asarray(values, np.float64)
    if runs.ndim == 0 or runs.shape[-1] == 0:
        raise ValueError(f"expected values of shape [..., R] with R at least 1, got {runs.shape}")
    if not np.isfinite(runs).all():
        raise ValueError("expected finite values: leave out runs without a return")
    num_runs = runs.shape[-1]
    edges = np.clip(np.arange(num_runs + 1), num_runs / 4, 3 * num_runs / 4)
    # the widths are whole quarters: nothing is rounded before the sum
    mean: np.ndarray = np.sort(runs, axis=-1) @ np.diff(edges) / (num_runs / 2)
    return mean


def bootstrap_interval(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    generator: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Computes the percentile bootstrap interval of a statistic over runs.

        x*_k = R values drawn from x with replacement,  k = 1 … K
        interval = quantiles (1 - level) / 2 and (1 + level) / 2 of statistic(x*_1), …, statistic(x*_K)

    The interval of fewer than about ten runs is too narrow, and the interval of one run has no width at all.

    Args:
      values: [R], one number of each run; finite.
      statistic: [K, R] -> [K], over the last axis.
      generator: draws the resamples.
      resamples: K.
      level: share of repetitions whose interval should hold the true value, in (0, 1).

    Returns:
      The lower and the upper end of the interval.

    Raises:
      ValueError: no run, a value that is not finite, no resample, or a level outside (0, 1).

    Source: Efron 1979; Agarwal et al. 2021, section 4.1, with one environment as the only stratum.
    """
    runs = np.asarray(values, np.float64)
    if runs.ndim != 1 or len(runs) == 0:
        raise ValueError(f"expected values of shape [R] with R at least 1, got {runs.shape}")
    if not np.isfinite(runs).all():
        raise ValueError("expected finite values: leave out runs without a return")
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"resamples={resamples} must be at least 1, and level={level} lie in (0, 1)")
    drawn = statistic(runs[generator.integers(0, len(runs), (resamples, len(runs)))])
    if drawn.shape != (resamples,):
        raise ValueError(
            f"expected a statistic of [{resamples}, {len(runs)}] of shape [{resamples}], got {drawn.shape}"
        )
    low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)
