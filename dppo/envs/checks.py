"""Checks what environments return: NumPy would broadcast a wrong shape, and cast a wrong type, silently.

The check of a correct return costs a third of a microsecond.
"""

from __future__ import annotations

import reprlib
from typing import Any

import numpy as np

_NUMBERS = frozenset({float, int, np.float64, np.float32, np.int64, np.int32})
_TRUTHS = frozenset({bool, np.bool_})
_REPAIR = "repair the environment, or put a wrapper around it"


class Returned:
    """The checks of what environments of one observation space return.

    Args:
      shape, dtype: shape and type of an observation.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype

    def by_reset(self, result: Any) -> np.ndarray:
        """Returns a copy of the observation that reset() has returned."""
        if not (isinstance(result, tuple | list) and len(result) == 2 and isinstance(result[1], dict)):
            raise ValueError(f"reset() returned {show(result)}; expected (observation, info), info a dict: {_REPAIR}")
        return np.array(self.observation(result[0]), self.dtype)

    def by_step(self, result: Any) -> tuple[np.ndarray, float, bool, bool]:
        """Returns observation, reward, terminated, truncated. The observation may be the environment's own memory."""
        try:
            observation, reward, terminated, truncated, info = result
        except (TypeError, ValueError):
            observation, reward, terminated, truncated, info = five(result)
        if (
            observation.__class__ is not np.ndarray
            or observation.dtype is not self.dtype
            or observation.shape != self.shape
        ):
            observation = self.observation(observation)
        if reward.__class__ not in _NUMBERS:
            reward = _number(reward)
        if terminated.__class__ not in _TRUTHS or truncated.__class__ not in _TRUTHS:
            terminated, truncated = _truth("terminated", terminated), _truth("truncated", truncated)
        if info.__class__ is not dict and not isinstance(info, dict):
            raise ValueError(f"step() returned the info {show(info)}; expected a dict: {_REPAIR}")
        return observation, reward, terminated, truncated

    def observation(self, value: Any) -> np.ndarray:
        """Returns an observation as an array of the right shape, whose type casts to the right one without loss."""
        array = _array("an observation", value)
        if array.shape != self.shape:
            raise ValueError(
                f"an observation has shape {array.shape}, but its observation_space says {self.shape}: {_REPAIR}"
                " (gymnasium.wrappers.ReshapeObservation)"
            )
        if array.dtype != self.dtype and not self._can_take(array):
            raise ValueError(
                f"an observation is of type {array.dtype}, but its observation_space says {self.dtype}, which does not"
                f" hold {show(value)}: {_REPAIR} (gymnasium.wrappers.DtypeObservation), or give the space that type"
            )
        return array

    def _can_take(self, array: np.ndarray) -> bool:
        """Returns whether the type takes `array`: a float type takes all numbers, another what it does not change."""
        kind, own = array.dtype.kind, self.dtype.kind
        if own == "f":
            return kind in "fiub"
        return own in "iub" and kind in "iub" and np.array_equal(array.astype(self.dtype), array)


def five(result: Any) -> Any:
    """Takes apart what a step returns, of one environment or of a vector form."""
    try:
        observation, reward, terminated, truncated, info = result
    except (TypeError, ValueError):
        raise ValueError(
            f"step() returned {show(result)}; expected (observation, reward, terminated, truncated, info): {_REPAIR}"
        ) from None
    if not isinstance(info, dict):
        raise ValueError(f"step() returned the info {show(info)}; expected a dict: {_REPAIR}")
    return observation, reward, terminated, truncated, info


def numbers(what: str, value: Any, count: int) -> np.ndarray:
    """Returns a copy of the numbers [count] that a vector form returned."""
    array = _array(what, value)
    if array.shape != (count,) or array.dtype.kind not in "fiub":
        raise ValueError(f"step() returned the {what} {show(value)}; expected {count} numbers: {_REPAIR}")
    return array.copy()


def truths(what: str, value: Any, count: int) -> np.ndarray:
    """Returns a copy of the truths [count] bool that a vector form returned."""
    array = _array(what, value)
    if array.shape != (count,) or not _are_truths(array):
        raise ValueError(f"step() returned the {what} {show(value)}; expected {count} of True or False: {_REPAIR}")
    return array.astype(bool)


def show(value: Any) -> str:
    """Describes a value in a few words for a message."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and type {value.dtype}"
    if isinstance(value, tuple):
        return f"{len(value)} value(s)" if len(value) != 2 else f"({show(value[0])}, {show(value[1])})"
    return f"{reprlib.repr(value)} ({type(value).__name__})"


def _number(reward: Any) -> float:
    array = _array("a reward", reward)
    if array.shape or array.dtype.kind not in "fiub":
        raise ValueError(f"step() returned the reward {show(reward)}; expected one number: {_REPAIR}")
    return float(array)


def _truth(what: str, value: Any) -> bool:
    array = _array(what, value)
    if array.shape or not _are_truths(array):
        raise ValueError(f"step() returned {what}={show(value)}; expected True or False: {_REPAIR}")
    return bool(array)


def _are_truths(array: np.ndarray) -> bool:
    """Returns whether all entries are truths, which may also be written as 0 and 1."""
    return array.dtype.kind == "b" or (array.dtype.kind in "iu" and bool(((array == 0) | (array == 1)).all()))


def _array(what: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except Exception as error:  # parts of unequal lengths; a tensor of another device, or that wants its gradient
        raise ValueError(f"{what} is {show(value)}, which is not one array ({error}): {_REPAIR}") from error
