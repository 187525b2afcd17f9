"""Sharing cores: waits that do not burn a core, as Open MPI's own waits do, and longer turns on crowded cores."""

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
    """Asks the kernel for turns of `TURN_S` for this thread: where more ranks than cores compute at a time, each turn
    on a core begins with a cold cache. A rank that asks for shorter turns, like rank 0, comes first.

    With longer turns, async on 32 ranks and 2 cores takes 5% less CPU for a step: the median of 12 pairs of alternating
    runs, measured as `benchmarks/scaling.py` measures CPU.

    Returns:
      Whether it was accepted. Kernels before 6.12 ignore it, and a scheduling policy that the user has set stays.

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
    """Pauses between two polls that found nothing: the rank first yields the core, for a message that is nearly there;
    then it sleeps until a neighbour on its node rings. If it waits for ranks on other nodes, which cannot ring, each
    pause is a fifth of the time waited so far, at most `longest_s`: the answer comes at most a fifth later than it
    could.

    Args:
      doorbell: None for a rank that is alone.
      all_ring: whether every rank that could end the wait rings.
    """

    YIELD_S = 0.0001
    """Seconds of yielding before the first sleep, if there is a core for every rank."""
    SAFETY_S = 0.02
    """The longest sleep in seconds even if nobody rings: MPI moves large messages only while it is called."""

    def __init__(self, doorbell: Doorbell | None, *, all_ring: bool = False, longest_s: float = 0.01) -> None:
        self._doorbell, self._all_ring, self._longest_s = doorbell, all_ring, longest_s
        self._yield_s = 0.0 if doorbell is not None and doorbell.crowded else self.YIELD_S
        self.reset()

    def reset(self) -> None:
        """Makes the next wait start afresh, because something came."""
        self._since: float | None = None
        self._poll_again = True

    def pause(self) -> None:
        """Pauses between two polls that found nothing."""
        # Open MPI's Iprobe looks first and moves messages afterwards: only the next Iprobe sees what it has moved
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
