"""Environments: many at once behind one narrow interface (`vector`), tiny ones with known values (`probes`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dppo.envs.solver import Solver as Solver

_HOMES = {"Solver": "dppo.envs.solver", "child_environment": "dppo.cluster.startup"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dppo.envs' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
