"""What mpirun, srun and their kin say of this process in its environment."""

from __future__ import annotations

import os

from dppo import startup
from dppo.bounds import digits


def check_launcher(started: int) -> None:
    """Where many processes were started, but each is alone, they would train one and the same run many times over.

    Args:
      started: ranks of MPI's world.

    Raises:
      ValueError: with the repair.
    """
    asked = next((n for n in ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "PMI_SIZE") if n in os.environ), None)
    if started > 1 or asked is None or (digits(os.environ[asked], startup.MOST_RANKS) or 0) <= 1:
        return
    alone = f"{os.environ[asked]} processes, but each is an MPI world of its own"
    if asked == "SLURM_STEP_NUM_TASKS":
        if "SLURM_PTY_PORT" in os.environ:  # the shell of srun --pty, from which one rank may be started for a look
            return
        raise ValueError(
            f"srun started {alone}: use mpirun inside the allocation, or srun --mpi=pmix (for MPICH and its kin"
            " --mpi=pmi2; srun --mpi=list names what this Slurm has). If srun has not started this process,"
            " SLURM_STEP_NUM_TASKS is left over in its environment: unset it"
        )
    raise ValueError(
        f"mpirun started {alone}: it belongs to another MPI than mpi4py; compare mpirun --version with"
        " python -m mpi4py --mpi-lib-version"
    )
