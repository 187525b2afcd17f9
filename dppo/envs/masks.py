"""Masks of legal actions: where environments keep them, in which forms, and as one row of truths.

A mask has one entry per logit of the discrete parts of the action space, in the order of its leaves. A Discrete has n
of them, a MultiDiscrete the sum of its nvec, a Box of integers as many as its elements have values; a Box of floats and
a MultiBinary have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from dppo.envs.checks import REPAIR, as_array, show
from dppo.envs.leaves import MOST_VALUES

KEY, METHOD = "action_mask", "action_masks"
PROBE_SEED = 0
"""The seed of a reset that only tells whether the info has masks. No episode begins with it."""


class MaskLayout:
    """The places in a mask of an action space's discrete parts."""

    def __init__(self, space: gymnasium.Space[Any]) -> None:
        self._space = space
        self._parts: list[tuple[str, int, int]] = []  # name, first place, end
        end = 0
        for name, n in _discrete_parts(space, ""):
            self._parts.append((name, end, end + n))
            end += n
        self.size = end

    def write(self, mask: Any, out: np.ndarray, what: str) -> None:
        """Writes a mask into `out` [size] bool.

        Args:
          mask: a vector of 0 and 1; of a MultiDiscrete also a tuple with a vector for each element, of a Dict or Tuple
            a dict or tuple with a mask for each part, where what is missing or None has legal choices only.
          what: a name for messages.

        Raises:
          ValueError: it has another form, or leaves a part without a legal action.
        """
        if mask.__class__ is not np.ndarray or mask.dtype.char not in "?bB" or mask.shape != (self.size,):
            mask = _flat(self._space, mask, what)
        data = mask.tobytes()  # to search bytes takes a tenth of the time that NumPy takes for a few numbers
        if data.count(0) + data.count(1) != len(data):
            _refuse_entries(what, mask)
        for name, first, end in self._parts:
            if data.find(1, first, end) < 0:
                of = f" in {name}" if name else ""
                raise ValueError(f"{what} leaves no legal action{of}: {REPAIR}, or let the episode end")
        out[:] = mask


class Masks:
    """The masks of N environments, which all keep them where the first of them does: in the info of reset and step, in
    a method `action_masks`, or in an observation's leaf `action_mask`, in this order.

    There are two arrays of masks, which take turns.
    """

    def __init__(self, layout: MaskLayout, observation_space: gymnasium.Space[Any], num_envs: int) -> None:
        self._layout, self.size = layout, layout.size
        self._in_observations = isinstance(observation_space, spaces.Dict) and KEY in observation_space.spaces
        self._source, self._num_envs = "", num_envs
        self.rows, self._others = np.empty((2, 0, 0), bool)  # there is nothing to hold before the masks are found

    @property
    def is_found(self) -> bool:
        return bool(self._source)

    def are_certain(self, env: gymnasium.Env[Any, Any] | None) -> bool:
        """Returns whether it is known, without a reset, that environments like `env` have masks."""
        return self.is_found or self._in_observations or _has_method(env)

    def find(self, env: gymnasium.Env[Any, Any] | None, info: Mapping[str, Any]) -> bool:
        """Finds the place where an environment keeps its mask. Returns whether there is one.

        Args:
          env: the environment; None: a vector form.
          info: the info of its first reset.
        """
        if KEY in info:
            self._source = "info"
        elif _has_method(env):
            self._source = METHOD
        elif self._in_observations:
            self._source = "leaf"
        if self.is_found:
            self.rows, self._others = np.ones((2, self._num_envs, self.size), bool)
        return self.is_found

    def turn(self) -> None:
        """Makes room for the masks of the next row."""
        self.rows, self._others = self._others, self.rows

    def read(
        self, index: int, env: gymnasium.Env[Any, Any] | None, observation: Any, info: Mapping[str, Any], call: str
    ) -> None:
        """Reads the mask of environment `index` after its reset or its step, whichever `call` is."""
        if self._source == "info":
            what = f"{call}()'s info[{KEY!r}]"
            if KEY not in info:
                raise ValueError(f"{what} is missing, and the first reset() gave it: {REPAIR}, so that it always does")
            mask = info[KEY]
        elif self._source == METHOD:
            assert env is not None
            what, mask = f"{METHOD}()", env.get_wrapper_attr(METHOD)()
        else:
            what, mask = f"an observation's leaf {KEY!r}", observation[KEY]
        self._layout.write(mask, self.rows[index], what)

    def of(self, env: gymnasium.Env[Any, Any], observation: Any, info: Mapping[str, Any]) -> np.ndarray | None:
        """Returns the mask [size] after a reset or a step of the one environment; None if it has none."""
        if not self.size or not (self.is_found or self.find(env, info)):
            return None
        self.read(0, env, observation, info, "step")
        return self.rows[0]

    def permit(self, index: int) -> None:
        """Makes all actions of an environment legal, because the next one does not count."""
        self.rows[index] = True


def refuse_late(info: Mapping[str, Any]) -> None:
    """Raises ValueError if the info of a step has a mask, though that of the first reset had none."""
    if KEY in info:
        raise ValueError(f"step()'s info has {KEY!r}, and that of the first reset() had none: give it in both")


def _has_method(env: gymnasium.Env[Any, Any] | None) -> bool:
    return env is not None and env.has_wrapper_attr(METHOD) and callable(env.get_wrapper_attr(METHOD))


def _discrete_parts(space: gymnasium.Space[Any], name: str) -> list[tuple[str, int]]:
    """Returns (name, number of choices) of each discrete part of a space of actions, in the order of its leaves."""
    choices = _choices(space)
    if choices is not None:
        part = f"part {name!r}" if name else ""
        of = f" of {part}" if part else ""
        return [(f"element {list(at)}{of}" if at else part, int(n)) for at, n in np.ndenumerate(choices)]
    prefix = f"{name}/" if name else ""
    inner = _inner(space) or {}
    return [found for key, part in inner.items() for found in _discrete_parts(part, f"{prefix}{key}")]


def _choices(space: gymnasium.Space[Any]) -> np.ndarray | None:
    """Returns the number of choices of each element of a discrete space; None for another one."""
    if isinstance(space, spaces.Discrete):
        return np.asarray(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return np.asarray(space.nvec)
    if isinstance(space, spaces.Box) and not np.issubdtype(space.dtype, np.floating):
        numbers = np.asarray(space.high.astype(object) - space.low.astype(object) + 1)
        return numbers if numbers.size and numbers.max() <= MOST_VALUES else None
    return None


def _inner(space: gymnasium.Space[Any]) -> dict[str, gymnasium.Space[Any]] | None:
    if isinstance(space, spaces.Dict):
        return dict(space.spaces)
    return {str(i): part for i, part in enumerate(space.spaces)} if isinstance(space, spaces.Tuple) else None


def _flat(space: gymnasium.Space[Any], mask: Any, what: str) -> np.ndarray:
    """Returns a mask of `space` as one vector of small integers."""
    size = sum(n for _, n in _discrete_parts(space, ""))
    if mask is None:
        return np.ones(size, np.int8)
    if isinstance(mask, np.ndarray) and (mask.ndim > 1 or mask.dtype == object):
        mask = list(mask)
    inner = _inner(space)
    if isinstance(mask, Mapping):
        if not isinstance(space, spaces.Dict) or mask.keys() - space.spaces.keys():
            raise ValueError(f"{what} is {show(mask)}, which has parts that the action space {space} lacks: {REPAIR}")
        of_parts = [_flat(part, mask.get(key), f"{what}[{key!r}]") for key, part in space.spaces.items()]
        return np.concatenate(of_parts)
    if isinstance(mask, tuple | list) and any(map(_is_vector, mask)):
        if isinstance(space, spaces.Tuple) and inner is not None and len(mask) == len(inner):
            pairs = zip(inner.items(), mask, strict=True)
            return np.concatenate([_flat(part, given, f"{what}[{key!r}]") for (key, part), given in pairs])
        choices = _choices(space)
        if choices is not None:
            return _by_element(choices, mask, what)
        raise ValueError(f"{what} is {show(mask)}, and the action space is {space}: {REPAIR}")
    return _vector(mask, size, what)


def _by_element(nvec: Any, mask: Any, what: str) -> np.ndarray:
    """Returns the masks of the elements of a space, which are nested like it, one behind the other."""
    if not np.ndim(nvec):
        return np.ones(int(nvec), np.int8) if mask is None else _vector(mask, int(nvec), what)
    if not hasattr(mask, "__len__") or len(mask) != len(nvec):
        raise ValueError(f"{what} is {show(mask)}; expected {len(nvec)} masks, one for each element: {REPAIR}")
    pairs = enumerate(zip(nvec, mask, strict=True))
    return np.concatenate([_by_element(n, given, f"{what}[{i}]") for i, (n, given) in pairs])


def _vector(mask: Any, size: int, what: str) -> np.ndarray:
    array = as_array(what, mask)
    if array.shape != (size,):
        raise ValueError(f"{what} has shape {array.shape}; expected ({size},), an entry for each choice: {REPAIR}")
    if array.dtype.kind not in "biuf" or not ((array == 0) | (array == 1)).all():
        _refuse_entries(what, array)
    return array.astype(np.int8)


def _refuse_entries(what: str, array: np.ndarray) -> None:
    wrong = [entry for entry in array.tolist() if entry not in (0, 1)]
    raise ValueError(f"{what} holds {show(wrong[0])}; expected 1 for legal and 0 for illegal actions: {REPAIR}")


def _is_vector(value: Any) -> bool:
    return value is None or isinstance(value, Mapping | tuple | list) or getattr(value, "ndim", 0) > 0
