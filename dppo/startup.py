"""What must be settled before torch, NumPy and MPI are imported: threads, and Open MPI's parameters.

Uses the standard library only; run.py calls it first.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

early_signals: list[int] = []
"""SIGUSR1 and SIGTERM that came while the program was still starting."""

_LOCAL_RANKS = (
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
    "MV2_COMM_WORLD_LOCAL_SIZE",
    "SLURM_STEP_TASKS_PER_NODE",
)
_LAUNCHED = ("OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK")
_PR_SET_PDEATHSIG = 1
_TORCH_POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def note_early_signals() -> None:
    """Until training can save, a signal that asks to is only noted; by default it would kill."""
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda number, frame: early_signals.append(number))


def die_with_launcher() -> None:
    """A rank that is stuck for ever must not outlive its job: when the launcher has ended, the kernel kills it."""
    if any(name in os.environ for name in _LAUNCHED) and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def survives_deaths() -> bool:
    """Whether this job was started so that ranks may die: `mpirun --with-ft ulfm`."""
    return os.environ.get("OMPI_MCA_mpi_ft_enable", "").lower() in ("1", "true")  # noqa: SIM112


def local_ranks() -> int:
    """Ranks on this node, as the launcher says; 1 where there is none."""
    for name in _LOCAL_RANKS:
        digits = os.environ.get(name, "").split("(")[0].split(",")[0]
        if digits.isdigit():
            return max(1, int(digits))
    return 1


def limit_threads() -> int:
    """Gives this rank's thread pools its share of the cores that it may run on; a setting of the user's stays.

    torch gets the share. NumPy's BLAS gets one thread: at the closed-form network's sizes a second one brings nothing
    on an idle machine and costs a factor of ten on a busy one, where its partner spins without a core.

    Returns:
      The share.
    """
    share = max(1, len(os.sched_getaffinity(0)) // local_ranks())
    for name in _TORCH_POOLS:
        os.environ.setdefault(name, str(share))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    return share


def set_mpi_parameters() -> None:
    """Open MPI parameters that the user need not know; a setting of the user's stays.

    coll ^han: with HAN an Allreduce during a rank's death may return wrong numbers. osc ^ucx: silences errors,
    one-sided communication is not used. On one node ob1 over shared memory starts twice as fast as the search for a
    network. A rank that no launcher has started needs no transport: its shared memory would stay in /dev/shm for ever.
    """
    environ = os.environ
    environ.setdefault("OMPI_MCA_coll", "^han")
    environ.setdefault("OMPI_MCA_osc", "^ucx")
    size = environ.get("OMPI_COMM_WORLD_SIZE")
    if size is None or size == environ.get("OMPI_COMM_WORLD_LOCAL_SIZE"):
        environ.setdefault("OMPI_MCA_pml", "ob1")
        launched = any(name in environ for name in _LAUNCHED)
        environ.setdefault("OMPI_MCA_btl", "self,sm,tcp" if launched else "self")
