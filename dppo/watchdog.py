"""Notices a rank that makes no progress: writes its Python stacks to a file, says so, and ends the job if asked to.

Uses the standard library; run.py arms it on every rank, the training loops tell it of progress.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
from pathlib import Path

EXIT_STALLED = 1


class Watchdog:
    """A thread that compares the time of the last progress with two limits, in seconds; 0 switches a limit off.

    Args:
      folder: RUN/stalls; made when the first rank stalls.
      after_s: without progress for so long, the stacks are written, once per stall.
      abort_s: without progress for so long, the process ends with code 1, and the launcher ends the others.
    """

    def __init__(self, folder: Path, rank: int, after_s: float, abort_s: float) -> None:
        self._folder, self._rank, self._after_s, self._abort_s = folder, rank, after_s, abort_s
        self._last, self._phase = time.monotonic(), "start"
        limits = [s for s in (after_s, abort_s) if s > 0]
        self._stopped = threading.Event()
        if limits:
            period_s = min(1.0, min(limits) / 4)
            threading.Thread(target=self._watch, args=(period_s,), name="watchdog", daemon=True).start()

    def progress(self, phase: str) -> None:
        """The rank is alive, and in this phase: collect, update, exchange or checkpoint."""
        self._last, self._phase = time.monotonic(), phase

    def stop(self) -> None:
        """Training is over."""
        self._stopped.set()

    def _watch(self, period_s: float) -> None:
        reported_for = -1.0
        while not self._stopped.wait(period_s):
            last = self._last
            silent_s = time.monotonic() - last
            if 0 < self._after_s < silent_s and reported_for != last:
                reported_for = last
                self._report(silent_s)
            if 0 < self._abort_s < silent_s:
                self._report(silent_s)
                os._exit(EXIT_STALLED)

    def _report(self, silent_s: float) -> None:
        who = f"rank {self._rank} on {socket.gethostname()}, pid {os.getpid()}"
        path = self._folder / f"rank_{self._rank:05d}.txt"
        print(
            f"dppo: {who}: no progress for {silent_s:.0f} s in phase {self._phase}; its stack is in {path}",
            file=sys.stderr,
            flush=True,
        )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with open(path, "a") as file:
                now = time.strftime("%Y-%m-%dT%H:%M:%S")
                file.write(f"{now} {who}: no progress for {silent_s:.0f} s in phase {self._phase}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError:  # no shared folder on this node, or a full disk: the limits must hold all the same
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
