"""Waiting that does not burn a core: Open MPI's own waits spin.

Uses the doorbell; the server's loop and the workers' links pause through it between two polls.
"""

from __future__ import annotations

import os
import time

from dppo.exchange.doorbell import Doorbell


class Backoff:
    """Pauses between two polls that found nothing: the core is yielded first, for a message that is nearly there; then
    the rank sleeps until a neighbour on its node rings. Where those that it waits for are on other nodes and cannot
    ring, each pause is a fifth of the time waited so far, at most `longest_s`: the answer comes at most a fifth later
    than it could.

    Args:
      doorbell: None for a rank that is alone.
      all_ring: everyone who could end the wait rings.
    """

    YIELD_S = 0.0001
    """While there is a core for every rank."""
    SAFETY_S = 0.02
    """A poll as often as this, even if nobody rings: MPI moves large messages only while it is called."""

    def __init__(self, doorbell: Doorbell | None, *, all_ring: bool = False, longest_s: float = 0.01) -> None:
        self._doorbell, self._all_ring, self._longest_s = doorbell, all_ring, longest_s
        self._yield_s = 0.0 if doorbell is not None and doorbell.crowded else self.YIELD_S
        self.reset()

    def reset(self) -> None:
        """Something came: the next wait starts afresh."""
        self._since: float | None = None
        self._poll_again = True

    def pause(self) -> None:
        """Between two polls that found nothing."""
        # Open MPI's Iprobe looks first and moves messages afterwards: what it has moved the next one sees
        if self._poll_again:
            self._poll_again = False
            return
        self._poll_again = True
        now = time.monotonic()
        if self._since is None:
            self._since = now
        waited_s = now - self._since
        if waited_s < self._yield_s:
            os.sched_yield()
            return
        growing_s = min(self._longest_s, max(5e-5, 0.2 * waited_s))
        if self._doorbell is None:
            time.sleep(growing_s)
        else:
            self._doorbell.wait(self.SAFETY_S if self._all_ring else growing_s)
