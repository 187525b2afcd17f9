"""python -m dppo.run: how a run starts, continues after deaths, and ends. `train` does the same from Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dppo.comm.mpi import Comm
    from dppo.config import Config
    from dppo.rundir.summary import Summary
    from dppo.seams import Recorder


def train(
    config: Config,
    comm: Comm | None = None,
    *,
    notes: Sequence[str] = (),
    recorders: Sequence[Recorder] = (),
    quiet: bool = False,
) -> Summary:
    """Trains as `config` says, on all ranks of `comm`; every rank of `comm` must call this. Returns the summary, on
    every rank that is left.

    Args:
      config: with `resume`, all settings are those of the run in `run_dir`, except the settings given here that differ
        from the default and that a resume may change.
      comm: COMM_WORLD if None; a process without mpirun is a world of one.
      notes: lines to show before the run.
      recorders: hear of the run on rank 0 (docs/recorders.md). Every rank gives its own: if rank 0 dies, those of
        another rank go on.
      quiet: rank 0 prints nothing but warnings.

    Raises:
      ValueError: on every rank: impossible settings, a missing environment, or a run directory that holds a run.
      ImportError: there is no MPI.
    """
    from dppo.cluster.startup import prepare

    prepare()
    from dppo.run import command

    return command.train(config, comm, notes=notes, recorders=recorders, quiet=quiet)
