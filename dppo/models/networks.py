"""The default network, two MLP towers written out in NumPy, and orthogonal initialisation.

Uses NumPy and the flat buffers; policy.py chooses between it and a torch network (torch_network.py). At these sizes a
framework's overhead is several times the arithmetic, so forward and backward are a few lines on preallocated arrays.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from dppo.models.flat import FlatParameters


class Network(Protocol):
    """Maps normalised observations to the policy's outputs and to values; its parameters lie in a FlatParameters."""

    def policy(self, inputs: np.ndarray) -> np.ndarray:
        """[B, D] -> [B, K'] the policy's outputs alone; nothing is kept for `backward`. Valid until the next call."""

    def value(self, inputs: np.ndarray) -> np.ndarray:
        """[B, D] -> [B] values alone; nothing is kept for `backward`. Valid until the next call."""

    def forward(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both, and what `backward` needs is kept."""

    def backward(self, d_outputs: np.ndarray, d_value: np.ndarray) -> None:
        """Writes (not adds) the gradient of the last `forward` into the flat gradient."""


def orthogonal(shape: tuple[int, int], gain: float, rng: np.random.Generator) -> np.ndarray:
    """[in, out] float32 with orthonormal rows or columns, times `gain`. Source: Saxe et al. 2014, section 3."""
    rows, columns = shape
    q, r = np.linalg.qr(rng.standard_normal((max(shape), min(shape))))
    q *= np.sign(np.diag(r))
    return (gain * (q if rows >= columns else q.T)).astype(np.float32)


class _Tower:
    """Dense layers with a nonlinearity between them; activations live in buffers that are kept per batch size."""

    def __init__(self, name: str, flat: FlatParameters, num_layers: int, activation: str) -> None:
        self.weights = [flat.parameters[f"{name}.{i}.weight"] for i in range(num_layers)]
        self.biases = [flat.parameters[f"{name}.{i}.bias"] for i in range(num_layers)]
        self.d_weights = [flat.gradients[f"{name}.{i}.weight"] for i in range(num_layers)]
        self.d_biases = [flat.gradients[f"{name}.{i}.bias"] for i in range(num_layers)]
        self._relu = activation == "relu"
        self._buffers: dict[int, list[np.ndarray]] = {}
        self._activations: list[np.ndarray] = []

    def _outputs_for(self, batch: int) -> list[np.ndarray]:
        if batch not in self._buffers:
            if len(self._buffers) >= 8:  # rollouts that were cut short come in any size
                self._buffers.clear()
            self._buffers[batch] = [np.empty((batch, w.shape[1]), np.float32) for w in self.weights]
        return self._buffers[batch]

    def forward(self, inputs: np.ndarray) -> np.ndarray:
        outputs = self._outputs_for(len(inputs))
        last = len(outputs) - 1
        x = inputs
        for i, out in enumerate(outputs):
            np.matmul(x, self.weights[i], out=out)
            out += self.biases[i]
            if i < last:
                if self._relu:
                    np.maximum(out, 0, out=out)
                else:
                    np.tanh(out, out=out)
            x = out
        self._activations = [inputs, *outputs]
        return x

    def backward(self, d_out: np.ndarray) -> None:
        for i in range(len(self.weights) - 1, -1, -1):
            x = self._activations[i]
            np.matmul(x.T, d_out, out=self.d_weights[i])
            np.sum(d_out, axis=0, out=self.d_biases[i])
            if i == 0:
                return
            d_x = d_out @ self.weights[i].T
            if self._relu:
                d_x *= x > 0
            else:  # tanh' = 1 - tanh^2, with the activation itself as scratch: it is not needed again
                np.multiply(x, x, out=x)
                np.subtract(1.0, x, out=x)
                d_x *= x
            d_out = d_x


class MLP:
    """A policy tower and a value tower of the same hidden sizes, sharing nothing."""

    def __init__(self, flat: FlatParameters, num_layers: int, activation: str) -> None:
        self._policy = _Tower("policy", flat, num_layers, activation)
        self._value = _Tower("value", flat, num_layers, activation)

    @staticmethod
    def shapes(observation_size: int, hidden: Sequence[int], num_outputs: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parameters, in the order in which they lie in the flat vector."""
        shapes: dict[str, tuple[int, ...]] = {}
        for tower, outputs in (("policy", num_outputs), ("value", 1)):
            sizes = [observation_size, *hidden, outputs]
            for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
                shapes[f"{tower}.{i}.weight"] = (fan_in, fan_out)
                shapes[f"{tower}.{i}.bias"] = (fan_out,)
        return shapes

    @staticmethod
    def initialise(flat: FlatParameters, num_layers: int, rng: np.random.Generator) -> None:
        """Orthogonal weights, gain sqrt(2) in hidden layers, 0.01 at the policy's output, 1 at the value's; biases 0.

        Source: Engstrom et al. 2020 (implementation matters), Andrychowicz et al. 2021 (small last policy layer).
        """
        for tower, last_gain in (("policy", 0.01), ("value", 1.0)):
            for i in range(num_layers):
                weight = flat.parameters[f"{tower}.{i}.weight"]
                gain = last_gain if i == num_layers - 1 else 2.0**0.5
                weight[...] = orthogonal((weight.shape[0], weight.shape[1]), gain, rng)
                flat.parameters[f"{tower}.{i}.bias"][...] = 0.0

    def policy(self, inputs: np.ndarray) -> np.ndarray:
        return self._policy.forward(inputs)

    def value(self, inputs: np.ndarray) -> np.ndarray:
        return self._value.forward(inputs)[:, 0]

    def forward(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.policy(inputs), self.value(inputs)

    def backward(self, d_outputs: np.ndarray, d_value: np.ndarray) -> None:
        self._policy.backward(d_outputs)
        self._value.backward(d_value[:, None])
