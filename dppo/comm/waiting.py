"""Sharing cores: waiting that does not burn one, as Open MPI's own does, and longer turns where ranks take turns."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import time

from dppo.comm.wakeup import Doorbell

TURN_S = 0.004
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}  # numbers of the system call, which the C library may not have


def ask_for_longer_turns() -> bool:
    """Where more ranks than cores compute at a time, each turn on a core begins with a cold cache: this thread asks the
    kernel for turns of `TURN_S`. Whoever asks less, like rank 0, comes first.

    With it async on 32 ranks and 2 cores takes 5% less CPU for a step, the median of 12 pairs of runs in turn, measured
    as `benchmarks/scaling.py` measures its CPU.

    Returns:
      Whether it was accepted: kernels before 6.12 ignore it, and a scheduling policy of the user's stays.

    Source: Linux, Documentation/scheduler/sched-eevdf.rst; sched_setattr(2).
    """
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    # struct sched_attr: size, policy, flags, nice, priority, runtime (ns), deadline, period
    attributes = struct.pack("=IIQiIQQQ", 48, os.SCHED_OTHER, 0, nice, 0, int(1e9 * TURN_S), 0, 0)
    return ctypes.CDLL(None).syscall(number, 0, attributes, 0) == 0


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
