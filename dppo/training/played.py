"""The episodes of an evaluation: in which cases they are played, and their figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from dppo.config import Config
from dppo.errors import UsageError


class Played(NamedTuple):
    """An episode of an evaluation."""

    episode_return: float
    length: int
    ended: bool
    """False where it was cut, at the limit of steps or by a failure; the return is then that until there."""


def in_cases(config: Config, name: str | None = None) -> dict[str, Config]:
    """Returns the configuration of each case, by its name, or only that of the case `name`; {"": config} for a run
    without cases. Raises UsageError where there is no such case.
    """
    found = {case["name"]: replace(config, cases=(case,)) for case in config.cases} or {"": config}
    if name is None:
        return found
    if not config.cases or name not in found:
        known = ", ".join(found) or "no cases: leave --case out"
        raise UsageError(f"there is no case {name!r}: the run has {known}")
    return {name: found[name]}


def figures(played: Sequence[Played]) -> dict[str, Any]:
    """Returns the figures of an evaluation: mean, median, min, max and std of the returns, and length_mean, of the
    episodes that ended; how many episodes there are, how many ended and how many were cut, and the mean return of the
    latter until there. What is of no episode is None.
    """
    ended = [p for p in played if p.ended]
    cut = [p.episode_return for p in played if not p.ended]
    returns = [p.episode_return for p in ended]
    return {
        **{name: _figure(name, returns) for name in ("mean", "median", "min", "max", "std")},
        "episodes": len(played),
        "ended": len(ended),
        "length_mean": _figure("mean", [p.length for p in ended]),
        "cut": len(cut),
        "cut_return_mean": _figure("mean", cut),
    }


def _figure(name: str, values: Sequence[float]) -> float | None:
    """Returns NumPy's `name` of `values`; None where there are no values."""
    return float(getattr(np, name)(values)) if values else None
