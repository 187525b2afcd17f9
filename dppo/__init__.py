"""dppo: reinforcement learning on HPC clusters with MPI.

Lazy: a command should not import what it does not need, and no import has a side effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dppo.config import VERSION as __version__  # noqa: F401

if TYPE_CHECKING:
    from dppo.comm.mpi import Comm
    from dppo.config import Config as Config
    from dppo.evaluate import Policy as Policy
    from dppo.evaluate import load_policy as load_policy
    from dppo.training.tracker import Summary as Summary
    from dppo.trajectories.reader import Trajectories as Trajectories
    from dppo.trajectories.reader import open_trajectories as open_trajectories

__all__ = ["Config", "Policy", "Summary", "Trajectories", "load_policy", "open_trajectories", "train"]

_HOMES = {
    "Config": "dppo.config",
    "Policy": "dppo.evaluate",
    "Summary": "dppo.training.tracker",
    "Trajectories": "dppo.trajectories.reader",
    "load_policy": "dppo.evaluate",
    "open_trajectories": "dppo.trajectories.reader",
}


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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dppo' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
