"""Measures the seconds that environments spend in step and in reset, and those in which they wait for their worker."""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter
from typing import Any, NamedTuple

SLOW_S = 1e-4
"""Seconds of a step from which on each environment is timed by itself. To time all steps of CartPole would cost 1%."""


class Seconds(NamedTuple):
    """What a worker's environments have taken since the last report."""

    steps: int
    step_s: float
    """Steps of single environments, and their seconds."""
    slowest_s: float
    slowest_env: int
    """The longest mean step of an environment, and its global number; -1: the steps were too short to tell."""
    resets: int
    reset_s: float
    longest_reset_s: float
    waiting_s: float = 0.0
    """Between two rows: the worker acts, learns or waits."""


class EnvClock:
    """The clock of N environments that are stepped one after another.

    Args:
      first_env: global number of the first environment.
      agents: how many of the global numbers each environment has.
    """

    def __init__(self, first_env: int, num_envs: int, agents: int = 1) -> None:
        self._first_env, self._num_envs, self._agents = first_env, num_envs, agents
        self.times_each = False
        """Whether `end_step` is to be called for each environment of the row."""
        self.mark = 0.0
        """The time at which the present step began, where each environment is timed."""
        self._ended = 0.0  # when the last row was over; 0: there was none
        self._clear()

    def _clear(self) -> None:
        self._rows = self._rows_of_each = self._resets = 0
        self._step_s = self.reset_s = self._longest_reset_s = self._waiting_s = 0.0
        self._of_each = [0.0] * self._num_envs

    def end_step(self, index: int) -> None:
        """Notes that an environment has been stepped, before a reset of it."""
        now = perf_counter()
        self._of_each[index] += now - self.mark
        self.mark = now

    def end_reset(self, seconds: float) -> None:
        """Notes that an environment was reset."""
        self.mark = perf_counter()
        self._resets += 1
        self.reset_s += seconds
        self._longest_reset_s = max(self._longest_reset_s, seconds)

    def end_row(self, began: float, reset_s: float) -> None:
        """Notes that a row is over. `began` and `reset_s` are the time and `self.reset_s` at its begin."""
        now = perf_counter()
        seconds = now - began - (self.reset_s - reset_s)
        self._waiting_s += began - (self._ended or began)
        self._ended = now
        self._step_s += seconds
        self._rows += 1
        self._rows_of_each += self.times_each
        self.times_each = seconds > SLOW_S * self._num_envs

    def take(self) -> Seconds:
        """Returns the seconds since the last call."""
        mean_s = self._step_s / max(1, self._rows * self._num_envs)
        slowest_s, slowest = mean_s, -1
        if self._rows_of_each:
            longest = max(self._of_each)
            slowest_s, slowest = (
                longest / self._rows_of_each,
                self._first_env + self._of_each.index(longest) * self._agents,
            )
        taken = Seconds(
            self._rows * self._num_envs, self._step_s, slowest_s, slowest, self._resets, self.reset_s,
            self._longest_reset_s, self._waiting_s,
        )  # fmt: skip
        self._clear()
        return taken


def seconds_of(workers: Iterable[object], *, ranks: int = 1) -> dict[str, Any]:
    """Returns the metrics of all workers' seconds; None where there are none.

    Args:
      ranks: of each environment. Those of several wait for the worker together, from the end of a row to the next one.
    """
    told = [seconds for seconds in workers if isinstance(seconds, Seconds)]
    steps, resets = sum(s.steps for s in told), sum(s.resets for s in told)
    waiting_s = sum(s.waiting_s for s in told)
    all_s = waiting_s + sum(s.step_s + s.reset_s for s in told)
    slowest = max((s for s in told if s.steps), key=lambda s: s.slowest_s, default=None)
    return {
        "env_step_mean_s": sum(s.step_s for s in told) / steps if steps else None,
        "env_step_max_s": None if slowest is None else slowest.slowest_s,
        "env_slowest_by_s": None if slowest is None or slowest.slowest_env < 0 else slowest.slowest_env,
        "env_reset_mean_s": sum(s.reset_s for s in told) / resets if resets else None,
        "env_reset_max_s": max((s.longest_reset_s for s in told), default=0.0) if resets else None,
        "env_waiting_per_s": waiting_s / all_s if ranks > 1 and steps else None,
    }
