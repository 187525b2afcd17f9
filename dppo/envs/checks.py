"""Checks what environments return: NumPy would broadcast a wrong shape, and cast a wrong type, silently."""

from __future__ import annotations

import reprlib
from typing import Any

import numpy as np

REPAIR = "repair the environment, or put a wrapper around it"


def five(result: Any) -> Any:
    """Takes apart what a step returns, of one environment or of a vector form."""
    try:
        observation, reward, terminated, truncated, info = result
    except (TypeError, ValueError):
        raise ValueError(
            f"step() returned {show(result)}; expected (observation, reward, terminated, truncated, info): {REPAIR}"
        ) from None
    if not isinstance(info, dict):
        raise ValueError(f"step() returned the info {show(info)}; expected a dict: {REPAIR}")
    return observation, reward, terminated, truncated, info


def numbers(what: str, value: Any, count: int) -> np.ndarray:
    """Returns a copy of the numbers [count] that a vector form returned."""
    array = as_array(what, value)
    if array.shape != (count,) or array.dtype.kind not in "fiub":
        raise ValueError(f"step() returned the {what} {show(value)}; expected {count} numbers: {REPAIR}")
    return array.copy()


def truths(what: str, value: Any, count: int) -> np.ndarray:
    """Returns a copy of the truths [count] bool that a vector form returned."""
    array = as_array(what, value)
    if array.shape != (count,) or not _are_truths(array):
        raise ValueError(f"step() returned the {what} {show(value)}; expected {count} of True or False: {REPAIR}")
    return array.astype(bool)


def number(reward: Any) -> float:
    """Returns a reward, which must be one number."""
    array = as_array("a reward", reward)
    if array.shape or array.dtype.kind not in "fiub":
        is_vector = array.ndim == 1 and len(array) > 1
        weighs = " that weighs the objectives (mo_gymnasium.wrappers.LinearReward)" if is_vector else ""
        raise ValueError(f"step() returned the reward {show(reward)}; expected one number: {REPAIR}{weighs}")
    return float(array)


def truth(what: str, value: Any) -> bool:
    """Returns whether an episode has ended."""
    array = as_array(what, value)
    if array.shape or not _are_truths(array):
        raise ValueError(f"step() returned {what}={show(value)}; expected True or False: {REPAIR}")
    return bool(array)


def show(value: Any) -> str:
    """Describes a value in a few words for a message."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and type {value.dtype}"
    if isinstance(value, tuple):
        return f"{len(value)} value(s)" if len(value) != 2 else f"({show(value[0])}, {show(value[1])})"
    return f"{reprlib.repr(value)} ({type(value).__name__})"


def as_array(what: str, value: Any) -> np.ndarray:
    """Returns a value as an array. Raises ValueError, which names it as `what`, if it is none."""
    try:
        return np.asarray(value)
    except Exception as error:  # parts of unequal lengths; a tensor of another device, or that wants its gradient
        raise ValueError(f"{what} is {show(value)}, which is not one array ({error}): {REPAIR}") from error


def _are_truths(array: np.ndarray) -> bool:
    """Returns whether all entries are truths, which may also be written as 0 and 1."""
    return array.dtype.kind == "b" or (array.dtype.kind in "iu" and bool(((array == 0) | (array == 1)).all()))
