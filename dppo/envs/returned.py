"""Checks what reset and step of environments return. A correct return of a step costs a third of a microsecond."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from dppo.envs.checks import REPAIR, five, number, show, truth
from dppo.envs.leaves import array_type
from dppo.envs.observations import make_reader

_NUMBERS = frozenset({float, int, np.float64, np.float32, np.int64, np.int32})
_TRUTHS = frozenset({bool, np.bool_})


class Returned:
    """The checks of what environments of one observation space return.

    Args:
      space: the observation space of one environment.
      envs: the global numbers of a vector form's environments, whose observations come in one batch; None: one
        environment at a time.
    """

    def __init__(self, space: gymnasium.Space[Any], envs: range | None = None) -> None:
        shape, self.dtype = array_type(space)
        self.shape = shape if envs is None else (len(envs), *shape)
        self.observation = make_reader(space, envs)
        """Checks an observation. Returns it as an array, which may be the environment's own memory, or be overwritten
        by the next call."""
        # Only a Box is taken as it is: the others have a range to be checked, or parts.
        self._as_is = self.dtype if isinstance(space, gymnasium.spaces.Box) else None

    def by_reset(self, result: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Returns a copy of the observation that reset() has returned, and the info."""
        if not (isinstance(result, tuple | list) and len(result) == 2 and isinstance(result[1], dict)):
            raise ValueError(f"reset() returned {show(result)}; expected (observation, info), info a dict: {REPAIR}")
        return copied(self.observation(result[0]), self.dtype), result[1]

    def by_step(self, result: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Returns observation (as `observation` does), reward, terminated, truncated, info."""
        try:
            observation, reward, terminated, truncated, info = result
        except (TypeError, ValueError):
            observation, reward, terminated, truncated, info = five(result)
        if (
            observation.__class__ is not np.ndarray
            or observation.dtype is not self._as_is
            or observation.shape != self.shape
        ):
            observation = self.observation(observation)
        if reward.__class__ is not float and reward.__class__ not in _NUMBERS:
            reward = number(reward)
        if terminated is False and truncated is False:
            pass  # nearly always, and quicker than to look up their types
        elif terminated.__class__ not in _TRUTHS or truncated.__class__ not in _TRUTHS:
            terminated, truncated = truth("terminated", terminated), truth("truncated", truncated)
        if info.__class__ is not dict and not isinstance(info, dict):
            raise ValueError(f"step() returned the info {show(info)}; expected a dict: {REPAIR}")
        return observation, reward, terminated, truncated, info


def copied(values: Any, dtype: np.dtype[Any] | None = None) -> np.ndarray:
    """Returns a copy of checked values, in which the bytes between the fields of a structured type are zero."""
    if dtype is None:
        dtype = values.dtype
    if dtype.names is None:
        return np.array(values, dtype)
    copy = np.zeros(values.shape, dtype)
    copy[...] = values
    return copy
