"""Action distributions on the network's head: sampling, log-probabilities, entropies, KL, and their gradients, in
NumPy.

A distribution is parametrised by `head` [B, K]. The noise that a sample needs is an argument, drawn from the
environment's own stream, so that sampling is a pure function. `evaluate` gives log-probabilities and entropies
together with their pullback: (d_log_prob [B], d_entropy scalar) -> d_head [B, K], which reuses what `evaluate` has
computed. On small batches a NumPy call costs about a microsecond whatever it computes, and a reduction over a short
last axis costs several. Hence the few calls, and arrays with the samples in their last axis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

LOG_2PI = math.log(2.0 * math.pi)

MAX_LOGIT = 1e30
"""The largest distance of a logit from the largest of its row, and of a bit's logit from 0; what is further counts as
this. The logit -inf is of an action that a mask rules out. The action's probability is 0, and so are its gradient and
its part of entropy and KL: 0 log 0 = 0.
"""

LOG_STD_BOUNDS = (-20.0, 20.0)
"""The bounds of a Gaussian's log standard deviation, a parameter: far outside of them densities overflow float32."""

_LEAST_LOGIT = np.array(-MAX_LOGIT, np.float32)  # each call would make an array of a number

Pullback = Callable[[np.ndarray, float], np.ndarray]
"""A function (d_log_prob [B], d_entropy) -> d_head [B, K]."""
Evaluation = tuple[np.ndarray, np.ndarray, Pullback]
"""Log-probabilities [B], entropies [B], and the pullback of their gradients to the head."""


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.maximum(logits - logits.max(axis=-1, keepdims=True), -MAX_LOGIT)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


class Categorical:
    """One of K actions, from K logits. actions: [B] int64; noise: [B, K] Gumbel: argmax(logits + noise) is a sample.

    Source: Maddison et al. 2014 (A* sampling), section 2: the Gumbel-max trick. It takes two calls, where the inverse
    of the cumulative distribution needs seven. The noise of a whole rollout is drawn at once.
    """

    noise_kind = "gumbel"

    def __init__(self, space: spaces.Discrete) -> None:
        self.head_size = self.network_outputs = self.noise_size = int(space.n)
        self._start, self._dtype = int(space.start), space.dtype

    def sample(self, head: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Samples actions [B]."""
        return (head + noise).argmax(axis=-1)

    def mode(self, head: np.ndarray) -> np.ndarray:
        """Returns the most probable actions [B]."""
        return head.argmax(axis=-1)

    def to_env(self, actions: np.ndarray) -> np.ndarray:
        """Returns actions as the environment wants them."""
        sent = actions + self._start if self._start else actions
        return sent.astype(self._dtype, copy=False)

    def evaluate(self, head: np.ndarray, actions: np.ndarray) -> Evaluation:
        """Evaluates `actions`; d log p_a / dz = onehot(a) - p, dH/dz = -p (log p + H)."""
        log_p = np.array(head.T, order="C")  # [K, B]
        log_p -= np.maximum.reduce(log_p, axis=0)
        np.maximum(log_p, _LEAST_LOGIT, out=log_p)
        p = np.exp(log_p)
        total = np.add.reduce(p, axis=0)
        log_p -= np.log(total)
        p /= total
        chosen = actions * len(actions) + np.arange(len(actions))  # in log_p as it lies in memory
        p_log_p = p * log_p
        entropy = -np.add.reduce(p_log_p, axis=0)

        def pullback(d_log_prob: np.ndarray, d_entropy: float) -> np.ndarray:
            d_head = p * -d_log_prob
            d_head.reshape(-1)[chosen] += d_log_prob
            if d_entropy:
                d_head -= d_entropy * (p_log_p + p * entropy)
            return d_head.T

        return log_p.take(chosen), entropy, pullback

    def kl(self, old_head: np.ndarray, head: np.ndarray) -> np.ndarray:
        """Returns KL[old | new], [B]."""
        old = _log_softmax(old_head)
        return (np.exp(old) * (old - _log_softmax(head))).sum(axis=-1)

    def kl_backward(self, old_head: np.ndarray, head: np.ndarray, weight: float) -> np.ndarray:
        """Returns the gradient of weight * sum of `kl`, [B, K]: weight (p - p_old)."""
        return weight * (np.exp(_log_softmax(head)) - np.exp(_log_softmax(old_head)))


class MultiCategorical:
    """Independent categoricals side by side. actions: [B, M] int64; noise: [B, K] Gumbel."""

    noise_kind = "gumbel"

    def __init__(self, space: spaces.MultiDiscrete) -> None:
        self._shape, self._dtype, sizes = space.shape, space.dtype, space.nvec.reshape(-1)
        starts = np.asarray(space.start).reshape(-1)
        self._parts = [Categorical(spaces.Discrete(int(n), start=int(s))) for n, s in zip(sizes, starts, strict=True)]
        edges = np.concatenate(([0], np.cumsum(sizes)))
        self._slices = [slice(int(a), int(b)) for a, b in itertools.pairwise(edges)]
        self._starts = starts
        self.head_size = self.network_outputs = self.noise_size = int(edges[-1])

    def _each(self, *heads: np.ndarray) -> Iterator[Any]:
        """Yields each part, with its columns of `heads`."""
        return zip(self._parts, *([head[:, s] for s in self._slices] for head in heads), strict=True)

    def sample(self, head: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Samples actions [B, M]."""
        return np.stack([part.sample(h, n) for part, h, n in self._each(head, noise)], axis=-1)

    def mode(self, head: np.ndarray) -> np.ndarray:
        """Returns the most probable actions [B, M]."""
        return np.stack([part.mode(h) for part, h in self._each(head)], axis=-1)

    def to_env(self, actions: np.ndarray) -> np.ndarray:
        """Returns actions as the environment wants them."""
        return (actions + self._starts).reshape(len(actions), *self._shape).astype(self._dtype, copy=False)

    def evaluate(self, head: np.ndarray, actions: np.ndarray) -> Evaluation:
        """Evaluates `actions`: sums over the parts."""
        parts = [part.evaluate(h, chosen) for (part, h), chosen in zip(self._each(head), actions.T, strict=True)]

        def pullback(d_log_prob: np.ndarray, d_entropy: float) -> np.ndarray:
            return np.concatenate([back(d_log_prob, d_entropy) for _, _, back in parts], axis=-1)

        return np.sum([p[0] for p in parts], axis=0), np.sum([p[1] for p in parts], axis=0), pullback

    def kl(self, old_head: np.ndarray, head: np.ndarray) -> np.ndarray:
        """Returns KL[old | new], [B]."""
        return np.sum([part.kl(old, h) for part, old, h in self._each(old_head, head)], axis=0)

    def kl_backward(self, old_head: np.ndarray, head: np.ndarray, weight: float) -> np.ndarray:
        """Returns the gradient of weight * sum of `kl`, [B, K]."""
        parts = [part.kl_backward(old, h, weight) for part, old, h in self._each(old_head, head)]
        return np.concatenate(parts, axis=-1)


class Bernoulli:
    """Independent bits, from one logit each. actions: [B, M] int8; noise: [B, M] uniform."""

    noise_kind = "uniform"

    def __init__(self, space: spaces.MultiBinary) -> None:
        self._shape = space.shape
        self.head_size = self.network_outputs = self.noise_size = int(np.prod(space.shape))

    @staticmethod
    def _sigmoid(logits: np.ndarray) -> np.ndarray:
        return 0.5 * (1.0 + np.tanh(0.5 * logits))

    @staticmethod
    def _bounded(logits: np.ndarray) -> np.ndarray:
        return np.minimum(np.maximum(logits, -MAX_LOGIT), MAX_LOGIT)

    def sample(self, head: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Samples bits [B, M]."""
        return (noise < self._sigmoid(head)).astype(np.int8)

    def mode(self, head: np.ndarray) -> np.ndarray:
        """Returns the most probable bits [B, M]."""
        return (head > 0).astype(np.int8)

    def to_env(self, actions: np.ndarray) -> np.ndarray:
        """Returns actions as the environment wants them."""
        return actions.reshape(len(actions), *self._shape)

    def evaluate(self, head: np.ndarray, actions: np.ndarray) -> Evaluation:
        """Evaluates `actions`: sums over the bits; d log p / dz = a - p, dH/dz = -z p (1 - p)."""
        head = self._bounded(head)
        p, softplus = self._sigmoid(head), np.logaddexp(np.float32(0), head)

        def pullback(d_log_prob: np.ndarray, d_entropy: float) -> np.ndarray:
            return (actions - p) * d_log_prob[:, None] - d_entropy * head * p * (1.0 - p)

        return (actions * head - softplus).sum(axis=-1), (softplus - head * p).sum(axis=-1), pullback

    def kl(self, old_head: np.ndarray, head: np.ndarray) -> np.ndarray:
        """Returns KL[old | new], [B]."""
        zero = np.float32(0)
        old_head, head = self._bounded(old_head), self._bounded(head)
        gap = np.logaddexp(zero, head) - np.logaddexp(zero, old_head)
        return (self._sigmoid(old_head) * (old_head - head) + gap).sum(axis=-1)

    def kl_backward(self, old_head: np.ndarray, head: np.ndarray, weight: float) -> np.ndarray:
        """Returns the gradient of weight * sum of `kl`, [B, M]: weight (p - p_old)."""
        return weight * (self._sigmoid(head) - self._sigmoid(old_head))


class DiagGaussian:
    """Independent normals with a state-independent log standard deviation. head: [B, 2 A], mean then log std, which
    every step keeps within LOG_STD_BOUNDS; actions: [B, A] float32, not clipped; noise: [B, A] standard normal.

    Actions have the policy's units: where the Box is bounded, [-1, 1] is mapped to [low, high], so that initial weights
    and noise fit any range; elsewhere the units are the environment's. On the way to the environment, actions are
    clipped to the bounds.
    """

    noise_kind = "normal"

    def __init__(self, space: spaces.Box) -> None:
        self._space = space
        low, high = space.low.astype(np.float64).reshape(-1), space.high.astype(np.float64).reshape(-1)
        bounded = (np.abs(low) < 1e6) & (np.abs(high) < 1e6)  # some environments write "unbounded" as a huge number
        low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
        self._centre = ((low + high) / 2).astype(np.float32)
        self._scale = ((high - low) / 2).astype(np.float32)
        self._is_scaled = bool((self._centre != 0).any() or (self._scale != 1).any())
        self.noise_size = self.network_outputs = len(low)
        self.head_size = 2 * self.noise_size
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
        scaled = self._centre + self._scale * actions if self._is_scaled else actions
        scaled = scaled.reshape(len(actions), *self._space.shape)
        clipped = np.minimum(np.maximum(scaled, self._space.low), self._space.high)
        return clipped.astype(self._space.dtype, copy=False)

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


Distribution = Categorical | MultiCategorical | Bernoulli | DiagGaussian


def make_distribution(space: gymnasium.Space) -> Distribution:
    """Makes the distribution that fits an action space. Raises ValueError for a space that none fits."""
    if isinstance(space, spaces.Discrete):
        return Categorical(space)
    if isinstance(space, spaces.MultiDiscrete):
        return MultiCategorical(space)
    if isinstance(space, spaces.MultiBinary):
        return Bernoulli(space)
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return DiagGaussian(space)
    raise ValueError(
        f"action space {space} is not supported: Discrete, MultiDiscrete, MultiBinary and floating-point Box are;"
        f" {_advice(space)}"
    )


def _advice(space: gymnasium.Space) -> str:
    """Names the wrapper that turns `space` into a supported one."""
    if isinstance(space, spaces.Box):
        return (
            "register the environment with gymnasium.wrappers.TransformAction(env, lambda action:"
            f" action.astype('{space.dtype}'), MultiDiscrete(high.astype(int) - low.astype(int) + 1,"
            " start=low.astype(int))) around it, with low and high of its action_space"
        )
    return (
        "register the environment with gymnasium.wrappers.TransformAction(env, function, space) around it: a space of"
        " these, and a function from its actions to the environment's own"
    )
