"""Tells environments which share of the run is done, where they have `set_progress(fraction)`.

What an environment makes of it must follow from the fraction alone: then a replay, which tells an environment the same
fractions before the same steps, leads to the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium

from dppo.envs.simulators import Simulator

METHOD = "set_progress"
BEFORE_RESET = -1
"""The key of a plan for the fraction that holds when the episode begins."""


def teller(env: Any) -> Callable[[float], object] | None:
    """Returns `set_progress` of an environment, a simulator of agents or a vector form: that of the outermost wrapper
    that has it; None: nothing has it.
    """
    if isinstance(env, gymnasium.Env):
        found = env.get_wrapper_attr(METHOD) if env.has_wrapper_attr(METHOD) else None
        if found is None and isinstance(env.unwrapped, Simulator):
            return teller(env.unwrapped.made)
    else:
        base = getattr(env, "unwrapped", env)
        found = getattr(env, METHOD, None) or getattr(base, METHOD, None)
        if found is None and isinstance(base, gymnasium.vector.SyncVectorEnv):
            asking = [inner for one in base.envs if (inner := teller(one)) is not None]
            return (lambda fraction: [inner(fraction) for inner in asking]) if asking else None
    return found if callable(found) else None


def tell(env: Any, fraction: float) -> None:
    """Tells one environment, if it asks."""
    if (told := teller(env)) is not None:
        told(fraction)


class Curriculum:
    """What the environments of a list have been told.

    Args:
      envs: environments, simulators or vector forms; one that is made anew takes the place of the one before.
    """

    def __init__(self, envs: list[Any]) -> None:
        self._envs = envs
        self._told: list[float | None] = [None] * len(envs)
        self._plans: dict[int, Mapping[int, float]] = {}

    def tell(self, fraction: float) -> None:
        """Tells all environments that this share of the run, in [0, 1], is done."""
        for index in range(len(self._envs)):
            self.tell_one(index, fraction)

    def tell_one(self, index: int, fraction: float) -> None:
        self._told[index] = fraction
        try:
            tell(self._envs[index], fraction)
        except Exception as error:
            error.add_note(f"raised by {METHOD}({fraction:g})")
            raise

    def tell_again(self, index: int) -> None:
        """Tells an environment that was made anew what the one before knew."""
        if (fraction := self._told[index]) is not None:
            self.tell_one(index, fraction)

    def plan(self, plans: Sequence[Mapping[int, float]]) -> None:
        """Takes in what the next replay tells each environment: the number of an action -> the fraction told before it;
        `BEFORE_RESET` -> the one told before the episode begins.
        """
        self._plans = dict(enumerate(plans))

    def take_plan(self, index: int) -> Mapping[int, float]:
        """Returns the plan of environment `index` (of the batch), once."""
        return self._plans.pop(index, {})


def make_curriculum(envs: list[Any]) -> Curriculum | None:
    """Returns what tells these environments; None: none of them asks."""
    return Curriculum(envs) if any(teller(env) is not None for env in envs) else None
