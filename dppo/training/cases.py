"""Counts the episodes of each case, so that a run shows which case lags behind. No clocks, no files."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dppo.data import Report
from dppo.envs.cases import Case, case_of
from dppo.training.episodes import WINDOW


class CaseCounter:
    """The number of episodes of each case, and the returns of its last 100 episodes. Without cases it counts nothing.

    Args:
      saved: the result of `as_dict`; None: the run begins.
    """

    def __init__(self, cases: Sequence[Case], saved: dict[str, Any] | None = None) -> None:
        self._cases, saved = cases, saved or {}
        self._episodes: dict[str, int] = {}
        self._returns: dict[str, deque[float]] = {}
        for case in cases:
            known = saved.get(case["name"], {})
            self._episodes[case["name"]] = known.get("episodes", 0)
            self._returns[case["name"]] = deque(known.get("returns", ()), WINDOW)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Returns all that is known as plain values."""
        return {
            name: {"episodes": count, "returns": list(self._returns[name])} for name, count in self._episodes.items()
        }

    def count(self, reports: Iterable[Report]) -> None:
        """Counts the episodes that ended in an iteration, in the order of their last rows, then of environments."""
        if not self._cases:
            return
        ended = [(e.row, e.env, report.agents, e.episode_return) for report in reports for e in report.episodes]
        for _, env, agents, episode_return in sorted(ended):
            name = case_of(self._cases, env, agents)["name"]
            self._episodes[name] += 1
            self._returns[name].append(episode_return)

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Returns the metrics of each case, by its name; the mean return is None before the first episode."""
        return {
            name: {"episodes": count, "return_mean_100": float(np.mean(returns)) if returns else None}
            for (name, count), returns in zip(self._episodes.items(), self._returns.values(), strict=True)
        }

    def correct(self, metrics: dict[str, dict[str, Any]]) -> None:
        """Sets the numbers of episodes to those of a line of metrics, which a server that died has written."""
        for name in self._episodes.keys() & metrics.keys():
            self._episodes[name] = metrics[name]["episodes"]
