"""The environment variables for a program that an environment starts itself, such as a simulator's own mpirun."""

from __future__ import annotations

import os

from dppo.cluster.launcher import local_rank, local_ranks, without_job
from dppo.startup import limit_threads, own_cores

CORES = "DPPO_CORES"
"""The variable with the numbers of the cores, separated by commas, as `taskset -c` and `numactl -C` take them."""


def child_environment() -> dict[str, str]:
    """Returns this process's environment variables without those of the job's MPI, so that a program that is started
    with them is no rank of this job, and may be an mpirun of its own. DPPO_CORES has the cores of this rank's share.

        subprocess.run(["mpirun", "-n", "2", "./solver"], env=child_environment())
    """
    environ = without_job(os.environ)
    environ[CORES] = ",".join(map(str, share_of(sorted(own_cores()), local_rank(), local_ranks(), limit_threads())))
    return environ


def share_of(cores: list[int], rank: int, ranks: int, share: int) -> list[int]:
    """Returns the cores of one rank, `share` of them, or one that it shares with others.

    Args:
      cores: the cores on which the rank may run: its own, or those of all ranks of its node.
      rank: its number among the `ranks` ranks of its node.
    """
    if share >= len(cores):
        return cores
    first = rank * share if ranks * share <= len(cores) else rank * share % len(cores)
    return cores[first : first + share]
