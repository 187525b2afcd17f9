"""Distributions over finitely many actions: one choice, choices side by side, bits. Logits of -inf rule actions out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gymnasium import spaces

from dppo.algo.compiled import kernels
from dppo.models.seams import NoiseKinds
from dppo.seams import ArrayType, Evaluation

MAX_LOGIT = 1e30
"""The largest distance of a logit from the largest of its row, and of a bit's logit from 0; what is further counts as
this. The logit -inf is of an action that a mask rules out. The action's probability is 0, and so are its gradient and
its part of entropy and KL: 0 log 0 = 0.
"""

_LEAST_LOGIT = np.array(-MAX_LOGIT, np.float32)  # each call would make an array of a number
_RULED_OUT = np.array(-np.inf, np.float32)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.maximum(logits - logits.max(axis=-1, keepdims=True), -MAX_LOGIT)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


class Categorical:
    """One of K actions, from K logits. actions: [B] int64; noise: [B, K] Gumbel: argmax(logits + noise) is a sample.

    Source: Maddison et al. 2014 (A* sampling), section 2: the Gumbel-max trick. It takes two calls, where the inverse
    of the cumulative distribution needs seven. The noise of a whole rollout is drawn at once.
    """

    log_std_size = 0
    action_type: ArrayType = (), np.dtype(np.int64)
    compiled_loss: Callable[..., None] | None = None if kernels is None else kernels.categorical_loss

    def __init__(self, space: spaces.Discrete) -> None:
        n = int(space.n)
        self.head_size = self.network_outputs = self.noise_size = self.mask_size = n
        self.choices: tuple[int, ...] = (n,)
        self.noise_kinds: NoiseKinds = (("gumbel", n),)
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

    def masked(self, head: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Rules out what is not legal; see `ActionDistribution`."""
        return head if masks.all() else np.where(masks, head, _RULED_OUT)

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


def numbers_of_values(space: spaces.Box) -> tuple[int, ...]:
    """Returns how many values each element of a Box of integers has."""
    # in Python's integers: int64 does not hold the number of its own values
    return tuple(int(high) - int(low) + 1 for low, high in zip(space.low.flat, space.high.flat, strict=True))


class MultiCategorical:
    """Independent categoricals side by side: of a MultiDiscrete, or of a Box of integers, whose values from low to high
    are the choices. actions: [B, M] int64; noise: [B, K] Gumbel.
    """

    log_std_size = 0
    compiled_loss: Callable[..., None] | None = None

    def __init__(self, space: spaces.MultiDiscrete | spaces.Box) -> None:
        self._shape, self._dtype = space.shape, np.dtype(space.dtype)
        if isinstance(space, spaces.Box):
            starts, self.choices = space.low, numbers_of_values(space)
        else:
            starts, self.choices = np.asarray(space.start), tuple(int(n) for n in space.nvec.flat)
        self._starts = starts.reshape(-1).astype(self._dtype)
        self._parts = [Categorical(spaces.Discrete(n)) for n in self.choices]
        edges = list(itertools.accumulate(self.choices, initial=0))
        self._slices = [slice(a, b) for a, b in itertools.pairwise(edges)]
        self.head_size = self.network_outputs = self.noise_size = self.mask_size = edges[-1]
        self.noise_kinds: NoiseKinds = (("gumbel", self.noise_size),)
        self.action_type: ArrayType = (len(self.choices),), np.dtype(np.int64)

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
        # int8 takes 200 for -56 and comes to the right number in the end: integers wrap around
        sent = actions.astype(self._dtype, copy=False) + self._starts
        return sent.reshape(len(actions), *self._shape)

    def masked(self, head: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Rules out what is not legal; see `ActionDistribution`."""
        return head if masks.all() else np.where(masks, head, _RULED_OUT)

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

    log_std_size = mask_size = 0
    compiled_loss: Callable[..., None] | None = None
    choices: tuple[int, ...] = ()

    def __init__(self, space: spaces.MultiBinary) -> None:
        self._shape, size = space.shape, int(np.prod(space.shape))
        self.head_size = self.network_outputs = self.noise_size = size
        self.noise_kinds: NoiseKinds = (("uniform", size),)
        self.action_type: ArrayType = (size,), np.dtype(np.int8)

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

    def masked(self, head: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Returns `head`: a mask says nothing of bits."""
        return head

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
