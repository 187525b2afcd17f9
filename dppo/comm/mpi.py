"""The only import of mpi4py. Importing this module does not start MPI, as importing mpi4py would; `start` does."""

from __future__ import annotations

import functools

from dppo.cluster.launcher import survives_deaths
from dppo.cluster.startup import no_mpi

try:
    import mpi4py

    _starts_by_itself = mpi4py.rc.initialize
    mpi4py.rc.initialize = False
    mpi4py.rc.finalize = not survives_deaths()  # MPI_Finalize may hang once a rank has died
    try:
        from mpi4py import MPI as MPI
    finally:
        mpi4py.rc.initialize = _starts_by_itself
except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is there, and no MPI
    raise no_mpi(error) from None

Comm = MPI.Comm
"""The type of communicators, for modules that pass one on and use nothing else of MPI."""


def start() -> None:
    """Starts MPI, unless it has started."""
    if not MPI.Is_initialized():
        MPI.Init_thread()


@functools.cache  # such a process may free the communicator by which it can be told
def is_spawned() -> bool:
    """Returns whether other ranks have started this process, in place of a dead one."""
    return bool(MPI.Comm.Get_parent() != MPI.COMM_NULL)
