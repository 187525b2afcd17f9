"""Checks observations leaf by leaf, and gathers those of a Dict or a Tuple in one structured array.

NaN and infinity are not looked for here: the whole rollout at once is cheaper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from dppo.envs.checks import REPAIR, as_array, show
from dppo.envs.leaves import Leaf, array_type, parts, range_of

_WHOLE = frozenset({int, np.int64, np.int32})


def make_reader(space: gymnasium.Space[Any], envs: range | None = None) -> Callable[[Any], Any]:
    """Makes the function that checks an observation of `space`, and returns it as one array: perhaps the environment's
    own memory, perhaps memory that the next call overwrites.

    Args:
      envs: the global numbers of a vector form's environments, whose observations come in one batch; None: one
        observation at a time.
    """
    if parts(space) is None:
        return _leaf_reader(Leaf((), space), envs)
    shape, dtype = array_type(space)
    row = np.zeros(shape if envs is None else (len(envs), *shape), dtype)
    fill = _filler(space, row, (), envs)

    def read(value: Any) -> np.ndarray:
        fill(value)
        return row

    return read


def require_leaves(name: str, space: gymnasium.Space[Any]) -> None:
    """Raises ValueError, with the wrapper that helps, if a space of observations has other leaves than Box, Discrete,
    MultiDiscrete and MultiBinary.
    """
    found = _refused(space, ())
    if found is None:
        return
    path, why = found
    without = ""
    if len(path) == 1 and isinstance(space, spaces.Dict) and len(space.spaces) > 1:
        kept = [key for key in space.spaces if key != path[0]]
        without = f"gymnasium.wrappers.FilterObservation(env, {kept!r}), which leaves it out, or "
    leaf = f" in its leaf {'/'.join(path)!r}" if path else ""
    raise ValueError(
        f"{name} observes {space}, and{leaf} {why}: put {without}gymnasium.wrappers.TransformObservation(env, function,"
        " box) around it, with a function of yours to one array"
    )


def _refused(space: gymnasium.Space[Any], path: tuple[str, ...]) -> tuple[tuple[str, ...], str] | None:
    """Returns the first part that cannot be observed, and why; None if there is none."""
    try:
        inner = parts(space) or {}
    except ValueError as error:
        return path, str(error)
    found = (_refused(part, (*path, name)) for name, part in inner.items())
    return next((refused for refused in found if refused is not None), None)


def _filler(
    space: gymnasium.Space[Any], row: np.ndarray, path: tuple[str, ...], envs: range | None
) -> Callable[[Any], None]:
    """Makes the function that checks a value of `space`, which `path` leads to, and writes it into `row`."""
    inner = parts(space)
    if inner is None:
        read = _leaf_reader(Leaf(path, space), envs)

        def fill(value: Any) -> None:
            row[...] = read(value)

        return fill
    fillers = {name: _filler(part, row[name], (*path, name), envs) for name, part in inner.items()}
    what = _name(path)
    if isinstance(space, spaces.Dict):

        def fill_dict(value: Any) -> None:
            if value.__class__ is not dict and not isinstance(value, Mapping):
                raise ValueError(f"{what} is {show(value)}, but its observation_space says {space}: {REPAIR}")
            if value.keys() != fillers.keys():
                _refuse_keys(what, value, fillers)
            for name, fill in fillers.items():
                fill(value[name])

        return fill_dict
    each = list(fillers.values())

    def fill_tuple(value: Any) -> None:
        is_tuple = isinstance(value, tuple | list) or (isinstance(value, np.ndarray) and value.ndim > 0)
        if not is_tuple or len(value) != len(each):
            raise ValueError(
                f"{what} is {show(value)}, but its observation_space says {space}, a tuple of {len(each)}: {REPAIR}"
            )
        for fill, part in zip(each, value, strict=True):
            fill(part)

    return fill_tuple


def _refuse_keys(what: str, value: Mapping[Any, Any], names: Mapping[str, Any]) -> None:
    missing = [name for name in names if name not in value]
    surplus = [name for name in value if name not in names]
    told = [f"lacks {missing}"] * bool(missing) + [f"has {surplus}, which its observation_space lacks"] * bool(surplus)
    wrapper = "gymnasium.wrappers.FilterObservation" if surplus else "gymnasium.wrappers.TransformObservation"
    raise ValueError(f"{what} {' and '.join(told)}: {REPAIR} ({wrapper})")


def _leaf_reader(leaf: Leaf, envs: range | None) -> Callable[[Any], Any]:
    read = _LeafReader(leaf, envs)
    if envs is not None or not isinstance(leaf.space, spaces.Discrete):
        return read
    low, high = read.range

    def read_one(value: Any) -> Any:
        return value if value.__class__ in _WHOLE and low <= value <= high else read(value)

    return read_one


class _LeafReader:
    """Checks the values of one leaf."""

    def __init__(self, leaf: Leaf, envs: range | None) -> None:
        self._shape, self._dtype, self._what = leaf.shape, leaf.dtype, _name(leaf.path)
        self._envs = envs
        if envs is not None:
            self._shape = (len(envs), *self._shape)
        self.range = range_of(leaf.space)

    def __call__(self, value: Any) -> np.ndarray:
        """Returns a value as an array of the right shape, whose type casts to the right one without loss."""
        array = as_array(self._what, value)
        if array.shape != self._shape:
            raise ValueError(
                f"{self._what} has shape {array.shape}, but its observation_space says {self._shape}: {REPAIR}"
                " (gymnasium.wrappers.ReshapeObservation)"
            )
        if array.dtype != self._dtype and not self._can_take(array):
            raise ValueError(
                f"{self._what} is of type {array.dtype}, but its observation_space says {self._dtype}, which does not"
                f" hold {show(value)}: {REPAIR} (gymnasium.wrappers.DtypeObservation), or give the space that type"
            )
        if self.range is not None:
            self._check_range(array)
        return array

    def _can_take(self, array: np.ndarray) -> bool:
        """Returns whether the type takes `array`: a float type takes all numbers, another what it does not change."""
        kind, own = array.dtype.kind, self._dtype.kind
        if own == "f":
            return kind in "fiub"
        return own in "iub" and kind in "iub" and np.array_equal(array.astype(self._dtype), array)

    def _check_range(self, array: np.ndarray) -> None:
        low, high = self.range
        outside = (array < low) | (array > high)
        if not outside.any():
            return
        place = tuple(np.argwhere(outside)[0].tolist())
        least, most = (np.broadcast_to(bound, array.shape)[place] for bound in (low, high))
        env = "" if self._envs is None else f" of environment {self._envs[place[0]]}"
        element = place[self._envs is not None :]
        raise ValueError(
            f"{f'element {list(element)} of ' if element else ''}{self._what}{env} is {array[place]}, but its"
            f" observation_space says {least}..{most}: {REPAIR}, or give the space the n and the start that it has"
        )


def _name(path: tuple[str, ...]) -> str:
    return f"an observation's leaf {'/'.join(path)!r}" if path else "an observation"
