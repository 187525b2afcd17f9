"""python -m dppo.run: how a run starts, goes on after deaths, and ends. `train` is the same for Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dppo.comm.mpi import Comm
    from dppo.config import Config
    from dppo.rundir.summary import Summary


def train(config: Config, comm: Comm | None = None, *, notes: Sequence[str] = (), quiet: bool = False) -> Summary:
    """Trains as `config` says, on all ranks of `comm`; every rank of it must call this. Returns the summary, on every
    rank that is left.

    Args:
      config: with `resume` everything is as the run in `run_dir` has it; what differs from the default is given anew,
        where it may be.
      comm: COMM_WORLD if None; a process without mpirun is a world of one.
      notes: shown before the run.
      quiet: rank 0 prints nothing but warnings.

    Raises:
      ValueError: for impossible settings, a missing environment, a run directory that holds a run; on every rank.
      ImportError: there is no MPI.
    """
    from dppo.startup import prepare

    prepare()
    from dppo.run import command

    return command.train(config, comm, notes=notes, quiet=quiet)
