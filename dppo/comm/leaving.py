"""How a rank leaves MPI, and how a job ends, also where ranks may have died."""

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
"""Of Open MPI's ompi_mpi_state_t."""

_finalize = MPI.Finalize


def keep_running() -> None:
    """An environment that ends MPI would wait in that call for the other ranks, which do not come."""

    def refuse() -> NoReturn:
        raise RuntimeError("MPI.Finalize() was called, but dppo's ranks still work with MPI: leave the call out")

    MPI.Finalize = refuse


@functools.cache  # asked every second, and each CDLL makes classes
def _open_mpi_state() -> ctypes.c_int | None:
    """How far Open MPI is; None with another MPI."""
    with contextlib.suppress(OSError, ValueError):
        return ctypes.c_int.in_dll(ctypes.CDLL(MPI.__file__), "ompi_mpi_state")
    return None


def left_mpi() -> str:
    """Why this rank is lost to the others, where its environment has called MPI_Finalize in C."""
    gone = MPI.Is_finalized()
    if survives_deaths() and not gone and (state := _open_mpi_state()) is not None:
        gone = state.value >= _FINALIZE_STARTED  # `gone` comes only after it has waited for the others
    return "its environment has called MPI_Finalize, which ends its part in the job" if gone else ""


def leave(code: int) -> NoReturn:
    """Ends this process. Where ranks may have died MPI_Finalize could wait for them; a process that was spawned tries
    all the same, for a moment: else mpirun complains and says 1, though all went well.
    """
    guard.announce(code)
    if not survives_deaths():
        _finalize()  # not at Python's very end: an environment's threads may keep that from coming
        for child in sys.modules["multiprocessing"].active_children() if "multiprocessing" in sys.modules else ():
            child.terminate()  # Python would wait for those that no close() has ended
        sys.exit(code)
    _remove_shared_memory()
    if is_spawned():
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        time.sleep(_OTHERS_LEAVE_S)  # with them still there it waits for them, who do not come
        signal.alarm(_FINALIZE_LIMIT_S)
        _finalize()
    os._exit(code)


def _remove_shared_memory() -> None:
    """Open MPI leaves the files of processes that were spawned in /dev/shm; those who have them mapped need no name."""
    with contextlib.suppress(OSError), open("/proc/self/maps") as file:
        mapped = {line.split(maxsplit=5)[5].strip() for line in file if "/sm_segment." in line}
        for path in mapped:
            with contextlib.suppress(OSError):
                os.unlink(path)


def die() -> NoReturn:
    """This rank leaves as if it had been killed: survivors go on. An exit with a code would make mpirun end the job, or
    hang.
    """
    end_output()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def end_job(comm: MPI.Comm, code: int) -> NoReturn:
    """Ends all ranks. Under ULFM MPI_Abort ends only some, and mpirun may hang: the launcher is told to. Where it waits
    for a node that does not answer, it is killed, and the batch system ends what is left there.
    """
    end_output()
    if survives_deaths() and (pid := processes.launcher()) is not None:
        # told to end, it ends this process as well: somebody else must see whether it does
        if not guard.end_job(code):
            subprocess.Popen(["/bin/sh", "-c", _KILLER.format(pid=pid)], start_new_session=True)
            os.kill(pid, signal.SIGTERM)
        time.sleep(_LAUNCHER_LEAVES_S)
        os._exit(code)
    guard.announce(code)
    comm.Abort(code)
    raise AssertionError("unreachable")
