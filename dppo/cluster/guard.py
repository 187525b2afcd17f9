"""The process between the launcher and a rank. It ends as the rank has ended, so that every death is noticed and
nothing is left behind.

Under ULFM nobody notices a rank that leaves by `os._exit(7)` or by C's `exit(3)`, and a simulator's `os._exit(0)`
passes for a good end. All notice a death by a signal. So the process that the launcher has started does not become the
rank: it forks before NumPy and MPI are imported, waits, passes signals on, and kills itself where the rank has ended
without announcing it.

    launcher -> guard -> inner guard -> rank -> what its environments start

The inner guard has a process group of its own, because the launcher signals whole groups: SIGUSR1 would kill simulators
before the state is saved, SIGKILL would spare simulators with a group of their own. The inner guard ends what a rank
has left behind and, last of all, a launcher that does not end. If any of the three processes is killed, all end. A run
that no launcher has started has one guard, in the group of its terminal.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from typing import NoReturn

from dppo.cluster import launcher, processes

LEAVE_S = 20.0
"""Seconds that a rank may take to end after it has announced its exit code: threads, exit handlers, MPI_Finalize."""
START_S = 300.0
"""Seconds that MPI may take to start where mpirun has started another program, too, which may never call MPI_Init."""
LAUNCHER_ENDS_S, LAUNCHER_IS_TOLD_S = 30.0, 5.0
"""Seconds that the launcher may stay once its last process has ended, and once it was told to end."""
SILENCE_MARGIN_S = 10.0
"""Seconds added to --log.stall-abort-s: rank 0 knows more about a worker that is stuck, and acts first."""
_LONGEST_SILENCE_S = 2**16 - 1
_COUNT_PERIOD_S, _COUNT_PATIENCE = 0.5, 6

_STARTING, _AT_WORK, _LEAVING, _ENDING_JOB = range(4)
_STAGE, _CODE, _END, _BEATS, _SILENCE_S = range(5)
_BY_SIGNAL = 1000
"""The offset of a signal's number in the inner guard's report to the outer one; an exit code has the offset 1."""

_STOPS = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
_KILLED = 128 + signal.SIGKILL

_word: memoryview | None = None
"""Memory that the rank shares with its guards: how far the rank is, and its exit code."""
_rank_pid = 0


def stand() -> None:
    """Forks the rank. Returns in the child only, which is the rank; the calling process stays as the guard."""
    global _word, _rank_pid
    if sys.platform != "linux":
        return
    launched, above = launcher.is_launched(), os.getppid()
    depth = 2 if launched else 1
    _word = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("H")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # no signal is lost meanwhile
    if launched:
        processes.prctl(processes.SET_PDEATHSIG, signal.SIGCHLD)  # the guard wakes, and ends the rank
    for level in range(depth):
        parent, is_rank = os.getpid(), level == depth - 1
        processes.prctl(processes.SET_CHILD_SUBREAPER, 1)  # before any process can leave orphans
        try:
            child = os.fork()
        except OSError as error:
            print(f"dppo: a rank starts without its guard: {error}", file=sys.stderr, flush=True)
            processes.prctl(processes.SET_PDEATHSIG, signal.SIGKILL if launched else 0)
            processes.prctl(processes.SET_CHILD_SUBREAPER, 0)
            break
        if child:
            _Guard(child, above, is_launched=launched, is_outer=level == 0, is_inner=is_rank).watch()
        processes.prctl(processes.SET_PDEATHSIG, signal.SIGKILL if is_rank else signal.SIGCHLD)
        if os.getppid() != parent:
            os._exit(_KILLED)
        if not is_rank:
            os.setpgid(0, 0)
            above = parent
    _rank_pid = os.getpid()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def started() -> None:
    """Tells the guard that MPI has started: from here on an end that was not announced is a death. Before, the guard
    passes exit codes on.
    """
    _tell(_AT_WORK)


def announce(code: int) -> None:
    """Tells the guard that this rank is about to leave with `code`. However it ends from here on, that is its code."""
    _tell(_LEAVING, code)


def beat(silence_s: float) -> None:
    """Tells the guard that Python runs in this rank. Without another beat for `silence_s`, and a while more, something
    holds Python's lock: nothing in the rank could notice or end that, so the guard kills the rank. 0: never.
    """
    if _word is None or os.getpid() != _rank_pid:
        return
    _word[_BEATS] = (_word[_BEATS] + 1) % 2**16
    limit_s = math.ceil(min(silence_s, _LONGEST_SILENCE_S))
    if _word[_SILENCE_S] != limit_s:
        _word[_SILENCE_S] = limit_s
        processes.kill(os.getppid(), signal.SIGCHLD)  # the guard wakes


def end_job(code: int) -> bool:
    """Has the inner guard tell the launcher to end, and kill it if it does not. Returns False where there is none."""
    if _word is None or os.getpid() != _rank_pid or processes.launcher() is None:
        return False
    _tell(_ENDING_JOB, code)
    return True


def leave_at_once(code: int) -> NoReturn:
    """Ends this process; with the code that was announced, where one was. Under ULFM the process dies, which the other
    ranks survive: nobody would notice an exit code.
    """
    if launcher.survives_deaths():
        os.kill(os.getpid(), signal.SIGKILL)
    if _word is not None and _word[_STAGE] == _LEAVING:
        code = _word[_CODE]
    announce(code)
    os._exit(code)


def _tell(stage: int, code: int = 0) -> None:
    if _word is None or os.getpid() != _rank_pid:  # a forked child of an environment is not the rank
        return
    _word[_CODE] = code
    _word[_STAGE] = stage
    processes.kill(os.getppid(), signal.SIGCHLD)  # the guard wakes


class _Guard:
    """A process that waits for `child`: the rank, or the inner guard.

    `parent` has started this process, and may be dead by now.
    """

    def __init__(self, child: int, parent: int, *, is_launched: bool, is_outer: bool, is_inner: bool) -> None:
        self._child, self._is_launched, self._is_outer, self._is_inner = child, is_launched, is_outer, is_inner
        self._parent, self._shares_terminal = parent, not is_launched
        self._launcher = _Launcher(processes.launcher()) if is_launched and is_inner else None
        self._stage, self._deadline, self._is_overdue = _STARTING, math.inf, False
        self._beats, self._beat_at, self._missing = 0, time.monotonic(), 0
        # behind a wrapper script the launcher's children are not the guards, and their number says nothing
        self._programs = (launcher.num_programs() or 1) > 1
        starts_with_others = (launcher.survives_deaths() or self._programs) and launcher.local_ranks() > 1
        self._counts = is_outer and starts_with_others and processes.launcher() == self._parent
        self._starts_until = time.monotonic() + START_S if self._programs else math.inf
        self._passed_on: set[int] = set()

    def watch(self) -> NoReturn:
        """Waits until `child` has ended, then ends this process in the same way."""
        try:
            self._watch()
        except Exception:
            processes.say(f"the guard of {launcher.rank_name()} has failed:\n{traceback.format_exc()}")
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")

    def _watch(self) -> NoReturn:
        processes.set_title(f"dppo: guard of {launcher.rank_name()}")
        heard = signal.valid_signals()
        if self._shares_terminal:  # the guard stops and continues with its rank
            heard = heard - _STOPS
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
        while True:
            self._look()
            info = signal.sigtimedwait(heard, self._pause_s())
            if info is None or info.si_signo == signal.SIGCHLD:
                continue
            if self._shares_terminal and info.si_code > 0:
                continue  # the terminal sends the signal to the whole group, the rank included
            self._passed_on.add(info.si_signo)
            processes.kill(self._child, info.si_signo)

    def _pause_s(self) -> float:
        if self._counts:
            return _COUNT_PERIOD_S
        longest_s = 1.0 if self._is_inner and _word is not None and _word[_SILENCE_S] else 3600.0
        return min(longest_s, max(0.0, self._deadline - time.monotonic()))

    def _look(self) -> None:
        assert _word is not None
        stage, now = _word[_STAGE], time.monotonic()
        if end := _word[_END]:
            _end_like(end)
        status = processes.reap(self._child)
        if status is not None:
            self._conclude(self._end_after(status))
        if self._is_launched and os.getppid() != self._parent:
            processes.kill(self._child, signal.SIGKILL)
            self._say_if_starting(stage, "its guard was killed")
            self._conclude(_BY_SIGNAL + signal.SIGKILL, orphan=True)
        if self._counts:
            self._count_ranks()
        if self._is_inner and stage != self._stage:
            self._stage = stage
            self._deadline = now + {_LEAVING: LEAVE_S, _ENDING_JOB: LAUNCHER_IS_TOLD_S}.get(stage, math.inf)
            if stage == _ENDING_JOB and self._launcher is not None:
                self._launcher.send(signal.SIGTERM)
        if self._is_inner and stage == _AT_WORK:
            self._listen(now)
        if now > self._deadline:
            if stage == _LEAVING and self._programs and not self._is_overdue:
                processes.say(
                    f"{launcher.rank_name()} has not ended within {LEAVE_S:g} s, and is killed: if a simulator beside"
                    " dppo is still there, have it call dppo_end once dppo_wait_reset returns DPPO_END"
                )
            self._is_overdue = True
            processes.kill(self._child, signal.SIGKILL)
            self._deadline = now + 1.0

    def _count_ranks(self) -> None:
        """Ends the job if some of this node's guards, which are the launcher's children, stay missing. Otherwise nobody
        would notice a rank that dies before it has begun, and MPI_Init would wait for it for ever.
        """
        assert _word is not None
        self._counts = _word[_STAGE] == _STARTING
        self._missing = self._missing + 1 if len(processes.children(self._parent)) < launcher.local_ranks() else 0
        if not self._counts:
            return
        if self._missing == _COUNT_PATIENCE:
            other = " (a program beside dppo must call MPI_Init, then dppo_begin)" if self._programs else ""
            processes.say(
                f"a rank on {socket.gethostname()} died while MPI was starting{other}: the job ends, start it again"
            )
            processes.kill(self._parent, signal.SIGTERM)
        elif time.monotonic() > self._starts_until:
            self._starts_until = math.inf
            if launcher.is_first():
                processes.say(f"MPI has not started within {START_S:g} s: each program of this job must call MPI_Init")
            processes.kill(self._parent, signal.SIGTERM)

    def _listen(self, now: float) -> None:
        assert _word is not None
        limit_s = _word[_SILENCE_S]
        if self._beats != _word[_BEATS]:
            self._beats, self._beat_at = _word[_BEATS], now
        elif limit_s and now - self._beat_at > limit_s + SILENCE_MARGIN_S:
            processes.say(
                f"{launcher.rank_name()} has not come back to Python for {now - self._beat_at:.0f} s: it is killed"
                " (--log.stall-abort-s)"
            )
            processes.kill(self._child, signal.SIGKILL)
            self._beat_at = now

    def _end_after(self, status: int) -> int:
        assert _word is not None
        stage = _word[_STAGE]
        if stage >= _LEAVING:
            return 1 + _word[_CODE]
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if self._is_inner:
                self._say_if_starting(stage, f"signal {number}")
            return _BY_SIGNAL + number
        if stage == _STARTING:
            return 1 + os.WEXITSTATUS(status)
        if self._is_inner:
            processes.say(
                f"{launcher.rank_name()} has left without a word, with exit code {os.WEXITSTATUS(status)}, as by"
                " os._exit() or C's exit() in its environment: it counts as killed"
            )
        return _BY_SIGNAL + signal.SIGKILL

    def _say_if_starting(self, stage: int, why: str) -> None:
        """Names a death while MPI starts: MPI_Init of other ranks may end the job with a text that does not name it."""
        if self._is_launched and stage == _STARTING and not self._passed_on:
            processes.say(f"{launcher.rank_name()} died while MPI was starting ({why})")

    def _conclude(self, end: int, *, orphan: bool = False) -> NoReturn:
        """Ends what the child, which has ended, has left behind, then this process."""
        assert _word is not None
        if left := processes.end_children(but=self._child):
            processes.say(
                f"{launcher.rank_name()} has left processes behind ({', '.join(left)}), which are ended now: an"
                " environment's close() should end what it has started"
            )
        if self._is_outer and not orphan:
            _end_like(end)
        if not orphan:
            _word[_END] = end
            processes.kill(self._parent, signal.SIGCHLD)
        if self._launcher is not None:
            self._launcher.outlive(told=_word[_STAGE] == _ENDING_JOB)
        os._exit(_KILLED)


class _Launcher:
    """Open MPI's process on this node, which has started the rank."""

    def __init__(self, pid: int | None) -> None:
        self._pid, self._fd = pid, -1
        if pid is not None:
            self._is_first = processes.command(pid) != "prted"  # a prted does what mpirun says
            with contextlib.suppress(OSError, AttributeError):
                self._fd = os.pidfd_open(pid)

    def send(self, number: int) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._fd, number)

    def outlive(self, *, told: bool) -> None:
        """Waits until the launcher has ended, and kills it where it does not. It has nothing to wait for once the run
        has ended, but was seen to stay, as it is told to for a node that does not answer. The batch system ends what is
        left elsewhere.
        """
        if self._pid is None or self._fd < 0 or not (told or self._is_first):
            return
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in range(3):  # the launcher may wait for these to be closed
            os.dup2(nothing, standard)
        ended = select.poll()
        ended.register(self._fd, select.POLLIN)
        deadline = time.monotonic() + (LAUNCHER_IS_TOLD_S if told else LAUNCHER_ENDS_S)
        while not ended.poll(500):
            if time.monotonic() > deadline:
                with contextlib.suppress(OSError):  # the launcher's standard error: this process has closed its own
                    os.dup2(os.open(f"/proc/{self._pid}/fd/2", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK), 2)
                    processes.say("the launcher does not end, though its ranks have: it is killed")
                self.send(signal.SIGKILL)
                return
            if not told and processes.children(self._pid):
                deadline = time.monotonic() + LAUNCHER_ENDS_S  # another rank, or another program of the job


def _end_like(end: int) -> NoReturn:
    if end < _BY_SIGNAL:
        os._exit(end - 1)
    number = end - _BY_SIGNAL
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the rank has left its own core file
    with contextlib.suppress(OSError, ValueError):
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")
