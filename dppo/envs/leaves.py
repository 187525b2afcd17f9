"""The leaves of a space, and the one array type that holds a value of it.

A plain space (Box, Discrete, MultiDiscrete, MultiBinary) is one leaf: N of its values are a plain array [N, *shape]. A
Dict or a Tuple is a tree of leaves: N of its values are one structured array [N], whose fields are named like the keys
(of a Tuple: "0", "1", …) and nest as the space does. So whatever handles rows of observations or actions handles both.

Source: the structured array per space is PufferLib's idea (Suarez 2024).
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dppo.seams import ArrayType as ArrayType

if TYPE_CHECKING:  # what reads run directories needs no Gymnasium, whose import takes long
    import gymnasium

MOST_VALUES = 256
"""The most values of an element of a Box of integers that is an action: a policy has a logit for each."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A plain space within a space."""

    path: tuple[str, ...]
    """The fields that lead to it; () if the space is this leaf."""
    space: gymnasium.Space[Any]

    @property
    def name(self) -> str:
        """The path in one word: `camera/left`; "" if the space is this leaf."""
        return "/".join(self.path)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one value."""
        assert self.space.shape is not None
        return self.space.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.space.dtype)

    def of(self, array: np.ndarray) -> np.ndarray:
        """Returns this leaf's part of an array of values of the whole space: a view, [..., *shape]."""
        for name in self.path:
            array = array[name]
        return array


def parts(space: gymnasium.Space[Any]) -> Mapping[str, gymnasium.Space[Any]] | None:
    """Returns {field: space} of a Dict or a Tuple; None for a plain space.

    Raises:
      ValueError: the space is of another kind, has no part, or has a key that is no text.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return None
    if isinstance(space, spaces.Dict):
        found: dict[Any, gymnasium.Space[Any]] = dict(space.spaces)
    elif isinstance(space, spaces.Tuple):
        found = {str(i): part for i, part in enumerate(space.spaces)}
    else:
        raise ValueError(f"{space} is not of Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple")
    if not found:
        raise ValueError(f"{space} has no part")
    for name in found:
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(f"{space} has the key {name!r}: keys must be texts, not empty, and without '/'")
    return found


def leaves(space: gymnasium.Space[Any]) -> tuple[Leaf, ...]:
    """Returns the leaves of a space, in its order. Raises ValueError as `parts` does."""
    return tuple(_leaves(space, ()))


def _leaves(space: gymnasium.Space[Any], path: tuple[str, ...]) -> Iterator[Leaf]:
    inner = parts(space)
    if inner is None:
        yield Leaf(path, space)
        return
    for name, part in inner.items():
        yield from _leaves(part, (*path, name))


def array_type(space: gymnasium.Space[Any]) -> ArrayType:
    """Returns shape and type of one value as one array: a plain space's own; () and a structured type of a Dict or
    Tuple. Fields are aligned, so that each leaf is an ordinary array for BLAS and torch.
    """
    inner = parts(space)
    if inner is None:
        assert space.shape is not None
        return space.shape, np.dtype(space.dtype)
    fields = [(name, *reversed(array_type(part))) for name, part in inner.items()]
    return (), np.dtype(fields, align=True)


def range_of(space: gymnasium.Space[Any]) -> Any:
    """Returns the least and the greatest value of a leaf, for each element; None for a Box, whose bounds many
    environments overstep.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return int(space.start), int(space.start) + int(space.n) - 1  # int8 may not hold start + n
    if isinstance(space, spaces.MultiDiscrete):
        start, n = space.start.astype(np.int64), space.nvec.astype(np.int64)
        return start, start + n - 1
    return (0, 1) if isinstance(space, spaces.MultiBinary) else None


def to_value(space: gymnasium.Space[Any], row: Any) -> Any:
    """Returns a value of `space` as an environment has it, from one element of an array: dicts and tuples of copies. A
    Discrete is a NumPy integer; another space of shape () has an array of shape ().
    """
    inner = parts(space)
    if inner is None:
        return row.copy() if isinstance(row, np.ndarray) and row.shape else single(space, row)
    values = {name: to_value(part, row[name]) for name, part in inner.items()}
    return tuple(values.values()) if hasattr(space, "spaces") and isinstance(space.spaces, tuple) else values


def single(space: gymnasium.Space[Any], number: Any) -> Any:
    """Returns a value of a plain space of shape () as Gymnasium has it, from a NumPy number or an array of shape ()."""
    from gymnasium import spaces

    return number[()] if isinstance(space, spaces.Discrete) else np.array(number)


def to_array(space: gymnasium.Space[Any], values: Any) -> tuple[np.ndarray, bool]:
    """Returns observations of `space` as one array [B, ...], and whether it was one only.

    Args:
      values: one observation, a batch of them in Gymnasium's form (dicts and tuples of arrays [B, ...]), or such an
        array.

    Raises:
      ValueError: they have other parts or shapes, are no numbers, or none of a leaf's choices.
    """
    if isinstance(values, np.ndarray | np.void) and values.dtype.names is not None:
        array = np.asarray(values)
        return array.reshape(-1), array.ndim == 0
    named: dict[str, np.ndarray] = {}
    are_single = set()
    for leaf in leaves(space):
        array = np.array(_part(values, leaf.path, space), order="C")  # torch takes no views that run backwards
        if array.shape != leaf.shape and (not array.ndim or array.shape[1:] != leaf.shape):
            of = f" in {leaf.name}" if leaf.name else ""
            raise ValueError(
                f"expected an observation {leaf.shape} or a batch [B, *{leaf.shape}]{of}, got {array.shape}"
            )
        _require_values(leaf, array)
        are_single.add(array.shape == leaf.shape)
        named[leaf.name] = array if array.shape != leaf.shape else array[None]
    if len(are_single) > 1:
        raise ValueError(f"some parts are one value, others a batch: {space}")
    return from_leaves(named), are_single.pop()


def _require_values(leaf: Leaf, array: np.ndarray) -> None:
    """Raises ValueError where `array` holds what is no number, or no choice of the leaf."""
    bounds, of = range_of(leaf.space), f" of {leaf.name}" if leaf.name else ""
    if array.dtype.kind not in ("fiub" if bounds is None else "iub"):
        raise ValueError(f"an observation{of} is of type {array.dtype}, and belongs to {leaf.space}")
    if bounds is not None and not ((array >= bounds[0]) & (array <= bounds[1])).all():
        raise ValueError(f"an observation{of} is not within {leaf.space}: {reprlib.repr(array.tolist())}")


def _part(values: Any, path: tuple[str, ...], space: gymnasium.Space[Any]) -> Any:
    for name in path:
        try:
            values = values[name] if isinstance(values, Mapping) else values[int(name)]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ValueError(f"{'/'.join(path)} is missing: expected a value of {space}") from error
    return values


def as_leaves(array: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the leaves of an array of values, by name, as views: {"": array} of a plain one."""
    if array.dtype.names is None:
        return {"": array}
    return {
        f"{name}/{inner}" if inner else name: leaf
        for name in array.dtype.names
        for inner, leaf in as_leaves(array[name]).items()
    }


def from_leaves(named: Mapping[str, np.ndarray], num_axes: int = 1) -> np.ndarray:
    """Reverses `as_leaves`, with the fields in the order of `named`; the arrays are copied.

    Args:
      num_axes: the number of first axes that all leaves share.

    Raises:
      ValueError: the leaves do not make one array: one lies within another, or their first axes differ.
    """
    if "" in named:
        if len(named) > 1:
            raise ValueError(f"one leaf is expected: {', '.join(sorted(named))}")
        return named[""]
    grouped: dict[str, dict[str, np.ndarray]] = {}
    for name, leaf in named.items():
        field, _, inner = name.partition("/")
        grouped.setdefault(field, {})[inner] = leaf
    fields = {field: from_leaves(inner, num_axes) for field, inner in grouped.items()}
    shapes = {leaf.shape[:num_axes] for leaf in fields.values()}
    if len(shapes) != 1:
        raise ValueError(f"the leaves {', '.join(sorted(named))} are not of one length")
    dtype = np.dtype([(name, leaf.dtype, leaf.shape[num_axes:]) for name, leaf in fields.items()], align=True)
    array = np.zeros(shapes.pop(), dtype)
    for name, leaf in fields.items():
        array[name] = leaf
    return array


def are_equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Returns whether two arrays hold the same values of the same space. The order of the fields does not count, nor
    what lies between them.
    """
    ours, others = as_leaves(one), as_leaves(other)
    return ours.keys() == others.keys() and all(np.array_equal(leaf, others[name]) for name, leaf in ours.items())


def described(array: np.ndarray) -> str:
    """Returns a phrase on values [B, ...] for a message: types, shapes and spans of their leaves."""
    leaf = "{name}{values.dtype} {shape} of {span}"
    return ", ".join(
        leaf.format(
            name=f"{name} " if name else "",
            values=values,
            shape=list(values.shape[1:]),
            span=f"{values.min():.4g} to {values.max():.4g}" if values.size else "nothing",
        )
        for name, values in as_leaves(array).items()
    )
