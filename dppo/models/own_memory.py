"""Networks of the user's own that remember: a module with `state_size`, whose forward takes and gives states.

forward(observations, states [B, S]) -> (head [B, K], value [B], states after the step [B, S]), all float32. A call is
one step. Over a sequence there is a call for each step, and gradients pass through the states. An episode begins with
zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dppo.algo.sequences import pack
from dppo.models.own_networks import MOST_ROWS, StructuredNetwork
from dppo.models.torch_checks import mapped
from dppo.models.torch_network import to_array

if TYPE_CHECKING:
    from dppo.models.flat import FlatParameters
    from dppo.models.own_networks import Structured


class RememberingNetwork(StructuredNetwork):
    """A network of the user's own that takes observations as the space has them, and states."""

    def __init__(self, flat: FlatParameters, module: torch.nn.Module, structured: Structured, state_size: int) -> None:
        super().__init__(flat, module, structured)
        self.state_size = state_size

    def _before(self, states: np.ndarray | None, rows: int) -> torch.Tensor:
        """Returns states as a tensor of its own: the module might write to it."""
        zeros = np.zeros((rows, self.state_size), np.float32)
        return self._tensor(zeros if states is None else np.array(states))

    def act(self, inputs: np.ndarray, states: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        with torch.no_grad():
            outputs, values, after = self._module(self._argument(inputs), self._before(states, len(inputs)))
        if states is not None:
            states[...] = to_array(after)
        return to_array(outputs), to_array(values)

    def value(self, inputs: np.ndarray, states: np.ndarray | None = None) -> np.ndarray:
        before, values = self._before(states, len(inputs)), np.empty(len(inputs), np.float32)
        with torch.no_grad():
            for i in range(0, len(inputs), MOST_ROWS):
                part = slice(i, i + MOST_ROWS)
                values[part] = to_array(self._module(self._argument(inputs[part]), before[part])[1])
        return values

    def forward(
        self, inputs: np.ndarray, states: np.ndarray | None = None, firsts: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        packing = pack(np.ones(len(inputs), bool) if firsts is None else firsts)
        observations = self._argument(inputs[packing.order])
        now = self._before(states, len(inputs))[torch.from_numpy(packing.starts)]
        steps: list[tuple[torch.Tensor, torch.Tensor]] = []
        start = 0
        for size in packing.sizes.tolist():  # the sequences that are this long are the first ones
            outputs, values, now = self._module(_rows(observations, slice(start, start + size)), now[:size])
            steps.append((outputs, values))
            start += size
        inverse = torch.from_numpy(packing.inverse)
        outputs, values = (torch.cat(parts)[inverse] for parts in zip(*steps, strict=True))
        self._outputs = (outputs, values)
        return to_array(outputs), to_array(values)


def _rows(observations: Any, part: slice) -> Any:
    return mapped(observations, lambda tensor: tensor[part])
