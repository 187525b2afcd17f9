"""How a rank leaves MPI, and how a job ends, even after deaths of ranks."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import subprocess
import sys
import time
from typing import NoReturn

from dppo.cluster import guard, processes
from dppo.cluster.launcher import survives_deaths
from dppo.comm.mpi import MPI, is_spawned
from dppo.console import end_output

_FINALIZE_LIMIT_S, _OTHERS_LEAVE_S, _LAUNCHER_LEAVES_S = 2, 0.3, 5
_KILLER = f"""
exec 2>/dev/null
for _ in $(seq {_LAUNCHER_LEAVES_S * 10}); do kill -0 {{pid}} || exit 0; sleep 0.1; done
kill -9 {{pid}}
"""
_FINALIZE_STARTED = 3
"""The value of Open MPI's ompi_mpi_state_t from which MPI_Finalize has started."""

_finalize = MPI.Finalize


def keep_running() -> None:
    """Makes MPI.Finalize an error: an environment that calls it would wait in it for the other ranks for ever."""

    def refuse() -> NoReturn:
        raise RuntimeError("MPI.Finalize() was called, but dppo's ranks still work with MPI: leave the call out")

    MPI.Finalize = refuse


@functools.cache  # called every second, and each CDLL makes classes
def _open_mpi_state() -> ctypes.c_int | None:
    """Returns Open MPI's variable of its state; None with another MPI."""
    with contextlib.suppress(OSError, ValueError):
        return ctypes.c_int.in_dll(ctypes.CDLL(MPI.__file__), "ompi_mpi_state")
    return None


def left_mpi() -> str:
    """Returns why this rank is lost to the others, if its environment has called MPI_Finalize in C; else ""."""
    gone = MPI.Is_finalized()
    if survives_deaths() and not gone and (state := _open_mpi_state()) is not None:
        gone = state.value >= _FINALIZE_STARTED  # Is_finalized says so only after MPI has waited for the others
    return "its environment has called MPI_Finalize, which ends its part in the job" if gone else ""


def leave(code: int) -> NoReturn:
    """Ends this process. If ranks may have died, it leaves out MPI_Finalize, which could wait for them. A spawned
    process still tries it for a moment: else mpirun complains and returns 1, although all went well.
    """
    guard.announce(code)
    if not survives_deaths():
        _finalize()  # not at Python's very end, which an environment's threads may prevent
        for child in sys.modules["multiprocessing"].active_children() if "multiprocessing" in sys.modules else ():
            child.terminate()  # Python would wait for children that no close() has ended
        sys.exit(code)
    _remove_shared_memory()
    if is_spawned():
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        time.sleep(_OTHERS_LEAVE_S)  # while the others are there, MPI_Finalize waits for them, and they do not come
        signal.alarm(_FINALIZE_LIMIT_S)
        _finalize()
    os._exit(code)


def _remove_shared_memory() -> None:
    """Removes files that Open MPI leaves in /dev/shm for spawned processes; a process that maps one needs no name."""
    with contextlib.suppress(OSError), open("/proc/self/maps") as file:
        mapped = {line.split(maxsplit=5)[5].strip() for line in file if "/sm_segment." in line}
        for path in mapped:
            with contextlib.suppress(OSError):
                os.unlink(path)


def die() -> NoReturn:
    """Ends this rank as if it had been killed, so that survivors continue. An exit with a code would make mpirun end
    the job, or hang.
    """
    end_output()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def end_job(comm: MPI.Comm, code: int) -> NoReturn:
    """Ends all ranks. Under ULFM, MPI_Abort ends only some, and mpirun may hang: the launcher is told to end the job. A
    launcher that waits for a node that does not answer is killed; the batch system ends what is left on the node.
    """
    end_output()
    if survives_deaths() and (pid := processes.launcher()) is not None:
        # the launcher also ends this process: another one must see whether the launcher itself ends
        if not guard.end_job(code):
            subprocess.Popen(["/bin/sh", "-c", _KILLER.format(pid=pid)], start_new_session=True)
            os.kill(pid, signal.SIGTERM)
        time.sleep(_LAUNCHER_LEAVES_S)
        os._exit(code)
    guard.announce(code)
    comm.Abort(code)
    raise AssertionError("unreachable")
