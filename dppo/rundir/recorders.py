"""Tells the recorders of a run what happens to it; reads and writes JSON files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dppo.files import parse_json, read_regular, replace_atomically

if TYPE_CHECKING:  # a light module: dppo.job reads a summary without NumPy
    from dppo.seams import Recorder, RunInfo


class Recorders:
    """The recorders of a run, in the order in which they hear of it.

    Args:
      warn: shows a line.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._recorders: list[Recorder] = []
        self.stopped_by: str | None = None
        """The name of the recorder that has asked the run to end."""

    def add(self, *recorders: Recorder) -> None:
        """Appends recorders."""
        self._recorders += recorders

    def start(self, run: RunInfo) -> None:
        self._tell("start", run)

    def iteration(self, line: dict[str, Any]) -> None:
        self._tell("iteration", line)

    def evaluation(self, line: dict[str, Any]) -> None:
        self._tell("evaluation", line)

    def checkpoint(self, path: Path) -> None:
        self._tell("checkpoint", path)

    def end(self, summary: dict[str, Any]) -> None:
        self._tell("end", summary)

    def _tell(self, what: str, told: Any) -> None:
        for recorder in tuple(self._recorders):
            try:
                answer = getattr(recorder, what)(told)
            except (Exception, SystemExit) as error:  # a recorder of the user's may raise anything
                from dppo.envs.reasons import reason

                self._recorders.remove(recorder)
                self._warn(f"the recorder {name_of(recorder)} is left out from here on: {what} raised {reason(error)}")
                continue
            if str(answer) == "True" and self.stopped_by is None:  # also NumPy's True
                self.stopped_by = name_of(recorder)


def name_of(recorder: Recorder) -> str:
    """Returns the name of a recorder's class."""
    return type(recorder).__name__


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the values with None, JSON's null, in place of numbers that JSON lacks."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def flat(values: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Converts {"cases": {"cold": {"episodes": 1}}} to {"cases/cold/episodes": 1}."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        out |= flat(value, f"{where}{name}/") if isinstance(value, dict) else {f"{where}{name}": value}
    return out


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replaces a JSON file in one step."""
    replace_atomically(path, json_bytes(value))


def json_bytes(value: dict[str, Any]) -> bytes:
    """Returns the content of a JSON file; NaN, which JSON lacks, becomes null."""
    return (json.dumps(finite(value), indent=2) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file; returns {} where there is none that can be read."""
    try:
        value = parse_json(read_regular(path, path.parent))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
