"""Waiting that does not burn a core: Open MPI's own waits spin.

Uses the standard library; the server's loop and the workers' links pause through it between two polls.
"""

from __future__ import annotations

import os
import time


class Backoff:
    """Pauses that grow with the time waited: a short wait is answered at once, a long one costs next to no CPU.

    The first polls only yield the core; then each pause is a fifth of the time waited so far, at most `longest_s`, so
    the answer comes at most a fifth later than it could. At 10 ms a poll costs well under 1% of a core.
    """

    YIELDS = 10

    def __init__(self, longest_s: float = 0.01) -> None:
        self._longest_s = longest_s
        self.reset()

    def reset(self) -> None:
        """Something came: the next wait starts afresh."""
        self._polls = 0

    def pause(self) -> None:
        """Between two polls that found nothing."""
        if self._polls == 0:
            self._since = time.monotonic()
        self._polls += 1
        if self._polls <= self.YIELDS:
            os.sched_yield()
        else:
            time.sleep(min(self._longest_s, max(5e-5, 0.2 * (time.monotonic() - self._since))))
