"""Keeps the running mean and variance, in float64, of samples that arrive in parts on many ranks.

Pure NumPy. The learner keeps moments of observations and of discounted returns, and merges the parts of all ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dppo.config import MomentsConfig

LARGE = 1e3
"""The largest offset at which sums about 0, and a mean as float32, lose nothing: the rounding error of a variance is
smaller than the eps of its root."""
LEAST_VARIANCE = 1e-26
"""The least variance of discounted returns that is not noise. A reward of 1 that comes nevertheless is scaled to 1e13
at most, and float32 can hold the square of that."""


@dataclass(slots=True)
class Moments:
    """Count, mean and sum of squared deviations of vectors of D numbers."""

    count: float
    """Samples seen."""
    mean: np.ndarray
    """The mean, [D] float64; before the first sample, the point that the first sums are taken about."""
    m2: np.ndarray
    """The sum of squared deviations from the mean, [D] float64."""

    @classmethod
    def empty(cls, size: int) -> Moments:
        """Returns the moments of no samples: mean 0; `std` gives 1."""
        return cls(0.0, np.zeros(size), np.zeros(size))

    def std(self) -> np.ndarray:
        """Returns the population standard deviation, [D] float64: never 0; 1 where fewer than two samples were seen."""
        if self.count < 2:
            return np.ones_like(self.mean)
        return np.sqrt(self.m2 / self.count + 1e-8)


def deltas(samples: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Sums samples about a frozen mean m0. Ranks add these sums up before they merge.

    Args:
      samples: [B, D].
      mean: [D] float64, m0, the same on all ranks.

    Returns:
      [1 + 2 D] float64: B, sum(x - m0), sum((x - m0)^2).
    """
    if samples.ndim != 2 or samples.shape[1] != len(mean):
        raise ValueError(f"expected samples of shape [B, {len(mean)}], got {samples.shape}")
    centred = samples.astype(np.float64) - mean
    return np.concatenate(([len(samples)], centred.sum(0), np.einsum("bd,bd->d", centred, centred)))


def merge(moments: Moments, sums: np.ndarray, mean: np.ndarray) -> Moments:
    """Joins `moments` with the samples behind `sums`, which were taken about `mean`.

        batch mean  b = m0 + S1 / n,    batch M2 = S2 - S1^2 / n
        mean' = mean + (b - mean) n / (N + n),    M2' = M2 + batch M2 + (b - mean)^2 N n / (N + n)

    Args:
      moments: the moments before.
      sums: [1 + 2 D] float64, from `deltas`, added up over ranks.
      mean: [D] float64, the m0 that the deltas were taken about.

    Source: Chan, Golub, LeVeque 1979, eq. 2.1.
    """
    size = len(mean)
    if sums.shape != (1 + 2 * size,):
        raise ValueError(f"expected sums of shape [{1 + 2 * size}], got {sums.shape}")
    n = sums[0]
    if n == 0:
        return moments
    shift = sums[1 : 1 + size] / n
    batch_m2 = np.maximum(sums[1 + size :] - sums[1 : 1 + size] * shift, 0.0)
    total = moments.count + n
    distance = mean + shift - moments.mean
    return Moments(
        total,
        moments.mean + distance * (n / total),
        moments.m2 + batch_m2 + distance**2 * (moments.count * n / total),
    )


def normalise(
    samples: np.ndarray, mean: np.ndarray, inverse_std: np.ndarray, clip: float, out: np.ndarray | None = None
) -> np.ndarray:
    """Returns (x - mean) / std, clipped to [-clip, clip]. samples: [..., D]; mean: [D]; inverse_std: [D] float32.

    The result is float32, in `out` if given. The mean is subtracted from wider samples in their own type: in float32 a
    large offset would swallow the difference.
    """
    if out is None:
        out = np.empty(samples.shape, np.float32)
    np.subtract(samples, mean, out=out, casting="same_kind" if samples.dtype.kind == "f" else "unsafe")
    np.multiply(out, inverse_std, out=out)
    # minimum and maximum are several times faster than np.clip on small arrays
    np.minimum(out, clip, out=out)
    return np.maximum(out, -clip, out=out)


class Normaliser:
    """The moments of a run's observations [D] and of its running discounted return, whose deviation scales rewards.

    `freeze` fixes the moments that acting, advantages and gradients of one iteration use. `merge` adds samples for the
    next iteration.
    """

    def __init__(self, observation_size: int, cfg: MomentsConfig) -> None:
        self.cfg = cfg
        self.observations = Moments.empty(observation_size)
        self.returns = Moments.empty(1)
        self._has_started = False
        self.freeze()

    def freeze(self) -> None:
        """Fixes the moments as they are now."""
        self.frozen_mean = self.observations.mean
        self.frozen_return_mean = self.returns.mean
        is_small = np.abs(self.frozen_mean).max(initial=0.0) <= LARGE
        self._shift = self.frozen_mean.astype(np.float32) if is_small else self.frozen_mean
        self._inverse_std = (1.0 / self.observations.std()).astype(np.float32)
        self.reward_scale = self._reward_scale()

    def _reward_scale(self) -> float:
        """Returns 1 / deviation of the discounted return, in any unit: eps is at most a ten-thousandth of the variance.

        Returns 1 where the return varies by at most a ten-thousandth of its mean: a constant must not be blown up.
        """
        count = self.returns.count
        if not self.cfg.returns or count < 2:
            return 1.0
        mean, variance = float(self.returns.mean[0]), float(self.returns.m2[0]) / count
        if variance <= max(LEAST_VARIANCE, 1e-8 * mean**2):
            return 1.0
        return 1.0 / math.sqrt(variance + min(1e-8, 1e-4 * variance))

    def start_from(self, observation: np.ndarray) -> None:
        """Has the first sums taken about `observation` [*obs] where it is large, else about 0; before the first sample.

        Sums about 0 of samples with a large offset and a small deviation would cancel. All ranks whose sums are added
        up start from the same observation.
        """
        assert self.observations.count == 0, "sums are taken about the mean by now"
        first = np.asarray(observation, np.float64).reshape(-1)
        is_large = np.isfinite(first) & (np.abs(first) > LARGE)
        self.observations = Moments(0.0, np.where(is_large, first, 0.0), np.zeros(len(first)))
        self._has_started = True
        self.freeze()

    def inputs(self, observations: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Turns raw observations [B, *obs] into the network's inputs [B, D] float32, in `out` if given."""
        flat = observations if observations.ndim == 2 else observations.reshape(len(observations), -1)
        if self.cfg.observations:
            shift = self.frozen_mean if flat.dtype.itemsize > 4 else self._shift
            return normalise(flat, shift, self._inverse_std, self.cfg.clip, out)
        if out is None:
            return flat.astype(np.float32)
        out[...] = flat
        return out

    def deltas(self, observations: np.ndarray, discounted_returns: np.ndarray) -> np.ndarray:
        """Sums a rollout's samples, [B, D] and [B, 1], about the frozen means. Returns [num_sums] float64.

        Where `start_from` was not called, the sums start from the first sample.
        """
        if not self._has_started and self.observations.count == 0 and len(observations):
            self.start_from(observations[0])
        return np.concatenate((
            deltas(observations, self.frozen_mean),
            deltas(discounted_returns, self.frozen_return_mean),
        ))  # fmt: skip

    @property
    def num_sums(self) -> int:
        """The length of what `deltas` returns."""
        return 2 + 2 * (len(self.observations.mean) + 1)

    def merge(self, sums: np.ndarray, mean: np.ndarray | None = None, return_mean: np.ndarray | None = None) -> None:
        """Adds the sums of any number of rollouts, all taken about the same means (the frozen ones by default)."""
        split = 1 + 2 * len(self.observations.mean)
        self.observations = merge(self.observations, sums[:split], self.frozen_mean if mean is None else mean)
        self.returns = merge(
            self.returns, sums[split:], self.frozen_return_mean if return_mean is None else return_mean
        )

    def pack(self) -> np.ndarray:
        """Returns both moments in the form in which they travel and are saved: [num_sums] float64."""
        both = (self.observations, self.returns)
        return np.concatenate([part for m in both for part in ([m.count], m.mean, m.m2)])

    def unpack(self, packed: np.ndarray) -> None:
        """Reverses `pack`; does not freeze. Where the packed moments hold no sample, the start set here stays."""
        size = len(self.observations.mean)
        split = 1 + 2 * size
        if packed[0] or not self._has_started:
            self.observations = Moments(float(packed[0]), packed[1 : 1 + size].copy(), packed[1 + size : split].copy())
        self.returns = Moments(float(packed[split]), packed[split + 1 : split + 2].copy(), packed[split + 2 :].copy())

    def first_not_finite(self) -> str | None:
        """Says which moment is not finite, with the repair. Returns None where all are finite."""
        returns, observations = float(self.returns.m2[0]), self.observations.m2
        if math.isfinite(returns + float(np.add.reduce(observations))):
            return None
        if not math.isfinite(returns):
            return "the moments of the discounted returns; have the environment give smaller rewards"
        bad = np.flatnonzero(~np.isfinite(observations))
        if not len(bad):  # only their sum is too large
            return None
        return f"the moments of observation {bad[0]}; have the environment, or a wrapper, give smaller ones"
