"""Notices requests to save and leave (signals, the time limit of a batch job), and tells how much time is left."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

SECOND_SIGNAL_S = 5.0
"""Seconds after the first signal from which another one makes the process exit at once. (mpirun and Slurm send
several.)
"""


class Preemption:
    """Notes whether this process was asked to save and leave, and when.

    Args:
      grace_s: seconds from the request to the process's end.
      time_limit_s: seconds after `started` by which the run must have ended; None: no such limit.
      started: time.monotonic() of the start; None: now.
      ends_at: when the batch system kills the job, in seconds since 1970; the earlier limit counts.
      leave: ends the process, with a code.
    """

    def __init__(
        self,
        grace_s: float,
        time_limit_s: float | None,
        started: float | None = None,
        ends_at: float | None = None,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self._leave = leave
        self.grace_s = grace_s
        self.requested_at: float | None = None
        self.reason = ""
        """The source of the request: a signal, a limit or a worker."""
        self._first_signal_at: float | None = None
        self._before: dict[signal.Signals, Any] = {}
        ends: list[tuple[float, str]] = []
        if time_limit_s is not None:
            ends.append(((started or time.monotonic()) + time_limit_s, f"--time-limit-s {time_limit_s:g}"))
        if ends_at is not None:
            ends.append((time.monotonic() + ends_at - time.time(), "the end of the job's allocation"))
        self._ask_at, self._limit = min(ends) if ends else (math.inf, "")
        self._ask_at -= grace_s

    def install(self) -> None:
        """Turns SIGUSR1, SIGTERM and Ctrl-C into requests."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python allows handlers in the main thread only; an embedding program has handlers of its own
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._on_signal)

    def asked(self) -> bool:
        """Returns whether this process was asked. Puts its handlers back where an environment has replaced them."""
        for number in self._before:
            if signal.getsignal(number) != self._on_signal:
                signal.signal(number, self._on_signal)
        return self.requested_at is not None

    def uninstall(self) -> None:
        """Restores the handlers that `install` has replaced."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first_signal_at is None:
            self._first_signal_at = now
        elif now - self._first_signal_at > SECOND_SIGNAL_S:
            self._leave(128 + number)
        self.request(signal.Signals(number).name)

    def request(self, reason: str) -> None:
        """Asks to save and leave; the first request counts."""
        if self.requested_at is None:
            self.requested_at, self.reason = time.monotonic(), reason

    @property
    def requested(self) -> bool:
        """Returns whether this process was asked; looks at the time limit as well."""
        if self.requested_at is None and time.monotonic() > self._ask_at:
            self.request(self._limit)
        return self.requested_at is not None

    def past(self, share: float) -> bool:
        """Returns whether this share of the grace period has passed since the request."""
        return self.requested and time.monotonic() - (self.requested_at or 0.0) > share * self.grace_s
