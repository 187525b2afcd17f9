"""Reads what a run has written while it trained, as columns over its iterations."""

from __future__ import annotations

import contextlib
import math
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dppo.errors import RefusedFileError
from dppo.files import parse_json, read_lines
from dppo.rundir import paths
from dppo.rundir.recorders import read_json


@dataclass
class History:
    """A run's iterations."""

    columns: dict[str, np.ndarray] = field(default_factory=dict)
    """Each key of metrics.jsonl that holds numbers, [I] float64, over the iterations; NaN: null, or not there. Those of
    tables as table/name/key; staleness_p95 and staleness_max are of the list of counts."""
    staleness: np.ndarray = field(default_factory=lambda: np.empty(0))
    """Gradients of each staleness, [K], over the whole run."""
    episode_steps: np.ndarray = field(default_factory=lambda: np.empty(0))
    episode_returns: np.ndarray = field(default_factory=lambda: np.empty(0))
    """Environment steps at the end of each episode, as far as they are known, and returns: [E] float64."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """The lines of evaluations.jsonl, in the order of their steps."""
    attempts: list[dict[str, Any]] = field(default_factory=list)
    """The starts of the run, from versions.json."""
    notes: list[str] = field(default_factory=list)
    """What could not be read."""

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def steps(self) -> np.ndarray:
        """env_steps, [I]."""
        return self.column("env_steps")

    def column(self, key: str) -> np.ndarray:
        """Returns a column; NaN throughout where no line has it."""
        if key in self.columns:
            return self.columns[key]
        return np.full(len(self.columns.get("env_steps", ())), np.nan)

    def has(self, key: str) -> bool:
        """Returns whether a column has a number anywhere."""
        return bool(np.isfinite(self.column(key)).any())


def read_history(folder: Path) -> History:
    """Reads metrics.jsonl, evaluations.jsonl and versions.json of a run. Names files that are damaged in `notes`."""
    history = History()
    _read_metrics(folder, history)
    history.evaluations = _read_evaluations(folder, history.notes)
    attempts = read_json(folder / paths.VERSIONS).get("attempts")
    if isinstance(attempts, list):
        history.attempts = [attempt for attempt in attempts if isinstance(attempt, dict)]
    elif (folder / paths.VERSIONS).exists():
        history.notes.append(f"{paths.VERSIONS} is damaged: versions, commands and resumes are not known")
    return history


def _read_metrics(folder: Path, history: History) -> None:
    columns: dict[str, array[float]] = {}
    returns, counts = array("d"), array("q")
    staleness: list[int] = []
    lines = damaged = 0
    try:
        for text in read_lines(folder / paths.METRICS, folder):
            if not text.endswith(b"\n"):
                break  # the run is writing it, or was killed
            try:
                values = parse_json(text)
                steps = float(values["env_steps"])
            except (ValueError, KeyError, TypeError, OverflowError):
                damaged += 1
                continue
            if not math.isfinite(steps):
                damaged += 1
                continue
            ended = [r for r in _list(values.pop("returns", None)) if _is_number(r)]
            returns.extend(ended)
            counts.append(len(ended))
            if "staleness" in values:
                _add_staleness(values, staleness)
            _add(columns, values, lines, "")
            lines += 1
    except FileNotFoundError:
        history.notes.append(f"there is no {paths.METRICS} yet")
    except RefusedFileError as error:
        history.notes.append(str(error))
    except OSError as error:
        history.notes.append(f"{paths.METRICS} cannot be read: {error.strerror or error}")
    if damaged:
        history.notes.append(f"{damaged} damaged line(s) of {paths.METRICS} are left out")
    _finish(history, columns, lines, np.array(returns), np.array(counts, dtype=np.int64))
    history.staleness = np.array(staleness, float)


def _add(columns: dict[str, array[float]], values: dict[str, Any], line: int, where: str) -> None:
    """Adds the numbers of a line to the columns; those that had none in lines before are filled up with NaN."""
    for key, value in values.items():
        if isinstance(value, float | int):
            column = columns.get(where + key)
            if column is None:
                column = columns[where + key] = array("d")
            if len(column) < line:
                column.extend([math.nan] * (line - len(column)))
            try:
                column.append(value)
            except OverflowError:  # a whole number of hundreds of digits
                column.append(math.nan)
        elif isinstance(value, dict):
            _add(columns, value, line, f"{where}{key}/")


def _add_staleness(values: dict[str, Any], total: list[int]) -> None:
    counts = [int(n) if _is_number(n) and n >= 0 else 0 for n in _list(values.pop("staleness"))]
    total += [0] * (len(counts) - len(total))
    for versions, count in enumerate(counts):
        total[versions] += count
    if whole := sum(counts):
        shares = np.cumsum(counts) / whole
        values["staleness_p95"] = int(np.searchsorted(shares, 0.95))
        values["staleness_max"] = max(k for k, count in enumerate(counts) if count)


def _finish(
    history: History, columns: dict[str, array[float]], lines: int, returns: np.ndarray, counts: np.ndarray
) -> None:
    """Makes columns of equal length in the order of steps, and places each episode within its iteration."""
    for column in columns.values():
        column.extend([math.nan] * (lines - len(column)))
    arrays = {key: np.array(column) for key, column in columns.items()}
    if not lines:
        return
    steps = arrays["env_steps"]
    before = np.concatenate(([0.0], steps[:-1]))
    number = np.arange(len(returns)) - np.repeat(np.cumsum(counts) - counts, counts)
    share = (number + 1) / np.repeat(np.maximum(counts, 1), counts)
    history.episode_steps = np.repeat(before, counts) + share * np.repeat(steps - before, counts)
    history.episode_returns = returns
    order = np.argsort(steps, kind="stable")
    history.columns = {key: column[order] for key, column in arrays.items()}


def _read_evaluations(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    lines: dict[float, dict[str, Any]] = {}
    damaged = 0
    with contextlib.suppress(FileNotFoundError):
        try:
            for text in read_lines(folder / paths.EVALUATIONS, folder):
                if not text.endswith(b"\n"):
                    break
                try:
                    line = parse_json(text)
                    is_right = _is_number(line["env_steps"])
                except (ValueError, KeyError, TypeError):
                    is_right = False
                if is_right:
                    lines[line["env_steps"]] = line
                else:
                    damaged += 1
        except RefusedFileError as error:
            notes.append(str(error))
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise
            notes.append(f"{paths.EVALUATIONS} cannot be read: {error.strerror or error}")
    if damaged:
        notes.append(f"{damaged} damaged line(s) of {paths.EVALUATIONS} are left out")
    return [lines[steps] for steps in sorted(lines)]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
