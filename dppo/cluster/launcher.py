"""Reads what mpirun, srun and other launchers say about this process in its environment. No other module reads their
variables; only slurm.py reads those of Slurm.
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Mapping

from dppo.bounds import digits
from dppo.cluster import slurm

_SIZE, _LOCAL_SIZE = "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"
_LOCAL_SIZES = (_LOCAL_SIZE, "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE")
_LAUNCHED = (_SIZE, "PMIX_RANK", "PMI_RANK")
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")
_TIES = ("PMIX_NAMESPACE", "PMIX_SERVER_URI", "PMI_FD", "PMI_PORT")
_PROGRAMS = "OMPI_NUM_APP_CTX"
_LOCAL_RANKS = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK", "PALS_LOCAL_RANKID")
_OF_LAUNCHERS = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "OPAL_", "MV2_", "MPI_LOCAL", "HYDI_", "HYDRA_", "PALS_")
_PARAMETERS = ("OMPI_MCA_", "PRTE_MCA_", "PMIX_MCA_", "OMPI_ALLOW_RUN_AS_ROOT")
_OF_THE_JOB = frozenset({
    "OMPI_MCA_mpi_ft_enable", "OMPI_MCA_initial_wdir", "OMPI_MCA_num_procs", "OMPI_MCA_cpu_type", "OMPI_MCA_PREFIXES",
    "OMPI_MCA_pml", "OMPI_MCA_btl",
})  # fmt: skip
"""Parameters that the launcher sets for each job, and the transports that startup.py chooses for this one."""
_FAULT_TOLERANCE = "OMPI_MCA_mpi_ft_enable"
_TRANSPORTS = ("OMPI_MCA_pml", "OMPI_MCA_coll", "OMPI_MCA_osc")


def is_launched() -> bool:
    """Returns whether mpirun or srun has started this process."""
    return any(name in os.environ for name in _LAUNCHED)


def is_by_mpirun() -> bool:
    """Returns whether Open MPI's mpirun has started this process."""
    return _SIZE in os.environ


def is_first() -> bool:
    """Returns whether the launcher calls this process the first, MPI's rank 0 or not; True without a launcher."""
    return all(rank == "0" for rank in _ranks())


def _ranks() -> list[str]:
    """Returns this process's rank by each launcher that says one. Slurm comes last: it counts mpirun's daemons."""
    said = (*(os.environ.get(name) for name in _RANKS), slurm.rank_in_step())
    return [rank for rank in said if rank is not None]


@functools.cache  # an environment may clear os.environ
def survives_deaths() -> bool:
    """Returns whether this job was started so that ranks may die: `mpirun --with-ft ulfm`."""
    return os.environ.get(_FAULT_TOLERANCE, "").lower() in ("1", "true")


@functools.cache  # leave_job() deletes the variable that marks a replacement
def rank_name() -> str:
    """Returns the name of this process in messages, without a call of MPI."""
    rank = next(iter(_ranks()), None)
    job = os.environ.get("PMIX_NAMESPACE", "").rpartition("@")
    if rank is None:
        return f"the process on {socket.gethostname()}"
    if job[1] and job[2] != "1":
        return f"a replacement for a dead rank on {socket.gethostname()}"
    return f"rank {rank} on {socket.gethostname()}"


def local_ranks() -> int:
    """Returns the number of ranks on this node, as the launcher says; 1 where there is no launcher."""
    for name in _LOCAL_SIZES:
        if (ranks := digits(os.environ.get(name, ""), slurm.MOST_RANKS)) is not None:
            return max(1, ranks)
    return slurm.tasks_on_this_node()


def on_one_node() -> bool:
    """Returns whether all ranks of this job are on this node, as the launcher says."""
    size = os.environ.get(_SIZE)
    if size is not None:
        return size == os.environ.get(_LOCAL_SIZE)
    return slurm.nodes_of_step() <= 1


def num_programs() -> int | None:
    """Returns the number of programs that mpirun has started together (MPMD); None if the launcher does not say it."""
    return digits(os.environ.get(_PROGRAMS, ""), slurm.MOST_RANKS)


def local_rank() -> int:
    """Returns this rank's number among those of its node, as the launcher says; 0 where there is no launcher."""
    said = (os.environ.get(name) for name in _LOCAL_RANKS)
    return next((rank for rank in (digits(text or "", slurm.MOST_RANKS) for text in said) if rank is not None), 0)


def without_job(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns `environ` without what a launcher has put into it for this rank: with these variables another program
    would join the job, or refuse to start. Open MPI's parameters stay, except those that hold for this job only.
    """
    return {
        name: value
        for name, value in environ.items()
        if (name.startswith(_PARAMETERS) and name not in _OF_THE_JOB) or not name.startswith(_OF_LAUNCHERS)
    }


def check_launcher(started: int) -> None:
    """Refuses many processes of which each is alone: they would train one and the same run many times over.

    Args:
      started: the number of ranks in MPI's world.

    Raises:
      ValueError: each is alone; the message gives the repair.
    """
    sizes = (("mpirun", os.environ.get(_SIZE)), ("srun", slurm.tasks_of_step()), ("mpirun", os.environ.get("PMI_SIZE")))
    launcher, asked = next(((name, size) for name, size in sizes if size is not None), ("", ""))
    if started > 1 or (digits(asked, slurm.MOST_RANKS) or 0) <= 1:
        return
    alone = f"{launcher} started {asked} processes, but each is an MPI world of its own"
    if launcher == "srun":
        if slurm.in_a_shell():  # a user may start one rank from it for a look
            return
        raise ValueError(
            f"{alone}: use mpirun inside the allocation, or srun --mpi=pmix (for MPICH and its kin"
            " --mpi=pmi2; srun --mpi=list names what this Slurm has). If srun has not started this process,"
            f" {slurm.STEP_TASKS} is left over in its environment: unset it"
        )
    raise ValueError(
        f"{alone}: it belongs to another MPI than mpi4py; compare mpirun --version with"
        " python -m mpi4py --mpi-lib-version"
    )


def leave_job() -> None:
    """Deletes the variables by which this process, or a child of it, would join the job as the rank that started it."""
    for name in [name for name in os.environ if name.startswith(_TIES)]:
        del os.environ[name]


def settings_of_new_ranks() -> dict[str, str]:
    """Returns the variables that a process that replaces a dead rank must share with this one: Open MPI's parameters,
    and threads, because it would work out another share of the cores.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name.endswith("_NUM_THREADS") or name.startswith("OMPI_MCA_btl") or name in (*_TRANSPORTS, _FAULT_TOLERANCE)
    }
