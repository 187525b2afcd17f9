"""The default network, two MLP towers written out in NumPy, and orthogonal initialisation.

At these sizes a framework's overhead is several times the arithmetic, so forward and backward are a few lines with few
calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from dppo.algo.compiled import kernels
from dppo.models.flat import FlatParameters

MOST_LAYERS, WIDEST = 16, 1024
"""What algo/kernels.c has room for."""


def orthogonal(shape: tuple[int, ...], gain: float, rng: np.random.Generator) -> np.ndarray:
    """Draws [in, out] float32 with orthonormal rows or columns, times `gain`. Source: Saxe et al. 2014, section 3."""
    rows, columns = shape
    q, r = np.linalg.qr(rng.standard_normal((max(shape), min(shape))))
    q *= np.sign(np.diag(r))
    return (gain * (q if rows >= columns else q.T)).astype(np.float32)


class _Layer:
    """The parameters of a dense layer, of both towers or of one head, and their gradients."""

    def __init__(self, flat: FlatParameters, name: str) -> None:
        self.weight, self.bias = flat.parameters[f"{name}.weight"], flat.parameters[f"{name}.bias"]
        self.d_weight, self.d_bias = flat.gradients[f"{name}.weight"], flat.gradients[f"{name}.bias"]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        out: np.ndarray = x @ self.weight
        return np.add(out, self.bias, out=out)

    def backward(self, x: np.ndarray, d_out: np.ndarray, ones: np.ndarray) -> None:
        """Computes the gradients of weight and bias. With ones [1, B], BLAS adds up columns faster than np.sum."""
        np.matmul(x.swapaxes(-1, -2), d_out, out=self.d_weight)
        np.matmul(ones, d_out, out=self.d_bias)


class MLP:
    """A policy tower and a value tower of the same hidden sizes, sharing nothing.

    The hidden layers of both lie side by side, [2, in, out]; tower 0 is the policy's. So one call computes both.
    Activations and their gradients live in buffers that are kept per batch size.

    Args:
      may_be_compiled: whether acting is compiled, where that can be.
    """

    state_size = 0

    def __init__(
        self, flat: FlatParameters, num_hidden: int, activation: str, *, may_be_compiled: bool = False
    ) -> None:
        self._hidden = [_Layer(flat, f"hidden.{i}") for i in range(num_hidden)]
        self._policy, self._value = _Layer(flat, "policy"), _Layer(flat, "value")
        self._relu = activation == "relu"
        self._towers = {
            "both": [(layer.weight, layer.bias) for layer in self._hidden],
            "policy": [(layer.weight[0], layer.bias[0]) for layer in self._hidden],
            "value": [(layer.weight[1], layer.bias[1]) for layer in self._hidden],
        }
        layers = [*self._towers["policy"], (self._policy.weight, self._policy.bias)]
        widths = [weight.shape[1] for weight, _ in layers]
        self.is_compiled = (
            may_be_compiled and kernels is not None and len(layers) <= MOST_LAYERS and max(widths) <= WIDEST
        )
        """Whether `write_head` can be called."""
        self._tower = [array for layer in layers for array in layer]
        self._buffers: dict[tuple[str, int], list[np.ndarray]] = {}
        self._ones = np.ones((1, 0), np.float32)
        self._activations: list[np.ndarray] = []

    @staticmethod
    def shapes(observation_size: int, hidden: Sequence[int], num_outputs: int) -> dict[str, tuple[int, ...]]:
        """Returns names and shapes of the parameters, in the order in which they lie in the flat vector."""
        shapes: dict[str, tuple[int, ...]] = {}
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise((observation_size, *hidden))):
            shapes[f"hidden.{i}.weight"] = (2, fan_in, fan_out)
            shapes[f"hidden.{i}.bias"] = (2, 1, fan_out)
        last = (observation_size, *hidden)[-1]
        for name, outputs in (("policy", num_outputs), ("value", 1)):
            shapes[f"{name}.weight"] = (last, outputs)
            shapes[f"{name}.bias"] = (1, outputs)
        return shapes

    @staticmethod
    def initialise(flat: FlatParameters, num_hidden: int, rng: np.random.Generator) -> None:
        """Sets biases of 0 and orthogonal weights: gain sqrt(2) in hidden layers, 0.01 at the policy's output, 1 at the
        value's.

        Source: Engstrom et al. 2020 (implementation matters), Andrychowicz et al. 2021 (small last policy layer).
        """
        flat.vector[...] = 0.0
        for i in range(num_hidden):
            for weight in flat.parameters[f"hidden.{i}.weight"]:
                weight[...] = orthogonal(weight.shape, 2.0**0.5, rng)
        for name, gain in (("policy", 0.01), ("value", 1.0)):
            weight = flat.parameters[f"{name}.weight"]
            weight[...] = orthogonal(weight.shape, gain, rng)

    def act(self, inputs: np.ndarray, states: np.ndarray | None = None) -> tuple[np.ndarray, None]:
        return self._policy(self._run("policy", inputs)[-1]), None

    def write_head(self, inputs: np.ndarray, tail: np.ndarray, out: np.ndarray) -> None:
        """Writes for `inputs` [B, D] what `act` returns, followed by `tail` [L], into `out` [B, K' + L]. The bits of a
        row do not depend on how many rows there are.
        """
        if len(inputs):
            kernels.tower(inputs, out, tail, len(inputs), self._relu, *self._tower)

    def value(self, inputs: np.ndarray, states: np.ndarray | None = None) -> np.ndarray:
        return self._value(self._run("value", inputs)[-1])[:, 0]

    def forward(
        self, inputs: np.ndarray, states: np.ndarray | None = None, firsts: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        self._activations = self._run("both", inputs)
        last = self._activations[-1]
        policy, value = (last[0], last[1]) if self._hidden else (last, last)
        return self._policy(policy), self._value(value)[:, 0]

    def _run(self, towers: str, inputs: np.ndarray) -> list[np.ndarray]:
        """Returns `inputs` [B, D], then what each hidden layer gives: [B, H], or [2, B, H] for both towers."""
        activations = [inputs]
        for (weight, bias), out in zip(self._towers[towers], self._outputs_for(towers, len(inputs)), strict=True):
            np.matmul(activations[-1], weight, out=out)
            if kernels is not None:
                kernels.add_bias(out, bias, out.shape[-1])
            else:
                np.add(out, bias, out=out)
            if self._relu:
                np.maximum(out, 0, out=out)
            else:
                np.tanh(out, out=out)
            activations.append(out)
        return activations

    def _outputs_for(self, towers: str, batch: int) -> list[np.ndarray]:
        key = (towers, batch)
        if key not in self._buffers:
            if len(self._buffers) >= 12:  # rollouts that were cut short come in any size
                self._buffers.clear()
            shapes = [(*weight.shape[:-2], batch, weight.shape[-1]) for weight, _ in self._towers[towers]]
            self._buffers[key] = [np.empty(shape, np.float32) for shape in shapes]
        return self._buffers[key]

    def backward(self, d_outputs: np.ndarray, d_value: np.ndarray) -> None:
        activations = self._activations
        if self._ones.shape[1] != len(d_value):
            self._ones = np.ones((1, len(d_value)), np.float32)
        ones = self._ones
        assert activations, "backward overwrites what forward has kept: one backward for each forward"
        self._activations = []
        last, d_values = activations[-1], d_value[:, None]
        policy, value = (last[0], last[1]) if self._hidden else (last, last)
        self._policy.backward(policy, d_outputs, ones)
        self._value.backward(value, d_values, ones)
        if not self._hidden:
            return
        d_out = np.empty_like(last)
        np.matmul(d_outputs, self._policy.weight.T, out=d_out[0])
        np.multiply(d_values, self._value.weight.T, out=d_out[1])
        for i in range(len(self._hidden) - 1, -1, -1):
            layer, x, out = self._hidden[i], activations[i], activations[i + 1]
            # the activation is not needed again: its memory, which is in the cache, takes over the gradient
            if self._relu:
                np.multiply(d_out, out > 0, out=out)
            elif kernels is not None:
                kernels.tanh_gradient(d_out, out)
            else:  # tanh' = 1 - tanh^2
                np.multiply(out, out, out=out)
                np.subtract(1.0, out, out=out)
                np.multiply(d_out, out, out=out)
            layer.backward(x, out, ones)
            if i:
                # a copy costs much less than BLAS loses where it multiplies by a transposed matrix
                weight = np.ascontiguousarray(layer.weight.transpose(0, 2, 1))
                d_out = np.matmul(out, weight, out=d_out if x.shape == d_out.shape else None)
