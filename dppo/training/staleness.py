"""How stale a gradient may be, compared with its worker's usual ones; and workers whose gradients are not used."""

from __future__ import annotations

import math
from collections import deque


class UsualStaleness:
    """A limit of staleness for each worker that follows the worker's pace. The gradients of a slow worker are always
    stale, which is no reason to leave them out; a gradient that took far longer than usual is left out.
    """

    TIMES, LAST = 4, 8

    def __init__(self, num_workers: int) -> None:
        self._least = self.TIMES * num_workers
        self._last = [deque[int](maxlen=self.LAST) for _ in range(num_workers)]

    def limit(self, worker: int, staleness: int) -> float:
        """Returns the limit for this worker's next gradient, whose staleness counts from then on, dropped or not.

        The limit is four times the median of the worker's last eight, and at least four times the number of workers.
        The first gradient has no limit, because there is nothing to compare it with.
        """
        last = self._last[worker]
        usual = sorted(last)[len(last) // 2] if last else math.inf
        last.append(staleness)
        return max(self._least, self.TIMES * usual)


class ShutOut:
    """Notices workers most of whose last gradients were not used."""

    LAST, FEWEST = 32, 8

    def __init__(self, num_workers: int) -> None:
        self._used = [deque[bool](maxlen=self.LAST) for _ in range(num_workers)]
        self._told = [False] * num_workers
        self._heard, self._quiet_until = [0] * num_workers, [self.FEWEST] * num_workers

    def note(self, worker: int, *, used: bool) -> tuple[int, int] | None:
        """Returns (gradients not used, of how many last ones) if it is time for a warning, else None. A further warning
        needs a time in between in which most were used, and ten times as many gradients as the last warning.
        """
        last = self._used[worker]
        last.append(used)
        self._heard[worker] += 1
        unused = len(last) - sum(last)
        if 4 * unused <= len(last) == self.LAST:
            self._told[worker] = False
        if self._told[worker] or 2 * unused <= len(last) or self._heard[worker] < self._quiet_until[worker]:
            return None
        self._told[worker], self._quiet_until[worker] = True, 10 * self._heard[worker]
        return unused, len(last)
