"""Joins the timelines of all ranks in RUN/trace.json, in the trace event format of Chrome, which Perfetto shows.

    RUN/trace/attempt_001-rank_00003-4711     a rank's own file (cluster/timeline.py), renewed every few seconds
    RUN/trace.json                            of all ranks, written when an attempt ends

A rank that was killed has left its file. Source: Trace Event Format, Google 2016; ui.perfetto.dev.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dppo.cluster.timeline import DISK, from_bytes
from dppo.files import MB, read_regular, replacing
from dppo.rundir import paths

PART_BYTES = 8 * MB
"""The most bytes of a rank's file."""
KEPT_ATTEMPTS = 8
"""Attempts of which the files are kept."""


def part_writer(run_dir: Path, attempt: int, rank: int) -> Callable[[bytes], None]:
    """Returns what replaces this process's file. It does not wait until the disk has it: it is written often."""
    path = run_dir / paths.TRACE_PARTS / f"attempt_{attempt:03d}-{paths.rank_name(rank)}-{os.getpid()}"
    part = path.with_suffix(".part")

    def write(data: bytes) -> None:
        if not run_dir.is_dir():
            return  # the run has ended before it was opened
        path.parent.mkdir(exist_ok=True)
        part.write_bytes(data)
        os.replace(part, path)

    return write


def write_trace(run_dir: Path) -> None:
    """Writes RUN/trace.json from what all ranks of all attempts have left. Raises OSError where that is impossible."""
    for part in (run_dir / paths.TRACE_PARTS).glob("*.part"):  # of a rank that was killed while it wrote
        part.unlink(missing_ok=True)
    found = sorted((run_dir / paths.TRACE_PARTS).glob("attempt_*-rank_*-*"))
    for old in sorted({path.name.partition("-")[0] for path in found})[:-KEPT_ATTEMPTS]:
        for path in [path for path in found if path.name.startswith(f"{old}-")]:
            path.unlink(missing_ok=True)
            found.remove(path)
    with replacing(run_dir / paths.TRACE) as path, path.open("w") as file:
        file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
        for number, event in enumerate(_events(run_dir, found)):
            file.write((",\n" if number else "") + event)
        file.write("\n]}\n")


def _events(run_dir: Path, found: list[Path]) -> Iterator[str]:
    """Yields the events of all files: a process for each host of an attempt, a thread for each rank."""
    processes: dict[tuple[int, str], int] = {}
    for thread, path in enumerate(found):
        try:
            about, spans = from_bytes(read_regular(path, run_dir, PART_BYTES))
            rank, attempt, host, offset = int(about["rank"]), int(about["attempt"]), str(about["host"]), about["offset"]
        except (OSError, ValueError, KeyError, IndexError, TypeError):
            continue  # of a rank whose node has died
        key = attempt, host
        if key not in processes:
            processes[key] = len(processes) + 1
            name = host if attempt == 1 else f"{host}, attempt {attempt}"
            yield _named("process_name", processes[key], 0, name=name)
        pid = processes[key]
        for track in sorted({span.track for span in spans} | {0}):
            tid = 2 * thread + 1 + track
            yield _named("thread_name", pid, tid, name=f"rank {rank}{' (disk)' if track == DISK else ''}")
            yield _named("thread_sort_index", pid, tid, sort_index=2 * rank + track)
        for span in spans:  # by hand: a million of them would take json.dumps many seconds
            start, duration = (span.began + (offset or 0.0)) * 1e6, max(0.0, span.ended - span.began) * 1e6
            more = f',"args":{{"sum of":{span.num}}}' if span.num > 1 else ""
            yield (
                f'{{"name":"{span.name}","ph":"X","pid":{pid},"tid":{2 * thread + 1 + span.track},"ts":{start:.3f},'
                f'"dur":{duration:.3f}{more}}}'
            )


def _named(what: str, pid: int, tid: int, **arguments: Any) -> str:
    return json.dumps({"name": what, "ph": "M", "pid": pid, "tid": tid, "args": arguments})
