"""A torch network behind the same seam as the NumPy one: the user's own, or the default MLP through autograd.

The module's parameters and their gradients become views of the flat buffers, so nothing is copied between torch, the
optimiser and MPI. A network that is placed on a GPU has copies of both there: parameters are copied to them before the
first pass after a change, gradients are copied back after each.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dppo.models.flat import FlatParameters

MOST_ROWS = 256
"""The most rows whose values are computed at once: a rollout's activations would take gigabytes."""


def orthogonal_(layer: torch.nn.Linear | torch.nn.Conv2d, gain: float) -> None:
    """Sets a layer's bias to 0 and its weight to an orthogonal one times `gain`; see models/mlp.py for the sources."""
    torch.nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        torch.nn.init.zeros_(layer.bias)


def make_towers(
    num_inputs: int, hidden: Sequence[int], num_outputs: int, activation: str
) -> tuple[torch.nn.Sequential, torch.nn.Sequential]:
    """Makes the policy's tower and the value's, with the initial weights of the closed-form MLP."""
    nonlinearity = torch.nn.ReLU if activation == "relu" else torch.nn.Tanh

    def tower(outputs: int) -> torch.nn.Sequential:
        layers: list[torch.nn.Module] = []
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise((num_inputs, *hidden, outputs))):
            layers += [torch.nn.Linear(fan_in, fan_out)]
            layers += [nonlinearity()] if i < len(hidden) else []
        return torch.nn.Sequential(*layers)

    policy, value = tower(num_outputs), tower(1)
    for tower_, last_gain in ((policy, 0.01), (value, 1.0)):
        linear = [layer for layer in tower_ if isinstance(layer, torch.nn.Linear)]
        for layer in linear:
            orthogonal_(layer, last_gain if layer is linear[-1] else 2.0**0.5)
    return policy, value


class TorchMLP(torch.nn.Module):
    """The default network as a torch module."""

    def __init__(self, observation_size: int, hidden: Sequence[int], num_outputs: int, activation: str) -> None:
        super().__init__()
        self.policy_tower, self.value_tower = make_towers(observation_size, hidden, num_outputs, activation)

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.policy_tower(inputs), self.value_tower(inputs)[:, 0]

    def take_over(self, parameters: Mapping[str, np.ndarray]) -> None:
        """Copies the parameters of the closed-form MLP (models/mlp.py), by its names of them."""
        for tower, head, side in ((self.policy_tower, "policy", 0), (self.value_tower, "value", 1)):
            *hidden, last = (layer for layer in tower if isinstance(layer, torch.nn.Linear))
            with torch.no_grad():
                for i, layer in enumerate(hidden):
                    layer.weight.copy_(torch.from_numpy(parameters[f"hidden.{i}.weight"][side].T))
                    layer.bias.copy_(torch.from_numpy(parameters[f"hidden.{i}.bias"][side, 0]))
                last.weight.copy_(torch.from_numpy(parameters[f"{head}.weight"].T))
                last.bias.copy_(torch.from_numpy(parameters[f"{head}.bias"][0]))


class TorchNetwork:
    """Any module with forward([B, D]) -> (outputs [B, K'], value [B]), of which each row depends on its own input only.
    The module stays in the mode (train, eval) that it comes in.
    """

    state_size = 0

    def __init__(self, flat: FlatParameters, module: torch.nn.Module) -> None:
        self.module, self._flat = module, flat
        for name, parameter in module.named_parameters():
            with torch.no_grad():
                torch.from_numpy(flat.parameters[name]).copy_(parameter)
        size = sum(p.numel() for p in module.parameters())
        self._host = torch.from_numpy(flat.vector[:size]), torch.from_numpy(flat.gradient[:size])
        self._outputs: tuple[torch.Tensor, torch.Tensor] | None = None
        self.place("cpu")

    @staticmethod
    def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
        """Returns names and shapes of the module's parameters, in the order in which they lie in the flat vector."""
        return {name: tuple(p.shape) for name, p in module.named_parameters()}

    def place(self, device: str) -> None:
        """Makes the network compute on `device`, by torch's name of it, from now on: "cpu" in the flat buffers
        themselves, any other device in copies of them.
        """
        self._device, self._is_copied = device, device != "cpu"
        vector, self._gradient = (t.to(device, copy=True) if self._is_copied else t for t in self._host)
        self._vector, self._version = vector, self._flat.version
        if vector.is_cuda:  # the same numbers each time
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        start = 0
        for parameter in self.module.parameters():
            views = [t[start : start + parameter.numel()].view(parameter.shape) for t in (vector, self._gradient)]
            parameter.data, parameter.grad = views
            start += parameter.numel()
        self._place_constants()

    def _place_constants(self) -> None:
        for name, buffer in self.module.named_buffers():
            buffer.data = torch.from_numpy(self._flat.constants[name]).to(self._device)

    def _tensor(self, array: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Returns an array as a tensor on the network's device, where the parameters are then the present ones."""
        if self._is_copied and self._version != self._flat.version:
            self._vector.copy_(self._host[0])
            self._place_constants()
            self._version = self._flat.version
        return torch.as_tensor(array).to(self._device)

    def _argument(self, inputs: np.ndarray) -> Any:
        """Returns what the module takes for inputs [B, ...]."""
        return self._tensor(inputs)

    def act(self, inputs: np.ndarray, states: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        with torch.no_grad():
            return to_array(self.module(self._argument(inputs))[0]), None

    def value(self, inputs: np.ndarray, states: np.ndarray | None = None) -> np.ndarray:
        with torch.no_grad():
            return to_array(self.module(self._argument(inputs))[1])

    def forward(
        self, inputs: np.ndarray, states: np.ndarray | None = None, firsts: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        outputs, value = self.module(self._argument(inputs))
        self._outputs = (outputs, value)
        return to_array(outputs), to_array(value)

    def backward(self, d_outputs: np.ndarray, d_value: np.ndarray) -> None:
        assert self._outputs is not None, "backward before forward"
        self._gradient.zero_()  # autograd adds
        # a value that is a constant has no gradient
        pairs = [(out, d) for out, d in zip(self._outputs, (d_outputs, d_value), strict=True) if out.requires_grad]
        gradients = [torch.from_numpy(np.ascontiguousarray(d)).to(self._device) for _, d in pairs]
        _run_backward([out for out, _ in pairs], gradients)
        self._outputs = None
        if self._is_copied:
            self._host[1].copy_(self._gradient)


def _run_backward(outputs: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
    """Does what `torch.autograd.backward` does, without its checks in Python: they import SymPy, which takes each rank
    half a second, and are a tenth of a small minibatch. The engine checks the shapes itself.
    """
    engine = torch.autograd.Variable._execution_engine  # type: ignore[attr-defined]
    engine.run_backward(
        tuple(outputs), tuple(gradients), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """Returns a tensor's values, without a copy if it is on the CPU."""
    return tensor.detach().cpu().numpy()
