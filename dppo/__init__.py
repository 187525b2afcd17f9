"""dppo: reinforcement learning on HPC clusters with MPI.

A name is imported when it is first used: a command should not import what it does not need. No import has a side
effect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dppo.config import VERSION as __version__  # noqa: F401

if TYPE_CHECKING:
    from dppo.config import Config as Config
    from dppo.run import train as train
    from dppo.rundir.summary import Summary as Summary
    from dppo.training.policy import Policy as Policy
    from dppo.training.policy import load_policy as load_policy
    from dppo.trajectories.reader import Trajectories as Trajectories
    from dppo.trajectories.reader import open_trajectories as open_trajectories

__all__ = ["Config", "Policy", "Summary", "Trajectories", "load_policy", "open_trajectories", "train"]

_HOMES = {
    "Config": "dppo.config",
    "Policy": "dppo.training.policy",
    "Summary": "dppo.rundir.summary",
    "Trajectories": "dppo.trajectories.reader",
    "load_policy": "dppo.training.policy",
    "open_trajectories": "dppo.trajectories.reader",
    "train": "dppo.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dppo' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
