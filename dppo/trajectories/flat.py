"""Splits vectors, and the leaves of Dict and Tuple, into the columns of a table, in which each cell is one number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np

from dppo.envs.leaves import as_leaves
from dppo.errors import UsageError

C = TypeVar("C")


def singles(name: str, values: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Returns (name, array) of each leaf: obs_camera_left for the leaf camera/left of observations `obs`."""
    return [(f"{name}_{leaf.replace('/', '_')}" if leaf else name, array) for leaf, array in as_leaves(values).items()]


def flat_columns(name: str, values: Any) -> list[tuple[str, Any]]:
    """Splits values [L, ...], masked or not, into columns [L]: NAME if each is one number, else NAME_0, NAME_1, …, in C
    order.
    """
    if values.ndim == 1:
        return [(name, values)]
    flat = values.reshape(len(values), int(np.prod(values.shape[1:])))
    return [(f"{name}_{i}", flat[:, i]) for i in range(flat.shape[1])]


def unique(columns: Iterable[tuple[str, C]]) -> dict[str, C]:
    """Returns {name: column}. Raises UsageError where two columns would have one name."""
    found: dict[str, C] = {}
    for name, column in columns:
        if name in found:
            raise UsageError(
                f"two columns would be called {name}, because of how the keys of a Dict are named: rename one, or"
                " export --to minari, which holds arrays"
            )
        found[name] = column
    return found
