"""Writes a run's records: metrics.jsonl, versions.json, TensorBoard events.

docs/metrics.md explains every key.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import socket
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dppo.errors import MovedError
from dppo.files import AppendedFile, open_regular, parse_json, read_lines, read_regular, replace_atomically


class MetricsFile(AppendedFile):
    """The file RUN/metrics.jsonl: one line per iteration, each iteration once, also after a crash and a resume.

    Args:
      last_iteration: the last iteration to keep; later lines, and a torn last line, are removed: they will come again.
    """

    def __init__(self, path: Path, last_iteration: int) -> None:
        if path.exists():
            # a line that is too long is not one of ours: a crash of the machine leaves endless zeros
            kept = [line for line in read_lines(path, path.parent, skip_long=True) if _is_kept(line, last_iteration)]
            size = sum(map(len, kept))
            if path.stat().st_size > size:
                if _begins_with(path, kept):  # a full disk has no room for a copy
                    os.truncate(path, size)
                else:
                    replace_atomically(path, b"".join(kept))
        super().__init__(path, durable=True)

    def put(self, metrics: dict[str, Any]) -> None:
        """Adds a line for the next `flush`; NaN, which JSON lacks, becomes null."""
        self.add((json.dumps(_finite(metrics)) + "\n").encode())

    def write(self, metrics: dict[str, Any]) -> None:
        """Appends a line and flushes it."""
        self.put(metrics)
        self.flush()


def _begins_with(path: Path, lines: list[bytes]) -> bool:
    with open_regular(path, path.parent, 2**63) as file:
        return all(file.read(len(line)) == line for line in lines)


def _is_kept(line: bytes, last_iteration: int) -> bool:
    try:
        return line.endswith(b"\n") and bool(parse_json(line)["iteration"] <= last_iteration)
    except (ValueError, KeyError, TypeError):
        return False


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def _flat(values: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Converts {"cases": {"cold": {"episodes": 1}}} to {"cases/cold/episodes": 1}."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        out |= _flat(value, f"{where}{name}/") if isinstance(value, dict) else {f"{where}{name}": value}
    return out


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replaces a JSON file in one step."""
    replace_atomically(path, json_bytes(value))


def json_bytes(value: dict[str, Any]) -> bytes:
    """Returns the content of a JSON file; NaN, which JSON lacks, becomes null."""
    return (json.dumps(_finite(value), indent=2) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file; returns {} where there is none that can be read."""
    try:
        value = parse_json(read_regular(path, path.parent))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


class TensorBoard:
    """Writes scalars over environment steps in TensorBoard's form, without torch. The caller never waits for the disk:
    a thread writes at intervals, and tries again where it cannot write.

    Args:
      first_step: the step where this attempt starts; TensorBoard hides what an earlier attempt wrote beyond it.
    """

    FLUSH_S = 2.0

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog, SourceMetadata
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._event, self._summary, self._folder = Event, Summary, folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tensorboard")
        self._flushing: Future[None] | None = None
        self._next_flush = 0.0
        self._problem: BaseException | None = None
        self._file: AppendedFile | None = None
        self._opening = Event(
            wall_time=time.time(), file_version="brain.Event:2", source_metadata=SourceMetadata(writer="dppo")
        ).SerializeToString()
        self._waiting: deque[bytes] = deque()
        if first_step:
            start = SessionLog(status=SessionLog.START)
            # hides points at or beyond this step; the point at first_step itself stays
            self._add(Event(wall_time=time.time(), step=first_step + 1, session_log=start))

    def _add(self, event: Any) -> None:
        self._waiting.append(event.SerializeToString())

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Adds every number in `metrics`, those of tables as table/name. Raises OSError where earlier numbers could not
        be written so far; the thread tries again.
        """
        values = [
            self._summary.Value(tag=name, simple_value=float(value))
            for name, value in _flat(metrics).items()
            if isinstance(value, int | float) and name not in ("iteration", "env_steps")
        ]
        self._add(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))
        if self._flushing is not None and self._flushing.done():
            self._problem, self._flushing = self._flushing.exception(), None
        if self._flushing is None and time.monotonic() >= self._next_flush:
            self._next_flush = time.monotonic() + self.FLUSH_S
            self._flushing = self._thread.submit(self._flush)
        if self._problem is not None:
            raise self._problem

    def close(self) -> None:
        """Writes the events that wait. Raises OSError where the events could not be written and are lost."""
        last = self._thread.submit(self._flush)
        self._thread.shutdown()
        last.result()
        if self._file is not None:
            self._file.close()

    def _flush(self) -> None:
        """Writes the events that wait. Runs in the thread, because the checksums take time, too."""
        if self._file is None:
            self._begin_file()
        assert self._file is not None
        while self._waiting:
            self._file.add(_tensorboard_record(self._waiting[0]))
            self._waiting.popleft()
        try:
            self._file.flush()
        except MovedError:  # somebody has moved the file to make room
            self._begin_file()
            self._file.flush()

    def _begin_file(self) -> None:
        self._folder.mkdir(exist_ok=True)  # this fails where the run directory is gone
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_FILES)}"
        file = AppendedFile(self._folder / name, durable=False)
        file.add(_tensorboard_record(self._opening))
        self._file = file


_FILES = itertools.count()


def _tensorboard_record(event: bytes) -> bytes:
    """Returns the record of an event: length and content, each with its checksum."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    record = io.BytesIO()
    RecordWriter(record).write(event)
    return record.getvalue()
