"""Counts the episodes that have ended, and says whether their returns have reached a target.

It knows no clock and no file: the time here is the run's own, in iterations.
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
"""Episodes that wait for an older one are many from so many per environment, and per place in the window, on."""


class EpisodeCounter:
    """Counts whole episodes, and keeps two windows of their returns.

    An iteration takes one unit of time, from every worker alike, however many rows that worker made of it. So one whose
    rollouts are cut short (`--preempt-fraction`), or that comes late, is not always before the others.

    The window of the *last* 100 episodes is in the order in which they ended. Where environments begin together, short
    episodes end first, and its mean is theirs. So a target is judged by the *settled* ones as well: in the order in
    which they began, as far as all that began before them, or with them, have ended. The length of an episode has no
    influence on its place in that order: whatever the lengths, any 100 in a row are a fair sample. Where more settle at
    once, because a long one has ended that they had waited for, the window holds them all: it among them.

    Args:
      num_envs: of each worker.
      saved: what `as_dict` gave.
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
        self._made: dict[str, Any] = {}  # since the last change
        self._has_changed = False

    def as_dict(self) -> dict[str, Any]:
        """All that is known, in plain values, which nobody changes."""
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
        """Of the last episodes."""
        return self._at_hand("returns", lambda: _mean(self._returns))

    @property
    def length_mean(self) -> float | None:
        """Of the last episodes."""
        return self._at_hand("lengths", lambda: _mean(self._lengths))

    @property
    def settled_mean(self) -> float | None:
        """Mean return of the newest settled episodes."""
        return self._at_hand("settled", lambda: _mean(self._settled))

    def _at_hand(self, name: str, make: Callable[[], T]) -> T:
        """What `make` gives, made once between two changes: in most iterations of short rollouts no episode ends."""
        if name not in self._made:
            self._made[name] = make()
        made: T = self._made[name]
        return made

    def reached(self, target: float) -> bool:
        """Whether both windows are full and their means at `target`, or above."""
        if min(len(self._returns), len(self._settled)) < WINDOW:
            return False
        means = self.return_mean, self.settled_mean
        return all(mean is not None and mean >= target for mean in means)

    @property
    def stuck(self) -> tuple[int, float] | None:
        """The environment whose episode is waited for, and since when, where it takes far longer than all others."""
        if self.total - self._settled_at <= MANY * (len(self._began) + WINDOW) or not self._began:
            return None
        return min(self._began.items(), key=lambda pair: pair[1])

    def wait_for(self, workers: Sequence[int], time: float) -> int:
        """From here on, the environments of these workers are waited for, and no others; those that are new begin at
        `time`. Returns how many others had an episode under way.
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
        """Its episode comes to nothing, and the next begins at `time`. Those of its episodes that wait are left out,
        too: they are the short ones of a sample whose long one is lost.
        """
        self._waiting = self._waiting[self._waiting[:, 1] != env]
        if time is None:
            del self._began[env]
        else:
            self._began[env] = time

    def count(self, reports: Sequence[Report], iteration: int) -> int:
        """Counts the episodes that ended in the iteration of this number, 1 for the first. Returns how many."""
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
            if env not in self._began:  # of a worker that has died since
                continue
            if episode is None:
                waiting = [row for row in waiting if row[1] != env]
                self._cut(env, time)
            else:
                waiting.append((self._began[env], env, episode.episode_return))
                self._began[env] = time
        self._waiting = np.concatenate((self._waiting, np.reshape(waiting, (-1, 3))))
        num_ended = sum(episode is not None for *_, episode in events)
        self.total += num_ended
        self._settle()
        self._has_changed = False
        return num_ended

    def correct_total(self, total: int) -> None:
        """So many episodes have ended, as a server that died has written."""
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
            )  # all that settle together count: the long one that the others waited for
            self._settled = self._settled[max(0, len(self._settled) - kept) :] + settled[order, 2].tolist()
            self._waiting = self._waiting[~is_settled]
            self._settled_at = self.total
        if len(self._waiting) > max(self._prune_at, MANY * (WINDOW + len(self._began))):
            self._prune()

    def _prune(self) -> None:
        """Of those that can only settle together, for they began between the same two that are under way, keeps the
        newest 100: so an environment that never ends costs no memory.
        """
        self._waiting = self._waiting[np.lexsort((self._waiting[:, 1], self._waiting[:, 0]))]
        groups = np.searchsorted(np.sort(np.array(list(self._began.values()))), self._waiting[:, 0], side="right")
        ends = np.searchsorted(groups, groups, side="right")  # behind the last of each one's group
        self._waiting = self._waiting[ends - np.arange(len(groups)) <= WINDOW]
        self._prune_at = 2 * len(self._waiting)


def _mean(values: Collection[float]) -> float | None:
    """As np.mean, to the bit, in half the time."""
    return float(np.add.reduce(np.fromiter(values, np.float64, len(values))) / len(values)) if values else None
