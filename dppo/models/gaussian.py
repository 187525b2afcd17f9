"""The distribution of continuous actions: independent normals."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from gymnasium import spaces

from dppo.algo.compiled import kernels
from dppo.envs.leaves import ArrayType
from dppo.models.seams import NoiseKinds
from dppo.seams import Evaluation

LOG_2PI = math.log(2.0 * math.pi)

LOG_STD_BOUNDS = (-20.0, 20.0)
"""The bounds of a Gaussian's log standard deviation, a parameter: far outside of them densities overflow float32."""


class DiagGaussian:
    """Independent normals with a state-independent log standard deviation. head: [B, 2 A], mean then log std, which
    every step keeps within LOG_STD_BOUNDS; actions: [B, A] float32, not clipped; noise: [B, A] standard normal.

    Actions have the policy's units: where the Box is bounded, [-1, 1] is mapped to [low, high], so that initial weights
    and noise fit any range; elsewhere the units are the environment's. On the way to the environment, actions are
    clipped to the bounds.
    """

    choices: tuple[int, ...] = ()
    mask_size = 0
    compiled_loss: Callable[..., None] | None = None if kernels is None else kernels.gaussian_loss

    def __init__(self, space: spaces.Box) -> None:
        self._space = space
        low, high = space.low.astype(np.float64).reshape(-1), space.high.astype(np.float64).reshape(-1)
        bounded = (np.abs(low) < 1e6) & (np.abs(high) < 1e6)  # some environments write "unbounded" as a huge number
        low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
        self.centre = ((low + high) / 2).astype(np.float32)
        self.scale = ((high - low) / 2).astype(np.float32)
        self.is_scaled = bool((self.centre != 0).any() or (self.scale != 1).any())
        self._can_be_compiled = kernels is not None and space.dtype == np.float32
        # a kernel takes arrays whose last axis lies in one piece
        self._low, self._high = np.ascontiguousarray(space.low), np.ascontiguousarray(space.high)
        self.noise_size = self.network_outputs = self.log_std_size = len(low)
        self.head_size = 2 * self.noise_size
        self.action_type: ArrayType = (len(low),), np.dtype(np.float32)
        self.noise_kinds: NoiseKinds = (("normal", self.noise_size),)
        self._ones = np.ones(self.noise_size, np.float32)  # BLAS adds up short rows faster than np.sum

    def _split(self, head: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return head[:, : self.noise_size], head[:, self.noise_size :]

    def sample(self, head: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Samples actions [B, A]."""
        mean, log_std = self._split(head)
        return mean + np.exp(log_std) * noise

    def mode(self, head: np.ndarray) -> np.ndarray:
        """Returns the means [B, A]."""
        return self._split(head)[0].copy()

    def to_env(self, actions: np.ndarray) -> np.ndarray:
        """Returns actions as the environment wants them: scaled to the Box, clipped to its bounds."""
        if self._can_be_compiled and actions.flags.c_contiguous and actions.dtype == np.float32:
            sent = np.empty((len(actions), *self._space.shape), np.float32)
            kernels.scaled(actions, self.centre, self.scale, self._low, self._high, sent)
            return sent
        scaled = self.centre + self.scale * actions if self.is_scaled else actions
        scaled = scaled.reshape(len(actions), *self._space.shape)
        clipped = np.minimum(np.maximum(scaled, self._space.low), self._space.high)
        return clipped.astype(self._space.dtype, copy=False)

    def masked(self, head: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Returns `head`: a mask says nothing of normals."""
        return head

    def evaluate(self, head: np.ndarray, actions: np.ndarray) -> Evaluation:
        """Evaluates `actions`: densities in the policy's units; d log p / d mean = z / std,
        d log p / d log std = z^2 - 1, dH / d log std = 1.
        """
        mean, log_std = self._split(head)
        inverse_std = np.exp(-log_std)
        z = (actions - mean) * inverse_std
        square = z * z
        total = log_std @ self._ones
        constant = np.float32(0.5 * LOG_2PI * self.noise_size)

        def pullback(d_log_prob: np.ndarray, d_entropy: float) -> np.ndarray:
            d_head = np.empty_like(head)
            d_mean, d_log_std = self._split(d_head)
            np.multiply(z, inverse_std, out=d_mean)
            np.subtract(square, np.float32(1), out=d_log_std)
            d_head *= d_log_prob[:, None]
            d_log_std += d_entropy
            return d_head

        return (
            np.float32(-0.5) * (square @ self._ones) - total - constant,
            total + (constant + np.float32(0.5 * self.noise_size)),
            pullback,
        )

    def kl(self, old_head: np.ndarray, head: np.ndarray) -> np.ndarray:
        """Returns KL[old | new], [B]."""
        (mean0, log_std0), (mean1, log_std1) = self._split(old_head), self._split(head)
        square = np.exp(2 * log_std0) + (mean0 - mean1) ** 2
        return (log_std1 - log_std0 + 0.5 * square * np.exp(-2 * log_std1) - 0.5).sum(axis=-1)

    def kl_backward(self, old_head: np.ndarray, head: np.ndarray, weight: float) -> np.ndarray:
        """Returns the gradient of weight * sum of `kl`, [B, 2 A]: weight times (mean - mean_old) / var, and times
        1 - (var_old + (mean_old - mean)^2) / var.
        """
        (mean0, log_std0), (mean1, log_std1) = self._split(old_head), self._split(head)
        inverse_var = np.exp(-2 * log_std1)
        square = np.exp(2 * log_std0) + (mean0 - mean1) ** 2
        return weight * np.concatenate(((mean1 - mean0) * inverse_var, 1.0 - square * inverse_var), axis=-1)
