"""Notices a rank that makes no progress: writes its Python stacks to a file, says so, and ends the job if asked to."""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FunctionType

from dppo.errors import EXIT_STALLED

WAITING = ("exchange",)
"""Phases in which a rank waits for others: it does not keep the job from continuing, and does not end itself."""
SHORTEST_S, LONGEST_S = 1e-3, 1e9
"""The shortest and the longest limit; others are taken for the nearest: the timer's clock knows no less and no more."""
_STDERR = 2


def _exit() -> None:
    os._exit(EXIT_STALLED)


def open_to_append(path: Path) -> int:
    """Opens a regular file, or makes one. Waits for no pipe, follows no link. Returns the descriptor.

    Raises:
      OSError: something else is in the file's place.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no file")
    return descriptor


class Watchdog:
    """A thread that compares the time of the last progress with two limits, in seconds; 0 switches a limit off.

    A simulator that loops in C++ and holds the GIL stops that thread, too. Then faulthandler's timer, which needs no
    GIL, writes the stacks to the same file; nothing is said on stderr, and the process does not end. A process has one
    watchdog at a time, because there is one such timer.

    Args:
      folder: RUN/stalls; None while there is none: stderr takes the stacks until `write_to`.
      after_s: the time without progress after which the stacks are written, once per stall.
      abort_s: the time without progress after which the process ends, unless it waits for others. The launcher then
        ends the other processes.
      end: ends the process; by default with code 1.
      is_lost: returns why this process can never come back, as far as can be told; "" where it can. A process that is
        lost is killed, also where both limits are off.
      beat: called with `abort_s` as long as Python runs, and with 0 by `stop`.
    """

    def __init__(
        self,
        folder: Path | None,
        rank: int,
        after_s: float,
        abort_s: float,
        *,
        end: Callable[[], None] = _exit,
        is_lost: Callable[[], str] | None = None,
        beat: Callable[[float], object] = abs,
    ) -> None:
        self._is_lost, self._beat, self._end = is_lost, beat, end
        self._after_s, self._abort_s = (min(s, LONGEST_S) if s > 0 else 0.0 for s in (after_s, abort_s))
        self._rank, self._who = rank, f"rank {rank} on {socket.gethostname()}, pid {os.getpid()}"
        self._path: Path | None = None
        self._last, self._phase = time.monotonic(), "start"
        self._armed_for = self._reported_for = -1.0
        self._stopped, self._watches = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        limits = [max(s, SHORTEST_S) for s in (self._after_s, self._abort_s) if s]
        self._period_s = min([1.0, *(limit / 4 for limit in limits)])
        # the timer fires after the thread would report, because the thread knows more
        self._timer_s = min(limits, default=math.inf) + 2 * self._period_s
        if not limits and is_lost is None:
            return
        self._timer_file = _STDERR
        if folder is not None:
            self.write_to(folder)
        # a forked child has the timer's lock but not its thread, and would wait for ever for that when it exits
        os.register_at_fork(before=faulthandler.cancel_dump_traceback_later)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        self._watches.wait()  # from here on every hang is noticed

    @property
    def has_folder(self) -> bool:
        """Returns whether `write_to` was called."""
        return self._path is not None

    def write_to(self, folder: Path) -> None:
        """Has stacks written to a file in `folder` from here on. The timer needs it open beforehand: the file is empty
        until there is a stall, and `stop` removes it where there was none; a rank that is killed leaves it empty.
        """
        path = folder.absolute() / f"rank_{self._rank:05d}.txt"  # an environment may change the working directory
        self._path = path
        if not math.isfinite(self._timer_s):
            return
        with contextlib.suppress(OSError):  # no shared folder on this node, or something else in the file's place
            path.parent.mkdir(parents=True, exist_ok=True)
            self._timer_file = open_to_append(path)
        self._armed_for = -1.0  # the timer is armed anew, with this file

    def heartbeat(self, phase: str) -> None:
        """Notes that the rank makes progress, and its phase: collect, update, exchange or checkpoint."""
        self._last, self._phase = time.monotonic(), phase

    def stop(self) -> None:
        """Ends the watch: training is over."""
        self._stopped.set()
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        self._beat(0.0)
        faulthandler.cancel_dump_traceback_later()
        if self._timer_file == _STDERR or self._path is None:
            return
        with contextlib.suppress(OSError):
            os.close(self._timer_file)
            if self._path.stat().st_size == 0:
                self._path.unlink()
                self._path.parent.rmdir()  # the last rank's succeeds

    def _watch(self) -> None:
        while not self._stopped.is_set():
            # The timer writes all threads' frames and nothing else: so the name of a frame of this thread is a header.
            # To keep a header up to date in the file, every rank would write to the shared file system all the time.
            header = f"{self._who}: last seen in phase {self._phase}"
            FunctionType(Watchdog._look.__code__.replace(co_name=header), globals())(self)

    def _look(self) -> None:
        """Waits for one period, with the timer armed, and compares the time of the last progress with the limits."""
        if self._armed_for != self._last and math.isfinite(self._timer_s):
            # a stall that was reported is not written again by the timer
            self._armed_for = self._last
            with contextlib.suppress(RuntimeError):  # the system has no thread left for the timer: watch without it
                faulthandler.dump_traceback_later(self._timer_s, file=self._timer_file)
        self._watches.set()
        self._beat(self._abort_s)
        if self._stopped.wait(self._period_s):
            return
        if self._is_lost is not None and (reason := self._is_lost()):
            print(f"dppo: {self._who}: {reason}", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        last = self._last
        silent_s = time.monotonic() - last
        if 0 < self._abort_s < silent_s and self._phase not in WAITING:
            self._report(silent_s)
            self._end()
            self._stopped.set()
        elif 0 < self._after_s < silent_s and self._reported_for != last:
            self._reported_for = last
            self._report(silent_s)

    def _report(self, silent_s: float) -> None:
        faulthandler.cancel_dump_traceback_later()
        told = f"{self._who}: no progress for {silent_s:.0f} s in phase {self._phase}"
        print(
            f"dppo: {told}; its stack {f'is in {self._path}' if self._path else 'follows'}", file=sys.stderr, flush=True
        )
        try:
            if self._path is None:
                raise OSError
            self._path.parent.mkdir(exist_ok=True)  # not the run directory, if that was removed
            with open(open_to_append(self._path), "a") as file:
                file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {told}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError:  # no folder yet, none on this node, or a full disk: the limits must hold all the same
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
