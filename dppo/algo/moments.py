"""Keeps the running mean and variance, in float64, of samples that arrive in parts on many ranks.

Pure NumPy. The learner keeps moments of observations and of discounted returns, and merges the parts of all ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dppo.algo.compiled import kernels

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
    kind = samples.dtype.char
    fits = kind in "fd" and mean.dtype == samples.dtype and out.dtype == np.float32
    if kernels is not None and fits and all(a.flags.c_contiguous for a in (samples, mean, out)):
        kernels.normalise(out, inverse_std, clip, kind == "d", samples, mean)
        return out
    np.subtract(samples, mean, out=out, casting="same_kind" if samples.dtype.kind == "f" else "unsafe")
    np.multiply(out, inverse_std, out=out)
    # minimum and maximum are several times faster than np.clip on small arrays
    np.minimum(out, clip, out=out)
    return np.maximum(out, -clip, out=out)


class RunningMoments:
    """Moments that grow by sums about a mean which stays fixed within an iteration: `freeze` fixes it, `merge` adds
    samples for the next iteration.
    """

    def __init__(self, size: int) -> None:
        self.now = Moments.empty(size)
        """The moments of all samples merged so far."""
        self.frozen_mean = self.now.mean
        """[D] float64, the mean about which sums are taken."""
        self._has_started = False

    @property
    def num_sums(self) -> int:
        """The length of what `deltas` returns."""
        return 1 + 2 * len(self.now.mean)

    def freeze(self) -> None:
        """Fixes the moments as they are now."""
        self.frozen_mean = self.now.mean

    def start_from(self, sample: np.ndarray) -> None:
        """Has the first sums taken about `sample` [D] where it is large, else about 0; before the first sample.

        Sums about 0 of samples with a large offset and a small deviation would cancel. All ranks whose sums are added
        up start from the same sample.
        """
        assert self.now.count == 0, "sums are taken about the mean by now"
        first = np.asarray(sample, np.float64).reshape(-1)
        is_large = np.isfinite(first) & (np.abs(first) > LARGE)
        self.now = Moments(0.0, np.where(is_large, first, 0.0), np.zeros(len(first)))
        self._has_started = True
        self.freeze()

    def deltas(self, samples: np.ndarray) -> np.ndarray:
        """Sums samples [B, D] about the frozen mean. Returns [num_sums] float64.

        Where `start_from` was not called, the sums start from the first sample.
        """
        if not self._has_started and self.now.count == 0 and len(samples):
            self.start_from(samples[0])
        return deltas(samples, self.frozen_mean)

    def merge(self, sums: np.ndarray, mean: np.ndarray | None = None) -> None:
        """Adds the sums of any number of rollouts, all taken about the same mean (the frozen one by default)."""
        self.now = merge(self.now, sums, self.frozen_mean if mean is None else mean)

    def pack(self) -> np.ndarray:
        """Returns the moments in the form in which they travel and are saved: [num_sums] float64."""
        return np.concatenate(([self.now.count], self.now.mean, self.now.m2))

    def unpack(self, packed: np.ndarray) -> None:
        """Reverses `pack`; does not freeze. Where the packed moments hold no sample, the start set here stays."""
        if packed[0] or not self._has_started:
            size = len(self.now.mean)
            self.now = Moments(float(packed[0]), packed[1 : 1 + size].copy(), packed[1 + size :].copy())

    def first_not_finite(self) -> int | None:
        """Returns the index of the first moment that is not finite; None where all are finite."""
        if math.isfinite(float(np.add.reduce(self.now.m2))):
            return None
        bad = np.flatnonzero(~np.isfinite(self.now.m2))
        return int(bad[0]) if len(bad) else None  # else only their sum is too large


class RewardScale(RunningMoments):
    """The moments of a run's running discounted return, whose deviation scales rewards.

    Args:
      is_used: whether rewards are scaled at all.
    """

    def __init__(self, *, is_used: bool) -> None:
        super().__init__(1)
        self._is_used = is_used
        self.freeze()

    def freeze(self) -> None:
        super().freeze()
        self.scale = self._scale()
        """1 / deviation of the discounted return, the factor of rewards in this iteration."""

    def deltas(self, samples: np.ndarray) -> np.ndarray:
        """Sums running discounted returns [B, 1] about the frozen mean, the first ones about 0."""
        return deltas(samples, self.frozen_mean)

    def _scale(self) -> float:
        """Returns the factor for rewards in any unit: eps is at most a ten-thousandth of the variance.

        Returns 1 where the return varies by at most a ten-thousandth of its mean: a constant must not be blown up.
        """
        if not self._is_used or self.now.count < 2:
            return 1.0
        mean, variance = float(self.now.mean[0]), float(self.now.m2[0]) / self.now.count
        if variance <= max(LEAST_VARIANCE, 1e-8 * mean**2):
            return 1.0
        return 1.0 / math.sqrt(variance + min(1e-8, 1e-4 * variance))
