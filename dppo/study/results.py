"""Groups many runs by the settings in which they differ, and sums up each group."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dppo.rundir.runs import Run, read_curve
from dppo.rundir.summary import TARGET
from dppo.settings.values import as_dict
from dppo.study.spec import as_text, flatten
from dppo.study.statistics import bootstrap_interval, interquartile_mean

NO_SETTINGS = ("seed", "run-dir", "resume", "dry-run", "time-limit-s", "log", "checkpoint", "trajectories")
"""Flags and sections in which runs of one setting may differ: they change results by chance only."""

POINTS = 100
"""The number of points of a learning curve."""


@dataclass(frozen=True)
class Setting:
    """Runs that differ by seed only; figures are of the runs that ended by themselves."""

    values: dict[str, Any]
    """Every setting in which the report's runs differ, by flag's name."""
    label: str
    """As many of the values, as text, as tell this setting from the others."""
    runs: list[Run]
    env: str

    @property
    def ended(self) -> list[Run]:
        return [run for run in self.runs if run.ended]

    @property
    def returns(self) -> np.ndarray:
        """The final return_mean_100, [R] float64, of the runs that ended and have one."""
        numbers = [run.number("return_mean_100") for run in self.ended]
        return np.array([n for n in numbers if n is not None])

    @property
    def has_target(self) -> bool:
        """Whether all runs have a target_return to reach."""
        return all(run.config is not None and run.config.target_return is not None for run in self.runs)

    @property
    def reached(self) -> int:
        """The number of runs that have reached their target."""
        return sum(run.state == TARGET for run in self.runs)

    def median(self, key: str) -> float | None:
        """Returns the median of env_steps or train_s, up to the target where there is one: infinite where half of the
        runs or more have not reached it. None where no run has ended.
        """
        numbers = [
            math.inf if self.has_target and run.state != TARGET else number
            for run in self.ended
            if (number := run.number(key)) is not None
        ]
        return float(np.median(numbers)) if numbers else None

    def median_return(self) -> float | None:
        """Returns the median of the final returns."""
        return float(np.median(self.returns)) if len(self.returns) else None

    def iqm(self) -> float | None:
        """Returns the interquartile mean of the final returns."""
        return float(interquartile_mean(self.returns)) if len(self.returns) else None

    def interval(self) -> tuple[float, float] | None:
        """Returns the 95% bootstrap interval of `iqm`; None for fewer than two runs, which show no spread."""
        if len(self.returns) < 2:
            return None
        return bootstrap_interval(self.returns, interquartile_mean, np.random.default_rng(0))


def by_setting(runs: Iterable[Run], first: Sequence[str] = ()) -> list[Setting]:
    """Groups runs by setting, best first: within an environment the setting that reaches its target in fewest steps,
    or has the highest interquartile mean of the final returns. Leaves out runs whose settings are not known.

    Args:
      first: names for labels to use first, where they suffice: those that a sweep varies.
    """
    known = [(run, flatten(as_dict(run.config))) for run in runs if run.config is not None]
    names = list(dict.fromkeys(name for _, settings in known for name in settings))
    names = [n for n in names if n not in NO_SETTINGS and n.split(".")[0] not in NO_SETTINGS]
    differing = [n for n in names if any(s.get(n) != known[0][1].get(n) for _, s in known)]
    grouped: dict[tuple[str, ...], list[tuple[Run, dict[str, Any]]]] = {}
    for run, settings in known:
        grouped.setdefault(tuple(repr(settings.get(n)) for n in differing), []).append((run, settings))
    groups = list(grouped.values())
    telling = _telling([settings for ((_, settings), *_) in groups], differing, first)
    out = []
    for group in groups:
        settings = group[0][1]
        label = ", ".join(f"{n}={as_text(settings.get(n, 'default'))}" for n in telling) or settings["env"]
        values = {n: settings.get(n) for n in differing}
        out.append(Setting(values, label, [run for run, _ in group], settings["env"]))
    return sorted(out, key=_rank)


def _telling(groups: list[dict[str, Any]], differing: list[str], first: Sequence[str]) -> list[str]:
    """Returns as few names as tell all groups apart. A name that follows from those before it (as loss from mode) is
    not among them.
    """
    ordered = [n for n in first if n in differing] + [n for n in differing if n not in first]
    told: list[str] = []
    parts = 1
    for name in ordered:
        now = len({tuple(repr(settings.get(n)) for n in (*told, name)) for settings in groups})
        if now > parts:
            told.append(name)
            parts = now
    return told


def _rank(setting: Setting) -> tuple[str, float, float, str]:
    steps = setting.median("env_steps") if setting.has_target else 0.0
    reached = setting.iqm()
    return (
        setting.env,
        math.inf if steps is None else steps,
        math.inf if reached is None else -reached,
        setting.label,
    )


class Curves:
    """The learning curves of runs, each read once."""

    def __init__(self) -> None:
        self._read: dict[Path, tuple[np.ndarray, np.ndarray, int]] = {}

    def __call__(self, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        """Returns steps [I] and returns [I] of a run."""
        return self._of(folder)[:2]

    def damaged(self, folder: Path) -> int:
        """Returns the number of damaged lines."""
        return self._of(folder)[2]

    def _of(self, folder: Path) -> tuple[np.ndarray, np.ndarray, int]:
        if folder not in self._read:
            self._read[folder] = read_curve(folder)
        return self._read[folder]


def learning_curve(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray | None:
    """Computes the IQM of return_mean_100 over env_steps, with its bootstrap band, on a grid common to all runs.

    Every run is interpolated linearly between its own first and last point, and counts nowhere else; where fewer than
    half of the runs count, there is no value.

    Args:
      curves: steps [I], ascending, and returns [I] of each run.

    Returns:
      [4, POINTS] float64: steps, IQM, lower and upper end; None where no run has a point.
    """
    curves = [(x, y) for x, y in curves if len(x)]
    if not curves:
        return None
    grid = np.linspace(min(x[0] for x, _ in curves), max(x[-1] for x, _ in curves), POINTS)
    there = np.array([np.interp(grid, x, y, left=np.nan, right=np.nan) for x, y in curves])
    out = np.full((4, POINTS), np.nan)
    out[0] = grid
    for i, column in enumerate(there.T):
        values = column[~np.isnan(column)]
        if len(values) and 2 * len(values) >= len(curves):
            # the same draws at every step: each resample is a set of whole runs
            interval = bootstrap_interval(values, interquartile_mean, np.random.default_rng(0))
            out[1:, i] = interquartile_mean(values), *interval
    return out
