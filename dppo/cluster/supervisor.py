"""Runs the programs of a batch job while signals of the batch system come: SIGUSR1 asks to save, SIGTERM ends the job.

The kernel holds both until this module waits for them. So none is lost between two programs, none interrupts the
writing of a file, and none goes to a program that has ended.
"""

from __future__ import annotations

import contextlib
import math
import signal
import subprocess
import time
from collections.abc import Sequence

from dppo.cluster import processes

ASK, END = signal.SIGUSR1, signal.SIGTERM
_HELD = (ASK, END, signal.SIGCHLD)
NOT_STARTED = 127
"""The exit code of a program that cannot be started, as in a shell; a program that signal N has ended has 128 + N."""
_LOOK_S, _GONE_S = 3600.0, 10.0
"""Seconds of the longest pause between two looks at a program; seconds for the kernel to end one that was killed."""


class JobEnds(Exception):
    """Raised where the batch system has sent SIGTERM: it cancels the job, or starts it again."""


class Supervisor:
    """Runs programs, one at a time. The process that makes one holds its signals from then on, until it ends.

    Args:
      asked: whether the job was asked to save before this process could hear it.
    """

    def __init__(self, *, asked: bool = False) -> None:
        self._asked = asked
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
        for number in (*_HELD, signal.SIGINT):  # programs would inherit that a signal is ignored
            signal.signal(number, signal.SIG_DFL)

    def is_asked(self) -> bool:
        """Returns whether the job was asked to save. Raises JobEnds where the job ends."""
        while self._next_signal(0.0) is not None:
            pass
        return self._asked

    def check(self, command: Sequence[str], limit_s: float) -> int:
        """Runs a program that has nothing to save and whose output is of no interest. Kills it after `limit_s`, or as
        soon as the job is asked to save. Returns its exit code. Raises JobEnds where the job ends; the batch system
        ends the program.
        """
        program = self._start(command, subprocess.DEVNULL)
        if program is None:
            return NOT_STARTED
        code = self._wait(program, time.monotonic() + limit_s)
        return _kill(program) if code is None else code

    def run(self, command: Sequence[str], kill_after_s: float) -> int:
        """Runs a program to its end. Passes every request to save on to it, and kills it `kill_after_s` after the first
        request. Returns its exit code. Raises JobEnds where the job ends. The batch system has told the program as
        well: a second SIGTERM would have mpirun kill its ranks at once.
        """
        program = self._start(command)
        if program is None:
            return NOT_STARTED
        code = self._wait(program, math.inf)
        kill_at = time.monotonic() + kill_after_s
        while code is None and time.monotonic() < kill_at:
            program.send_signal(ASK)
            code = self._wait(program, kill_at)
        if code is None:
            processes.say(f"{command[0]} has not ended {kill_after_s:g} s after it was asked to save: it is killed")
            code = _kill(program)
        return code

    def _start(self, command: Sequence[str], stdout: int | None = None) -> subprocess.Popen[bytes] | None:
        try:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stdout,
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, self._mask),
            )  # fmt: skip
        except OSError as error:
            processes.say(f"{command[0]} cannot be started: {error.strerror}")
            return None

    def _wait(self, program: subprocess.Popen[bytes], until: float) -> int | None:
        """Returns the exit code; None where a request to save comes before, or the time `until`."""
        while program.poll() is None:
            number = self._next_signal(min(_LOOK_S, until - time.monotonic()))
            if number == ASK or time.monotonic() >= until:
                return None
        return _code(program)

    def _next_signal(self, timeout_s: float) -> int | None:
        found = signal.sigtimedwait(_HELD, max(0.0, timeout_s))
        if found is None:
            return None
        if found.si_signo == END:
            raise JobEnds
        self._asked = self._asked or found.si_signo == ASK
        return found.si_signo


def _kill(program: subprocess.Popen[bytes]) -> int:
    """Kills a program; returns the exit code. Does not wait for ever for one that hangs in a dead file system."""
    program.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        program.wait(_GONE_S)
    return _code(program)


def _code(program: subprocess.Popen[bytes]) -> int:
    code = -signal.SIGKILL if program.returncode is None else program.returncode
    return code if code >= 0 else 128 - code
