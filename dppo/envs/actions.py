"""Gives each environment its action in the form of its own action space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from dppo.envs.leaves import single


def make_splitter(space: gymnasium.Space[Any]) -> Callable[[np.ndarray], Sequence[Any]]:
    """Makes the function that takes an array [N, …] of actions apart into the N values of `space`: rows of a plain
    space; dicts and tuples of a Dict and a Tuple. They are copies, because an environment may write to its action.

    Spaces that cannot be acted in are refused where their distribution is made.
    """
    if isinstance(space, spaces.Dict):
        names = list(space.spaces)
        each = _of_fields(dict(space.spaces))
        return lambda actions: [dict(zip(names, values, strict=True)) for values in each(actions)]
    if isinstance(space, spaces.Tuple):
        each = _of_fields({str(i): part for i, part in enumerate(space.spaces)})
        return lambda actions: list(each(actions))
    if not space.shape and not isinstance(space, spaces.Discrete):
        return lambda actions: [single(space, action) for action in actions]
    return _rows


def _of_fields(inner: dict[str, gymnasium.Space[Any]]) -> Callable[[np.ndarray], Any]:
    """Makes the function from structured actions [N] to N tuples, with a value of each part."""
    splitters = [(name, make_splitter(part)) for name, part in inner.items()]
    return lambda actions: zip(*[split(actions[name]) for name, split in splitters], strict=True)


def _rows(actions: np.ndarray) -> Any:
    """Returns N rows: numbers, or arrays that nobody else has."""
    return actions.copy() if actions.ndim > 1 else actions
