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

CHUNK = 500
"""Lines of metrics.jsonl that become arrays together."""


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
    table = _Table()
    chunk: list[dict[str, Any]] = []
    damaged = 0
    try:
        for text in read_lines(folder / paths.METRICS, folder):
            if not text.endswith(b"\n"):
                break  # the run is writing it, or was killed
            try:
                values = parse_json(text)
                is_right = math.isfinite(values["env_steps"])
            except (ValueError, KeyError, TypeError, OverflowError):
                is_right = False
            if not is_right:
                damaged += 1
                continue
            chunk.append(values)
            if len(chunk) == CHUNK:
                table.add(chunk)
                chunk = []
    except FileNotFoundError:
        history.notes.append(f"there is no {paths.METRICS} yet")
    except RefusedFileError as error:
        history.notes.append(str(error))
    except OSError as error:
        history.notes.append(f"{paths.METRICS} cannot be read: {error.strerror or error}")
    if damaged:
        history.notes.append(f"{damaged} damaged line(s) of {paths.METRICS} are left out")
    table.add(chunk)
    table.finish(history)


class _Table:
    """The lines of metrics.jsonl that were read so far, as columns."""

    def __init__(self) -> None:
        self._columns: dict[str, list[np.ndarray]] = {}
        self._lengths: dict[str, int] = {}
        self._lines = 0
        self._returns, self._counts = array("d"), array("q")
        self._staleness: list[int] = []

    def add(self, lines: list[dict[str, Any]]) -> None:
        """Adds a chunk of lines."""
        for line in lines:
            self._counts.append(self._add_returns(_list(line.pop("returns", None))))
            if "staleness" in line:
                self._add_staleness(line)
        self._add_columns(lines, "")
        self._lines += len(lines)

    def _add_returns(self, returns: list[Any]) -> int:
        before = len(self._returns)
        try:
            self._returns.extend(returns)
        except (TypeError, OverflowError):  # null, or nothing of ours
            del self._returns[before:]
            self._returns.extend(value for value in returns if _is_number(value))
        return len(self._returns) - before

    def _add_staleness(self, line: dict[str, Any]) -> None:
        counts = [int(n) if _is_number(n) and n >= 0 else 0 for n in _list(line.pop("staleness"))]
        self._staleness += [0] * (len(counts) - len(self._staleness))
        whole, so_far = sum(counts), 0
        for versions, count in enumerate(counts):
            self._staleness[versions] += count
            if so_far < 0.95 * whole <= so_far + count:
                line["staleness_p95"] = versions
            if count:
                line["staleness_max"] = versions
            so_far += count

    def _add_columns(self, lines: list[dict[str, Any]], where: str) -> None:
        """Adds the numbers of the lines to the columns; those that had none in lines before are filled up with NaN."""
        for key in dict.fromkeys(key for line in lines for key in line):
            values = [line.get(key) for line in lines]
            if any(isinstance(value, dict) for value in values):
                tables = [value if isinstance(value, dict) else {} for value in values]
                self._add_columns(tables, f"{where}{key}/")
                continue
            try:
                numbers = np.array(values, float)
            except (ValueError, TypeError, OverflowError):  # no numbers, or of hundreds of digits
                numbers = np.array([value if _is_number(value) else math.nan for value in values], float)
            if numbers.ndim == 1 and np.isfinite(numbers).any():
                self._put(where + key, numbers)

    def _put(self, name: str, numbers: np.ndarray) -> None:
        parts = self._columns.setdefault(name, [])
        missing = self._lines - self._lengths.get(name, 0)
        parts += [np.full(missing, math.nan), numbers] if missing else [numbers]
        self._lengths[name] = self._lines + len(numbers)

    def finish(self, history: History) -> None:
        """Makes columns of equal length in the order of steps, and places each episode within its iteration."""
        history.staleness = np.array(self._staleness, float)
        if not self._lines:
            return
        for name in self._columns:
            self._put(name, np.empty(0))
        arrays = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        steps, counts, returns = arrays["env_steps"], np.array(self._counts), np.array(self._returns)
        before = np.concatenate(([0.0], steps[:-1]))
        number = np.arange(len(returns)) - np.repeat(np.cumsum(counts) - counts, counts)
        share = (number + 1) / np.repeat(np.maximum(counts, 1), counts)
        history.episode_steps = np.repeat(before, counts) + share * np.repeat(steps - before, counts)
        history.episode_returns = returns
        order = np.argsort(steps, kind="stable")
        history.columns = {name: column[order] for name, column in arrays.items()}


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
