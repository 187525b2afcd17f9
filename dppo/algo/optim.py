"""Optimisers on one flat vector: Adam, shared RMSProp, SGD with momentum; gradient clipping, staleness weights.

Pure NumPy, in place, without temporaries. training/state.py makes the steps. A state is one matrix [S, P], so that a
checkpoint and a message hold it as it lies in memory.
"""

from __future__ import annotations

import math

import numpy as np

from dppo.algo.compiled import kernels
from dppo.config import OptimConfig


class Optimizer:
    """A rule that moves `params` against a gradient. `state` is [S, P] float32, `steps` counts the steps made."""

    num_slots = 0

    def __init__(self, size: int, cfg: OptimConfig) -> None:
        self.cfg = cfg
        self.steps = 0
        self.state = np.zeros((self.num_slots, size), np.float32)
        self._scratch = np.empty(size, np.float32)

    def step(self, params: np.ndarray, gradient: np.ndarray, lr: float, scale: float = 1.0) -> None:
        """Updates `params` [P] in place, against `scale` times `gradient` [P].

        A scale that turns a sum into a mean, or that clips, costs nothing here; alone it is a pass over all parameters.
        """
        raise NotImplementedError


class Adam(Optimizer):
    """The rule of Adam. Source: Kingma and Ba 2015, algorithm 1.

    m = b1 m + (1-b1) g,  v = b2 v + (1-b2) g^2,  p -= lr m/(1-b1^t) / (sqrt(v/(1-b2^t)) + eps)
    """

    num_slots = 2

    def step(self, params: np.ndarray, gradient: np.ndarray, lr: float, scale: float = 1.0) -> None:
        b1, b2 = self.cfg.beta1, self.cfg.beta2
        m, v = self.state
        scratch = self._scratch
        self.steps += 1
        # both bias corrections are taken out of the fraction
        correction = math.sqrt(1.0 - b2**self.steps)
        rate = lr * correction / (1.0 - b1**self.steps)
        take_m, take_v = (1.0 - b1) * scale, math.sqrt(1.0 - b2) * scale
        if kernels is not None:
            kernels.adam(params, m, v, gradient, b1, take_m, b2, take_v, self.cfg.eps * correction, rate)
            return
        m *= b1
        np.multiply(gradient, take_m, out=scratch)
        m += scratch
        v *= b2
        np.multiply(gradient, take_v, out=scratch)
        np.multiply(scratch, scratch, out=scratch)
        v += scratch
        np.sqrt(v, out=scratch)
        scratch += self.cfg.eps * correction
        np.divide(m, scratch, out=scratch)
        scratch *= rate
        params -= scratch


class RMSProp(Optimizer):
    """RMSProp, not centred, with epsilon inside the root; shared when the server holds it.

    g2 = a g2 + (1-a) g^2,  p -= lr g / sqrt(g2 + eps).  Source: Mnih et al. 2016, eq. S3.
    """

    num_slots = 1

    def step(self, params: np.ndarray, gradient: np.ndarray, lr: float, scale: float = 1.0) -> None:
        square = self.state[0]
        scratch = self._scratch
        self.steps += 1
        square *= self.cfg.alpha
        np.multiply(gradient, math.sqrt(1.0 - self.cfg.alpha) * scale, out=scratch)
        np.multiply(scratch, scratch, out=scratch)
        square += scratch
        np.add(square, self.cfg.eps, out=scratch)
        np.sqrt(scratch, out=scratch)
        np.divide(gradient, scratch, out=scratch)
        scratch *= lr * scale
        params -= scratch


class SGD(Optimizer):
    """Gradient descent with heavy-ball momentum: u = mu u + g,  p -= lr u."""

    num_slots = 1

    def step(self, params: np.ndarray, gradient: np.ndarray, lr: float, scale: float = 1.0) -> None:
        velocity = self.state[0]
        self.steps += 1
        velocity *= self.cfg.momentum
        np.multiply(gradient, scale, out=self._scratch)
        velocity += self._scratch
        np.multiply(velocity, lr, out=self._scratch)
        params -= self._scratch


def make_optimizer(size: int, cfg: OptimConfig) -> Optimizer:
    """Makes the optimiser that `cfg.name` names, for `size` parameters."""
    assert cfg.name is not None, "an unresolved configuration reached the optimiser"
    return {"adam": Adam, "rmsprop": RMSProp, "sgd": SGD}[cfg.name](size, cfg)


_LEAST_SAFE, _MOST_SAFE = 1e-20, 1e37
"""Bounds between which a sum of squares in float32 neither overflows nor loses anything that counts to an underflow."""


def squared_norm(vector: np.ndarray, scratch: np.ndarray) -> float:
    """Sums the squares of `vector` [P] float32, to 6 digits; no finite entries overflow. Overwrites `scratch` [P].

    Every replica computes the sum for itself, and all must get the same bits. A dot product's last bits depend on the
    kernel that BLAS chooses for the CPU. NumPy's products are exactly rounded, and its sums have one order anywhere.
    The dot product only tells whether float32 holds the sum; otherwise the sum is taken in float64.
    """
    if _LEAST_SAFE < float(np.vdot(vector, vector)) < _MOST_SAFE:
        return float(np.add.reduce(np.multiply(vector, vector, out=scratch)))
    return float(np.add.reduce(np.square(vector, dtype=np.float64)))


def clip_scale(norm: float, max_norm: float) -> float:
    """Returns the factor that brings a gradient of this norm down to at most `max_norm` (0: no limit, always 1.0).

    Source: Pascanu et al. 2013, algorithm 1.
    """
    return max_norm / norm if 0 < max_norm < norm else 1.0


def staleness_weight(staleness: int, policy: str, max_staleness: float) -> float:
    """Returns the weight of a gradient that is `staleness` versions old; 0 where the gradient is dropped.

    drop: 1 up to `max_staleness`, then 0; scale: the same, times 1/(1+staleness); none: always 1.
    Source: Zhang et al. 2016 (staleness-aware async-SGD), eq. 6, with 1 + staleness so that a fresh gradient counts
    fully.
    """
    if policy == "none":
        return 1.0
    if staleness > max_staleness:
        return 0.0
    return 1.0 / (1.0 + staleness) if policy == "scale" else 1.0
