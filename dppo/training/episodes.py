"""Counts the episodes that have ended, and says whether their returns have reached a target.

No clocks, no files: time here is the run's own, in iterations.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, TypeVar

import numpy as np

from dppo.data import Episode, Report

T = TypeVar("T")

WINDOW = 100
MANY = 10
"""The number of episodes per environment, and per place in the window, from which many wait for an older episode."""


class EpisodeCounter:
    """Counts whole episodes, and keeps two windows of their returns.

    An iteration takes one unit of time on every worker, however many rows the worker collects in it. So a worker whose
    rollouts are cut short (`--preempt-fraction`), or that is late, is not always ahead of the others.

    The window of the *last* 100 episodes has them in the order in which they ended. If environments begin together,
    short episodes end first, and the mean is that of short episodes. So a target is judged by the *settled* episodes as
    well. They are in the order in which they began; an episode is settled once all episodes that began before it, or
    with it, have ended. The length of an episode has no influence on its place in this order, so that any 100 in a row
    are a fair sample. If more than 100 settle at once, because a long episode has ended for which they had waited, the
    window holds them all, with the long one.

    Args:
      num_envs: number of environments of each worker.
      saved: the result of `as_dict`.
    """

    def __init__(self, num_envs: int, saved: dict[str, Any] | None = None) -> None:
        saved = saved or {}
        self._num_envs = num_envs
        self.total: int = saved.get("episodes", 0)
        self._returns: deque[float] = deque(saved.get("returns", ()), WINDOW)
        self._lengths: deque[int] = deque(saved.get("lengths", ()), WINDOW)
        self._settled: list[float] = list(saved.get("settled", ()))
        self._waiting = np.array(saved.get("waiting", ())).reshape(-1, 3)  # ended: beginning, environment, return
        self._prune_at = 0
        self._began: dict[int, float] = dict(zip(*saved.get("under_way", ((), ())), strict=True))  # by environment
        self._settled_at = self.total
        self.newest_returns: list[float] = []
        """Returns of the episodes that `count` has counted last, in the order in which they ended."""
        self._made: dict[str, Any] = {}  # since the last change
        self._has_changed = False

    def as_dict(self) -> dict[str, Any]:
        """Returns all that is known as plain values, which nobody changes."""
        return self._at_hand("all", self._plain)

    def _plain(self) -> dict[str, Any]:
        return {
            "episodes": self.total,
            "returns": list(self._returns),
            "lengths": list(self._lengths),
            "settled": list(self._settled),
            "waiting": self._waiting.ravel().tolist(),
            "under_way": [list(self._began), list(self._began.values())],
        }

    @property
    def return_mean(self) -> float | None:
        """Mean return of the last episodes."""
        return self._at_hand("returns", lambda: _mean(self._returns))

    @property
    def length_mean(self) -> float | None:
        """Mean length of the last episodes."""
        return self._at_hand("lengths", lambda: _mean(self._lengths))

    @property
    def settled_mean(self) -> float | None:
        """Mean return of the newest settled episodes."""
        return self._at_hand("settled", lambda: _mean(self._settled))

    def _at_hand(self, name: str, make: Callable[[], T]) -> T:
        """Returns what `make` returns, made once between two changes: in most short rollouts no episode ends."""
        if name not in self._made:
            self._made[name] = make()
        made: T = self._made[name]
        return made

    def reached(self, target: float) -> bool:
        """Returns whether both windows are full and their means are `target` or higher."""
        if min(len(self._returns), len(self._settled)) < WINDOW:
            return False
        means = self.return_mean, self.settled_mean
        return all(mean is not None and mean >= target for mean in means)

    @property
    def stuck(self) -> tuple[int, float] | None:
        """The environment whose episode takes far longer than all others, and when it began; None if there is none."""
        if self.total - self._settled_at <= MANY * (len(self._began) + WINDOW) or not self._began:
            return None
        return min(self._began.items(), key=lambda pair: pair[1])

    def wait_for(self, workers: Sequence[int], time: float) -> int:
        """Waits from now on for the environments of these workers, and no others; new environments begin at `time`.
        Returns how many of the other environments had an episode under way.
        """
        self._change()
        present = {env for w in workers for env in range(w * self._num_envs, (w + 1) * self._num_envs)}
        gone = [env for env in self._began if env not in present]
        for env in gone:
            self._cut(env, None)
        for env in sorted(present):
            self._began.setdefault(env, time)
        return len(gone)

    def _cut(self, env: int, time: float | None) -> None:
        """Drops an environment's episode; the next one begins at `time` (None: never). Its waiting episodes are
        dropped, too: they are the short ones of a sample whose long one is lost.
        """
        self._waiting = self._waiting[self._waiting[:, 1] != env]
        if time is None:
            del self._began[env]
        else:
            self._began[env] = time

    def count(self, reports: Sequence[Report], iteration: int) -> int:
        """Counts the episodes that ended in iteration number `iteration`, 1 for the first. Returns how many ended."""
        self.newest_returns = []
        if not (self._has_changed or any(r.episodes or r.episodes_cut for r in reports)):
            return 0
        self._change()
        events: list[tuple[float, int, int, Episode | None]] = []  # time, environment, number, what ended; None: cut
        for _, group in groupby(sorted(reports, key=attrgetter("worker", "first_row")), attrgetter("worker")):
            told = list(group)
            rows = max(1, sum(len(r.env_actions) for r in told))
            before = 0
            for report in told:
                ended = before + 1 - report.first_row
                for e in report.episodes:
                    events.append((iteration - 1 + (ended + e.row) / rows, e.env, len(events), e))
                for env in report.episodes_cut:
                    events.append((iteration - 1 + before / rows, env, len(events), None))
                before += len(report.env_actions)
        events.sort()
        waiting: list[tuple[float, int, float]] = []
        for time, env, _, episode in events:
            if episode is not None:
                self._returns.append(episode.episode_return)
                self._lengths.append(episode.length)
            if env not in self._began:  # its worker has died since
                continue
            if episode is None:
                waiting = [row for row in waiting if row[1] != env]
                self._cut(env, time)
            else:
                waiting.append((self._began[env], env, episode.episode_return))
                self._began[env] = time
        self._waiting = np.concatenate((self._waiting, np.reshape(waiting, (-1, 3))))
        self.newest_returns = [episode.episode_return for *_, episode in events if episode is not None]
        num_ended = len(self.newest_returns)
        self.total += num_ended
        self._settle()
        self._has_changed = False
        return num_ended

    def correct_total(self, total: int) -> None:
        """Sets the number of episodes that have ended to `total`, which a server that died has written."""
        self.total = total
        self._change()

    def _change(self) -> None:
        self._made.clear()
        self._has_changed = True

    def _settle(self) -> None:
        is_settled = self._waiting[:, 0] < min(self._began.values(), default=math.inf)
        if is_settled.any():
            settled = self._waiting[is_settled]
            order = np.lexsort((settled[:, 1], settled[:, 0]))
            kept = max(
                0, WINDOW - len(settled)
            )  # all that settle together count: one is the long one for which the others waited
            self._settled = self._settled[max(0, len(self._settled) - kept) :] + settled[order, 2].tolist()
            self._waiting = self._waiting[~is_settled]
            self._settled_at = self.total
        if len(self._waiting) > max(self._prune_at, MANY * (WINDOW + len(self._began))):
            self._prune()

    def _prune(self) -> None:
        """Keeps only the newest 100 of the waiting episodes that can only settle together, because they began between
        the same two episodes that are under way. So an episode that never ends costs no memory.
        """
        self._waiting = self._waiting[np.lexsort((self._waiting[:, 1], self._waiting[:, 0]))]
        groups = np.searchsorted(np.sort(np.array(list(self._began.values()))), self._waiting[:, 0], side="right")
        ends = np.searchsorted(groups, groups, side="right")  # behind the last of each one's group
        self._waiting = self._waiting[ends - np.arange(len(groups)) <= WINDOW]
        self._prune_at = 2 * len(self._waiting)


def _mean(values: Collection[float]) -> float | None:
    """Returns the same as np.mean, to the bit, in half the time; None if there are no values."""
    return float(np.add.reduce(np.fromiter(values, np.float64, len(values))) / len(values)) if values else None
