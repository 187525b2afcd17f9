"""Finds processes in Linux's /proc: the launcher of this one, and its children. Ends the children that are left."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time

SET_PDEATHSIG, SET_CHILD_SUBREAPER = 1, 36
_SET_NAME = 15
_LAUNCHERS = ("mpirun", "mpiexec", "prterun", "prted")
_LEAVE_S, _END_S, _DIE_S = 0.1, 1.0, 2.0
"""Seconds that children get to leave by themselves, after SIGTERM, and after SIGKILL."""


def launcher() -> int | None:
    """Finds Open MPI's process that has started this one, perhaps through a wrapper script; None if there is none."""
    pid = os.getppid()
    while pid > 1:
        if command(pid) in _LAUNCHERS:
            return pid
        pid = int((stat(pid) or ["", "0"])[1])
    return None


def command(pid: int) -> str:
    """Returns the short name of a process; "" where there is no such process."""
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return ""


def stat(pid: int) -> list[str]:
    """Returns state, parent, …, as in proc(5) from the third field on; [] where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def children(pid: int) -> list[int]:
    """Returns the living children of a process."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += [child for child in map(int, file.read().split()) if stat(child)[:1] not in (["Z"], [])]
    return found


def is_below(pid: int, ancestor: int) -> bool:
    """Returns whether a process lives that `ancestor`, or a child of it, has started."""
    state = stat(pid)
    while state and state[0] != "Z" and pid > 1:
        if pid == ancestor:
            return True
        pid = int(state[1])
        state = stat(pid)
    return False


def kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def end_children(but: int) -> list[str]:
    """Ends what the rank has left: orphans have become this process's children. Returns the names of the processes that
    had to be ended, without that of `but`.
    """
    since, names, told = time.monotonic(), dict[int, str](), set[tuple[int, int]]()
    while True:
        reap(but)
        left, age_s = children(os.getpid()), time.monotonic() - since
        if not _has_children() or age_s > _LEAVE_S + _END_S + _DIE_S:
            return list(names.values())
        for pid in left if age_s > _LEAVE_S else ():
            number = signal.SIGTERM if age_s < _LEAVE_S + _END_S else signal.SIGKILL
            if number == signal.SIGTERM and _leaves_by_itself(pid):
                continue
            if pid != but:
                names.setdefault(pid, command(pid))
            if (pid, number) not in told:
                told.add((pid, number))
                kill(pid, number)
        time.sleep(0.01)


def _has_children() -> bool:
    """Asks the kernel whether there are children: while some end, the list in /proc may lack others."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _leaves_by_itself(pid: int) -> bool:
    """Returns whether a process is about to end, is a server of multiprocessing, which cleans up once unused, or has
    called `follow`: then it was killed with the rank, but on a busy node it may take a while until it is gone.
    """
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        text = file.read()
        modules = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver", b"dppo.cluster.processes")
        return not text or any(b"from " + module in text for module in modules)
    return True


def reap(child: int) -> int | None:
    """Reaps children. Returns the status of `child` if it has ended; the status of orphans is of no interest."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == child:
                found = status
    return found


def prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value)


def follow(parent: int) -> None:
    """Makes this process one that helps `parent`, which has started it: it ends with `parent`, comes last where cores
    are short, and does not end by the signals that ask a run to save and leave, because `parent` tells it when to.
    """
    prctl(SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)
    os.nice(19)
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        signal.signal(
            number, lambda number, frame: None
        )  # unlike SIG_IGN, what this process starts does not inherit it


def set_title(title: str) -> None:
    """Sets what ps and /proc show: otherwise a guard would look like its rank, whose arguments and variables it has."""
    # without a space: Slurm's proctrack/linuxproc cannot read a stat line in /proc with one, and signals nobody below
    ctypes.CDLL(None).prctl(_SET_NAME, b"dppo-guard")
    places = [int(field) for field in stat(os.getpid())[45:49]]
    if len(places) < 4:
        return
    arguments, after_arguments, variables, after_variables = places
    if 0 < arguments < after_arguments <= variables <= after_variables:
        ctypes.memset(arguments, 0, after_arguments - arguments)
        ctypes.memset(variables, 0, after_variables - variables)
        ctypes.memmove(arguments, (text := title.encode()[: after_arguments - arguments - 1]), len(text))


def say(text: str) -> None:
    """Writes a line on standard error, for processes that are about to end."""
    with contextlib.suppress(OSError):
        os.write(2, f"dppo: {text}\n".encode())
