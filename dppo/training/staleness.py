"""How stale a gradient may be, by what is usual for its worker; and which workers nothing is learnt from."""

from __future__ import annotations

import math
from collections import deque


class UsualStaleness:
    """A limit for each worker that follows its pace: what the others do while it makes a gradient is much where it is
    slow, and no reason to leave it out. Out of the ordinary is what takes it far longer than usual.
    """

    TIMES, LAST = 4, 8

    def __init__(self, num_workers: int) -> None:
        self._least = self.TIMES * num_workers
        self._last = [deque[int](maxlen=self.LAST) for _ in range(num_workers)]

    def limit(self, worker: int, staleness: int) -> float:
        """The limit for this worker's next gradient, which is so stale; it counts from then on, dropped or not.

        Four times the median of its last eight, and at least four times the number of workers. Nothing is too stale
        for the first: there is nothing to compare it with.
        """
        last = self._last[worker]
        usual = sorted(last)[len(last) // 2] if last else math.inf
        last.append(staleness)
        return max(self._least, self.TIMES * usual)


class ShutOut:
    """Notices workers of whose last gradients most were not used."""

    LAST, FEWEST = 32, 8

    def __init__(self, num_workers: int) -> None:
        self._used = [deque[bool](maxlen=self.LAST) for _ in range(num_workers)]
        self._told = [False] * num_workers
        self._heard, self._quiet_until = [0] * num_workers, [self.FEWEST] * num_workers

    def note(self, worker: int, *, used: bool) -> tuple[int, int] | None:
        """(not used, of so many last ones) where it is time to say it: once, and after it has been well again rarely,
        each time after ten times as many gradients.
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
