"""dppo: reinforcement learning on HPC clusters with MPI.

Lazy: threads and Open MPI's parameters must be set before NumPy, torch and MPI are imported (startup.py), and a
command should not import what it does not need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dppo.config import Config as Config
    from dppo.evaluate import Policy as Policy
    from dppo.evaluate import load_policy as load_policy
    from dppo.journal import Summary as Summary
    from dppo.run import train as train
    from dppo.storage.dataset import Trajectories as Trajectories
    from dppo.storage.dataset import open_trajectories as open_trajectories

__version__ = "0.1.0"

__all__ = ["Config", "Policy", "Summary", "Trajectories", "load_policy", "open_trajectories", "train"]

_HOMES = {
    "Config": "dppo.config",
    "Policy": "dppo.evaluate",
    "Summary": "dppo.journal",
    "Trajectories": "dppo.storage.dataset",
    "load_policy": "dppo.evaluate",
    "open_trajectories": "dppo.storage.dataset",
    "train": "dppo.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dppo' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
