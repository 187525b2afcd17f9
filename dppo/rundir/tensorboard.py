"""Writes TensorBoard's events into RUN/tensorboard."""

from __future__ import annotations

import io
import itertools
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dppo.errors import MovedError
from dppo.files import AppendedFile
from dppo.rundir.recorders import flat
from dppo.seams import Recorder


class TensorBoard(Recorder):
    """Writes scalars over environment steps in TensorBoard's form, without torch. The caller never waits for the disk:
    a thread writes at intervals, and tries again where it cannot write.

    Args:
      first_step: the step where this attempt starts; TensorBoard hides what an earlier attempt wrote beyond it.
      hear: called with the error where earlier numbers could not be written so far, and with None where they could.
    """

    FLUSH_S = 2.0

    def __init__(self, folder: Path, first_step: int, hear: Callable[[Exception | None], None]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog, SourceMetadata
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._event, self._summary, self._folder, self._hear = Event, Summary, folder, hear
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tensorboard")
        self._flushing: Future[None] | None = None
        self._next_flush = 0.0
        self._problem: Exception | None = None
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

    def iteration(self, line: dict[str, Any]) -> None:
        """Adds every number of the line, those of tables as table/name."""
        self._put(line, "")

    def evaluation(self, line: dict[str, Any]) -> None:
        """Adds every number of the line as evaluation/name."""
        self._put(line, "evaluation/")

    def end(self, summary: dict[str, Any]) -> None:
        """Writes the events that wait. Those that cannot be written are lost."""
        last = self._thread.submit(self._flush)
        self._thread.shutdown()
        self._hear(_error_of(last))
        if self._file is not None:
            self._file.close()

    def _put(self, line: dict[str, Any], where: str) -> None:
        values = [
            self._summary.Value(tag=name, simple_value=float(value))
            for name, value in flat(line, where).items()
            if isinstance(value, int | float) and name.removeprefix(where) not in ("iteration", "env_steps")
        ]
        self._add(self._event(wall_time=time.time(), step=line["env_steps"], summary=self._summary(value=values)))
        if self._flushing is not None and self._flushing.done():
            self._problem, self._flushing = _error_of(self._flushing), None
        if self._flushing is None and time.monotonic() >= self._next_flush:
            self._next_flush = time.monotonic() + self.FLUSH_S
            self._flushing = self._thread.submit(self._flush)
        self._hear(self._problem)

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


def _error_of(done: Future[None]) -> Exception | None:
    """Waits for the thread. Returns what it has raised."""
    try:
        done.result()
    except Exception as error:
        return error
    return None


def _tensorboard_record(event: bytes) -> bytes:
    """Returns the record of an event: length and content, each with its checksum."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    record = io.BytesIO()
    RecordWriter(record).write(event)
    return record.getvalue()
