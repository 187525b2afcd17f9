"""Networks of the user's own that take observations as the space has them, with and without memory.

A module with memory has `state_size`, and its forward takes and gives states: forward(observations, states [B, S]) ->
(head [B, K], value [B], states after the step [B, S]), all float32. A call is one step. Over a sequence there is a call
for each step, and gradients pass through the states. An episode begins with zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces

from dppo.algo.sequences import pack
from dppo.envs.leaves import Leaf, parts
from dppo.models.inputs import MASK, Inputs
from dppo.models.torch_checks import mapped
from dppo.models.torch_network import MOST_ROWS, TorchNetwork, to_array

if TYPE_CHECKING:
    import gymnasium

    from dppo.models.flat import FlatParameters


class Structured:
    """Turns raw observations into what a network of the user's own takes: nested as the space is, without a leaf
    `action_mask`, which says what is legal.

    | leaf | tensor |
    |---|---|
    | Box of numbers, not with three axes | normalised, [B, *shape] float32 |
    | Box with three axes: an image | as it is, [B, *shape] uint8; of another type as float32 |
    | Discrete, MultiDiscrete | indices from 0, [B, *shape] int64 |
    | MultiBinary | 0 or 1, [B, *shape] float32 |
    """

    def __init__(self, inputs: Inputs, space: gymnasium.Space[Any]) -> None:
        self._inputs, self.space = inputs, space
        self._images = {image.leaf.path for image in inputs.images}
        self._make = self._maker(space, ())
        if self._make is None:
            raise ValueError(f"there is nothing to observe in {space}")

    def __call__(self, observations: np.ndarray) -> Any:
        """Converts raw observations [B, *obs]."""
        assert self._make is not None
        return self._make(observations, self._inputs.normalised(observations))

    def _maker(
        self, space: gymnasium.Space[Any], path: tuple[str, ...]
    ) -> Callable[[np.ndarray, dict[tuple[str, ...], np.ndarray]], Any] | None:
        """Returns the function that makes the part to which `path` leads, of whole observations and normalised
        numbers; None if nothing of that part is seen.
        """
        inner = parts(space)
        if inner is None:
            return self._leaf_maker(Leaf(path, space))
        found = {name: self._maker(part, (*path, name)) for name, part in inner.items()}
        made = {name: make for name, make in found.items() if make is not None}
        if not made:
            return None
        if isinstance(space, spaces.Tuple):
            return lambda raw, numbers: tuple(make(raw, numbers) for make in made.values())
        return lambda raw, numbers: {name: make(raw, numbers) for name, make in made.items()}

    def _leaf_maker(self, leaf: Leaf) -> Callable[[np.ndarray, dict[tuple[str, ...], np.ndarray]], torch.Tensor] | None:
        if leaf.path == (MASK,):
            return None
        if leaf.path in self._images:
            as_it_is = leaf.dtype == np.uint8
            return lambda raw, _: _tensor(leaf.of(raw) if as_it_is else leaf.of(raw).astype(np.float32))
        if isinstance(leaf.space, spaces.Box):
            return lambda _, numbers: torch.from_numpy(numbers[leaf.path])
        if isinstance(leaf.space, spaces.MultiBinary):
            return lambda raw, _: torch.from_numpy(leaf.of(raw).astype(np.float32))
        space: Any = leaf.space
        start = np.asarray(space.start, np.int64)
        return lambda raw, _: torch.from_numpy(np.asarray(leaf.of(raw).astype(np.int64) - start))


def _tensor(array: np.ndarray) -> torch.Tensor:
    """Returns a tensor of an array; in its memory, if torch can use that as it lies."""
    return torch.from_numpy(np.require(array, requirements=("C", "W")))


class StructuredNetwork(TorchNetwork):
    """A network of the user's own that takes observations as the space has them."""

    def __init__(self, flat: FlatParameters, module: torch.nn.Module, structured: Structured) -> None:
        super().__init__(flat, module)
        self._structured = structured

    def _argument(self, inputs: np.ndarray) -> Any:
        return mapped(self._structured(inputs), self._tensor)

    def act(self, inputs: np.ndarray, states: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        with torch.no_grad():
            outputs, values = self.module(self._argument(inputs))
        return to_array(outputs), to_array(values)

    def value(self, inputs: np.ndarray, states: np.ndarray | None = None) -> np.ndarray:
        values = np.empty(len(inputs), np.float32)
        for i in range(0, len(inputs), MOST_ROWS):
            values[i : i + MOST_ROWS] = super().value(inputs[i : i + MOST_ROWS])
        return values


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
            outputs, values, after = self.module(self._argument(inputs), self._before(states, len(inputs)))
        if states is not None:
            states[...] = to_array(after)
        return to_array(outputs), to_array(values)

    def value(self, inputs: np.ndarray, states: np.ndarray | None = None) -> np.ndarray:
        before, values = self._before(states, len(inputs)), np.empty(len(inputs), np.float32)
        with torch.no_grad():
            for i in range(0, len(inputs), MOST_ROWS):
                part = slice(i, i + MOST_ROWS)
                values[part] = to_array(self.module(self._argument(inputs[part]), before[part])[1])
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
            outputs, values, now = self.module(_rows(observations, slice(start, start + size)), now[:size])
            steps.append((outputs, values))
            start += size
        inverse = torch.from_numpy(packing.inverse)
        outputs, values = (torch.cat(parts)[inverse] for parts in zip(*steps, strict=True))
        self._outputs = (outputs, values)
        return to_array(outputs), to_array(values)


def _rows(observations: Any, part: slice) -> Any:
    return mapped(observations, lambda tensor: tensor[part])
