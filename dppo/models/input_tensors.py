"""The inputs of a network as operations of torch on the leaves of observations, for export: what `Inputs` and
`Structured` compute with NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from dppo.envs.leaves import Leaf, leaves, parts
from dppo.models.inputs import MASK, Bits, Inputs, Numbers, OneHot

if TYPE_CHECKING:
    import gymnasium

    from dppo.models.encoders import Parts

Leaves = Mapping[str, torch.Tensor]
"""The leaves of a batch of raw observations by their names, [B, *shape] each, of the space's own types."""


def observed_leaves(space: gymnasium.Space[Any]) -> list[Leaf]:
    """Returns the leaves that a network sees: not the mask, and none without elements."""
    return [leaf for leaf in leaves(space) if leaf.path != (MASK,) and 0 not in leaf.shape]


class _NumberTensors(nn.Module):
    """Of `Numbers`."""

    shift: torch.Tensor
    inverse_std: torch.Tensor

    def __init__(self, part: Numbers) -> None:
        super().__init__()
        self.is_normalised, self.clip, self.width = part.is_normalised, part.clip, part.width
        shift = part.mean if part.leaf.dtype.itemsize > 4 else part.shift
        # NumPy subtracts in the wider type of both, and int32 with float32 gives float64
        self.dtype = torch.float64 if np.result_type(part.leaf.dtype, shift) == np.float64 else torch.float32
        self.register_buffer("shift", torch.tensor(shift).to(self.dtype))
        self.register_buffer("inverse_std", torch.tensor(part.inverse_std))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        rows = values.reshape(-1, self.width)
        if not self.is_normalised:
            return rows.to(torch.float32)
        normalised = (rows.to(self.dtype) - self.shift).to(torch.float32) * self.inverse_std
        return normalised.clamp(-self.clip, self.clip)


class _OneHotTensors(nn.Module):
    """Of `OneHot`: each input asks whether its element has its value."""

    element: torch.Tensor
    value: torch.Tensor

    def __init__(self, part: OneHot) -> None:
        super().__init__()
        space: Any = part.leaf.space
        sizes = np.asarray(space.n if isinstance(space, spaces.Discrete) else space.nvec).reshape(-1)
        starts = np.broadcast_to(np.asarray(space.start).reshape(-1), sizes.shape)
        values = [np.arange(n, dtype=np.int64) + int(start) for n, start in zip(sizes, starts, strict=True)]
        self.num_elements = len(sizes)
        self.register_buffer("element", torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)))
        self.register_buffer("value", torch.from_numpy(np.concatenate(values)))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        elements = values.reshape(-1, self.num_elements).to(torch.int64)
        asked = elements.expand(-1, len(self.value)) if self.num_elements == 1 else elements[:, self.element]
        return torch.eq(asked, self.value).to(torch.float32)


class _IndexTensors(nn.Module):
    """Turns choices [B, *shape] into indices from 0, of the same shape."""

    start: torch.Tensor

    def __init__(self, space: Any) -> None:
        super().__init__()
        self.register_buffer("start", torch.from_numpy(np.array(space.start, np.int64)))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(torch.int64) - self.start


class InputTensors(nn.Module):
    """Turns the leaves of raw observations into vectors, choices and images: `Parts`."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self._vectors, self._choices = [], []
        self._images = inputs.images
        self.parts = nn.ModuleList()  # so that their constants are found
        for _, part in inputs.vector_leaves:
            if part.width:
                self._vectors.append((part.leaf.name, _vector(part)))
        for choice in inputs.index_leaves:
            self._choices.append((choice.leaf.name, _IndexTensors(choice.leaf.space)))
        self.parts.extend(module for _, module in (*self._vectors, *self._choices))

    def forward(self, observed: Leaves) -> Parts:
        """Converts leaves [B, *shape]: see `Parts`."""
        rows = next(iter(observed.values())).shape[0]
        vectors = [convert(observed[name]) for name, convert in self._vectors]
        choices = [convert(observed[name]).reshape(rows, -1) for name, convert in self._choices]
        images = []
        for image in self._images:
            pixels = observed[image.leaf.name].to(torch.float32)
            pixels = pixels if image.is_channels_first else pixels.permute(0, 3, 1, 2)
            images.append((pixels - image.low) * image.scale)
        return (
            torch.cat(vectors, dim=1) if vectors else torch.zeros((rows, 0)),
            torch.cat(choices, dim=1) if choices else torch.zeros((rows, 0), dtype=torch.int64),
            images,
        )


class _BitTensors(nn.Module):
    """Of `Bits`."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values.flatten(1).to(torch.float32)


def _vector(part: Numbers | OneHot | Bits) -> nn.Module:
    if isinstance(part, Bits):
        return _BitTensors()
    return _NumberTensors(part) if isinstance(part, Numbers) else _OneHotTensors(part)


class StructuredTensors(nn.Module):
    """Turns the leaves of raw observations into what a network of the user's own takes: see `Structured`."""

    def __init__(self, inputs: Inputs, space: gymnasium.Space[Any]) -> None:
        super().__init__()
        self._space, self._images = space, {image.leaf.name for image in inputs.images}
        self._converted: dict[str, nn.Module] = {}
        for _, part in inputs.vector_leaves:
            if isinstance(part, Numbers):
                self._converted[part.leaf.name] = _NumberTensors(part)
        for leaf in leaves(space):
            if isinstance(leaf.space, spaces.Discrete | spaces.MultiDiscrete):
                self._converted[leaf.name] = _IndexTensors(leaf.space)
        self.parts = nn.ModuleList(self._converted.values())  # so that their constants are found

    def forward(self, observed: Leaves) -> Any:
        """Converts leaves [B, *shape]."""
        return self._made(self._space, (), observed, next(iter(observed.values())).shape[0])

    def _made(self, space: gymnasium.Space[Any], path: tuple[str, ...], observed: Leaves, rows: int) -> Any:
        """Returns the part that `path` leads to; None if nothing of it is seen."""
        inner = parts(space)
        if inner is None:
            leaf = Leaf(path, space)
            return None if path == (MASK,) else self._leaf(leaf, observed.get(leaf.name), rows)
        found = {name: self._made(part, (*path, name), observed, rows) for name, part in inner.items()}
        made = {name: part for name, part in found.items() if part is not None}
        if not made:
            return None
        return tuple(made.values()) if isinstance(space, spaces.Tuple) else made

    def _leaf(self, leaf: Leaf, values: torch.Tensor | None, rows: int) -> torch.Tensor:
        if values is None:  # it has no elements
            is_choice = isinstance(leaf.space, spaces.Discrete | spaces.MultiDiscrete)
            return torch.zeros((rows, *leaf.shape), dtype=torch.int64 if is_choice else torch.float32)
        if leaf.name in self._images:
            return values if leaf.dtype == np.uint8 else values.to(torch.float32)
        if leaf.name in self._converted:
            converted: torch.Tensor = self._converted[leaf.name](values)
            return converted.reshape(-1, *leaf.shape)
        return values.to(torch.float32)
