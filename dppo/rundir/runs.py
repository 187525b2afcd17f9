"""Reads run directories: where they are, each run's state and its learning curve."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dppo.config import Config
from dppo.errors import RefusedFileError
from dppo.files import LINE_BYTES, check_run_files, open_regular, parse_json, read_lines
from dppo.rundir import paths
from dppo.rundir.summary import ENDED, FAILED, PREEMPTED, RUNNING, STATES, read_summary
from dppo.settings.toml import load_config

SIGNS = (paths.CONFIG, paths.VERSIONS, paths.METRICS, paths.SUMMARY, paths.CHECKPOINTS)
"""Names that a run writes; two of them make a folder a run, because one alone may lie anywhere."""


class Run(NamedTuple):
    """A run, as its files describe it."""

    folder: Path
    state: str
    """The `exit` of summary.json; running: also where there is no summary.json yet; unreadable: summary.json or
    config.toml is damaged; missing: nothing is there."""
    reason: str = ""
    """The reason for a state that is not the end, as far as it is known."""
    config: Config | None = None
    summary: dict[str, Any] = {}  # noqa: RUF012 (never written to)
    is_damaged: bool = False
    """Whether the run's settings cannot be read, so that --resume cannot continue it."""

    @property
    def ended(self) -> bool:
        """Whether the run reached its own end."""
        return self.state in ENDED

    def number(self, key: str) -> float | None:
        """Returns a finite number of summary.json, or None."""
        value = self.summary.get(key)
        right = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
        return float(value) if right else None  # type: ignore[arg-type]


def find_runs(folder: Path) -> list[Path]:
    """Finds run directories at any depth, `folder` itself included; none lies within another."""
    found = []
    for place, below, files in os.walk(folder):
        below.sort()
        if sum(name in SIGNS for name in (*below, *files)) >= 2:
            found.append(Path(place))
            below.clear()
    return found


def read_run(folder: Path) -> Run:
    """Reads the state of a run."""
    if not any(os.path.lexists(folder / name) for name in SIGNS):
        return Run(folder, "missing", "nothing is there: it waits in the queue, or its job ended before dppo.run began")
    try:
        check_run_files(folder, (paths.SUMMARY, paths.METRICS))
    except OSError as error:
        return Run(folder, "unreadable", str(error), is_damaged=True)
    summary = read_summary(folder)
    try:
        config = load_config(folder)
    except ValueError as error:
        return Run(folder, "unreadable", f"its settings: {_first_line(error)}", None, summary, is_damaged=True)
    state = summary.get("exit")
    if not (folder / paths.SUMMARY).exists():
        state, summary = RUNNING, {}
    if state not in STATES:
        return Run(folder, "unreadable", "its summary.json is damaged", config, summary)
    reason = {
        RUNNING: f"its last sign of life is {_age(folder)} old; if it is in no queue, it was killed",
        PREEMPTED: "its state is saved",
        FAILED: _cause(str(summary.get("error") or "its job's output has the traceback")),
    }.get(state, "")
    return Run(folder, state, reason, config, summary)


def read_curve(folder: Path, key: str = "return_mean_100") -> tuple[np.ndarray, np.ndarray, int]:
    """Reads a run's learning curve, or another metric over steps: env_steps [I] and values [I], float64, of iterations
    that have a value. Also returns the number of damaged lines of metrics.jsonl, not counting a last line that was cut.
    """
    points: list[tuple[float, float]] = []
    damaged = 0
    try:
        for line in read_lines(folder / paths.METRICS, folder):
            if not line.endswith(b"\n"):
                break
            try:
                values = parse_json(line)
                value = values[key]  # null, for example, before the first episode has ended
                point = float(values["env_steps"]), math.nan if value is None else float(value)
            except (ValueError, KeyError, TypeError, OverflowError):
                damaged += 1
                continue
            if all(map(math.isfinite, point)):
                points.append(point)
    except RefusedFileError:
        damaged += 1
    except OSError:
        return np.empty(0), np.empty(0), 0
    steps, column = np.array(sorted(points)).reshape(-1, 2).T
    return steps, column, damaged


def newest_speed(folder: Path) -> float | None:
    """Returns the environment steps per second of training as of the newest whole line of metrics.jsonl; None where
    there is none.
    """
    try:
        with open_regular(folder / paths.METRICS, folder, 2**63) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2 * LINE_BYTES))
            line = file.read().rpartition(b"\n")[0].rpartition(b"\n")[2]
        values = parse_json(line)
        speed = float(values["env_steps"]) / float(values["train_s"])
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, OverflowError):
        return None
    return speed if math.isfinite(speed) else None


def _first_line(what: object) -> str:
    return (str(what).strip().splitlines() or [""])[0].rstrip(":. ")


def _cause(error: str) -> str:
    """Says where a run failed; of a traceback also the exception: the first unindented line after the last frames."""
    frames = error.rpartition("\nTraceback (most recent call last):\n")[2] if "\nTraceback " in error else ""
    exception = [line for line in frames.splitlines() if line and not line.startswith(" ")]
    return ": ".join(map(_first_line, [error, *exception[:1]]))


def _age(folder: Path) -> str:
    times = [(folder / name).stat().st_mtime for name in SIGNS if (folder / name).exists()]
    seconds = max(0.0, time.time() - max(times))
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
