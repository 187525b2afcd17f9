"""The one import of mpi4py. It does not start MPI, as that of mpi4py would: `start` does."""

from __future__ import annotations

from dppo.cluster.launcher import survives_deaths
from dppo.startup import no_mpi

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
"""For those who hand one on and know nothing else of MPI."""


def start() -> None:
    """Starts MPI, unless somebody has."""
    if not MPI.Is_initialized():
        MPI.Init_thread()


def is_spawned() -> bool:
    """Whether other ranks have started this process, in place of a dead one."""
    return bool(MPI.Comm.Get_parent() != MPI.COMM_NULL)
