"""Environments that save and load their own state: which do, and what has to be restored around them.

An environment does where it has `save_state(path)` and `load_state(path)`. A wrapper may have them, too, and then
answers for all that is in it. Of the wrappers outside of that, dppo knows some of Gymnasium's that have no state, or
one that follows from the length of the episode; all others may remember anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from dppo.envs.leaves import are_equal

_STATELESS = frozenset({
    "PassiveEnvChecker", "OrderEnforcing", "TimeLimit",
    "ClipAction", "RescaleAction", "ClipReward", "FlattenObservation", "DtypeObservation", "FilterObservation",
    "ReshapeObservation", "RescaleObservation", "ResizeObservation", "GrayscaleObservation",
})  # fmt: skip
"""Gymnasium's wrappers that remember nothing but what `load_state` restores."""


@dataclass(frozen=True)
class Start:
    """A saved state to begin from, instead of an episode's start.

    Args:
      folder: the files that the environment has written.
      observation: [*obs], what it observed then; None: further actions follow.
      mask: [M] bool, the legal actions then; None: there is none.
      length: steps of the episode until then.
    """

    folder: Path
    observation: np.ndarray | None
    mask: np.ndarray | None
    length: int


class States:
    """The states of N environments in one process.

    Args:
      envs: the environments; one that is made anew takes the place of the one before.
      read: checks an observation, and returns it as an array.
      are_repeatable: whether a seed and actions restore an episode.
    """

    def __init__(
        self, envs: list[gymnasium.Env[Any, Any]], read: Callable[[Any], np.ndarray], *, are_repeatable: bool
    ) -> None:
        self._envs, self._read = envs, read
        self._starts: dict[int, Start] = {}
        self.are_saved = are_repeatable and all(owner(env) is not None for env in envs)
        """Whether the environments save and load their states."""
        wrapper = obstacle(envs[0]) if are_repeatable else ""
        self.description = ", save their own states" if self.are_saved else ""
        """What is to be said of it in the log."""
        if wrapper:
            self.description = f"; replayed, because the wrapper {wrapper} has no save_state and load_state"

    def save(self, index: int, folder: Path) -> None:
        """Has an environment write its present state into the empty folder `folder`. Only if `are_saved`."""
        saver: Any = owner(self._envs[index])
        saver.save_state(folder)

    def load(self, index: int, start: Start) -> None:
        """Brings an environment to a saved state. The next replay goes on from there, instead of from a reset."""
        returned = load(self._envs[index], start)
        expected = start.observation
        if (
            returned is not None
            and expected is not None
            and not are_equal(np.array(self._read(returned), expected.dtype), expected)
        ):
            raise ValueError("load_state(path) has returned another observation than there was at save_state(path)")
        self._starts[index] = start

    def take_start(self, index: int) -> Start | None:
        """Returns the state that an environment has loaded since the last replay, if it has; once."""
        return self._starts.pop(index, None)


def owner(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any] | None:
    """Returns the part of a wrapped environment that saves and loads its state for the whole; None: there is none."""
    while not _has_methods(env):
        if not isinstance(env, gymnasium.Wrapper) or obstacle_of(env):
            return None
        env = env.env
    return env


def obstacle(env: gymnasium.Env[Any, Any]) -> str:
    """Returns the wrapper because of which an environment that saves its state is replayed; "" if there is none."""
    found = ""
    while isinstance(env, gymnasium.Wrapper) and not _has_methods(env):
        found, env = found or obstacle_of(env), env.env
    return found if _has_methods(env) else ""


def obstacle_of(wrapper: gymnasium.Wrapper[Any, Any, Any, Any]) -> str:
    """Returns the name of a wrapper that may have a state of its own; "" where that is known to be restored."""
    kind = type(wrapper)
    is_known = kind.__module__.startswith("gymnasium.wrappers.") and kind.__name__ in _STATELESS
    return "" if is_known else kind.__name__


def load(env: gymnasium.Env[Any, Any], start: Start) -> Any:
    """Brings an environment to `start`, without a reset. Returns what its load_state returns."""
    loader: Any = owner(env)
    if loader is None:
        raise ValueError("it has no load_state(path), and had one when its state was saved")
    returned = loader.load_state(start.folder)
    while env is not loader:
        wrapper: Any = env
        if isinstance(env, gymnasium.wrappers.TimeLimit):
            wrapper._elapsed_steps = start.length
        elif isinstance(env, gymnasium.wrappers.OrderEnforcing):
            wrapper._has_reset = True
        env = wrapper.env
    return returned


def _has_methods(env: gymnasium.Env[Any, Any]) -> bool:
    return all(callable(getattr(env, name, None)) for name in ("save_state", "load_state"))
