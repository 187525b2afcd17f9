"""What a run writes about itself: metrics.jsonl, summary.json, versions.json, TensorBoard events.

Uses files.py; the journal on rank 0 calls it. docs/metrics.md explains every key.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dppo.reading import RefusedFileError, parse_json, read_lines, read_regular
from dppo.storage.files import replace_atomically


class MetricsFile:
    """RUN/metrics.jsonl: one line per iteration, each iteration once, also after a crash and a resume.

    Args:
      last_iteration: lines of later iterations, and a torn last line, are removed first: they will come again.
    """

    def __init__(self, path: Path, last_iteration: int) -> None:
        if path.exists():
            replace_atomically(path, b"".join(_kept_lines(path, last_iteration)))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def write(self, metrics: dict[str, Any]) -> None:
        """Appends a line and flushes it; NaN, which JSON lacks, becomes null."""
        self._file.write(json.dumps({k: _json_value(v) for k, v in metrics.items()}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """After the last line."""
        self._file.close()


def _kept_lines(path: Path, last_iteration: int) -> Iterator[bytes]:
    try:
        yield from (line for line in read_lines(path, path.parent) if _is_kept(line, last_iteration))
    except RefusedFileError:
        return  # zeros without an end, as the crash of a machine leaves them behind what was written


def _is_kept(line: bytes, last_iteration: int) -> bool:
    try:
        return line.endswith(b"\n") and bool(parse_json(line)["iteration"] <= last_iteration)
    except (ValueError, KeyError, TypeError):
        return False


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replaces a JSON file in one step."""
    clean = {k: _json_value(v) for k, v in value.items()}
    replace_atomically(path, (json.dumps(clean, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file, or {} where there is none that can be read."""
    try:
        value = parse_json(read_regular(path, path.parent))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


class TensorBoard:
    """Scalars over environment steps, through tensorboard's own writer: torch is not needed for it.

    Args:
      first_step: where this attempt starts; TensorBoard then hides what an earlier attempt wrote beyond it.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(os.fspath(folder))
        if first_step:
            start = SessionLog(status=SessionLog.START)
            # what stands at or beyond this step is hidden; the point at first_step itself stays
            self._writer.add_event(Event(wall_time=time.time(), step=first_step + 1, session_log=start))

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Adds every number in `metrics`."""
        values = [
            self._summary.Value(tag=name, simple_value=float(value))
            for name, value in metrics.items()
            if isinstance(value, int | float) and name not in ("iteration", "env_steps")
        ]
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))

    def close(self) -> None:
        """Flushes what is queued."""
        self._writer.close()
