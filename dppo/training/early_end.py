"""Whether a run ends by its evaluations, from their results alone: a run that goes on decides as its resume does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dppo.config import EvalConfig
from dppo.rundir.evaluations import read_evaluations, return_of, waiting
from dppo.rundir.summary import FINISHED, TARGET


class Stop(NamedTuple):
    """The end of a run."""

    exit: str
    """One of the states of a run that has ended."""
    setting: str
    """The name of the setting by which it ends."""


def is_due(env_steps: int, last: int, every: int) -> bool:
    """Returns whether a boundary at `env_steps` is the first one at or past a multiple of `every`.

    Args:
      last: the steps of the last boundary that was due; 0: none was.
    """
    return env_steps // every > last // every


def early_end(settings: EvalConfig, lines: Sequence[dict[str, Any]]) -> Stop | None:
    """Returns why a run ends after the evaluations `lines`, which are in the order of their steps; None: it goes on."""
    returns = [-math.inf if (value := return_of(line)) is None else value for line in lines]
    best = max(returns, default=-math.inf)
    if settings.target_return is not None and best >= settings.target_return:
        return Stop(TARGET, "eval.target-return")
    if settings.patience and returns and len(returns) - 1 - returns.index(best) >= settings.patience:
        return Stop(FINISHED, "eval.patience")
    return None


def end_at(settings: EvalConfig, lines: Sequence[dict[str, Any]], env_steps: int, stop: Stop | None) -> Stop | None:
    """Returns why a run ends at a boundary, whose evaluations, as far as they were due, are in `lines`.

    Args:
      stop: why it ends without evaluations; None: it does not.
    """
    if stop is None:
        is_decided_here = any(line["env_steps"] == env_steps for line in lines)
        return early_end(settings, _before(lines, env_steps)) if is_decided_here else None
    # training is over: the target counts, and patience has nothing left to spare
    early = early_end(settings, _before(lines, env_steps + 1))
    return early if stop.exit == FINISHED and early is not None and early.exit == TARGET else stop


def end_on_disk(run_dir: Path, settings: EvalConfig, env_steps: int, stop: Stop | None) -> Stop | None:
    """Returns why a run whose newest checkpoint is at `env_steps` has ended; None if it has not, or if evaluations that
    are due are missing. `stop` is as for `end_at`.
    """
    if not settings.every:
        return stop
    if waiting(run_dir, env_steps):
        return None
    return end_at(settings, read_evaluations(run_dir), env_steps, stop)


def _before(lines: Sequence[dict[str, Any]], env_steps: int) -> list[dict[str, Any]]:
    return [line for line in lines if line["env_steps"] < env_steps]
