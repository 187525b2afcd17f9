"""Writes RUN/metrics.jsonl. docs/metrics.md explains every key."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dppo.files import AppendedFile, open_regular, parse_json, read_lines, replace_atomically
from dppo.rundir.recorders import finite
from dppo.seams import Recorder


class MetricsFile(AppendedFile, Recorder):
    """The file RUN/metrics.jsonl: one line per iteration, each iteration once, also after a crash and a resume.

    It is the run's record: `RunFiles` tries again where the disk refuses it, and never drops it.

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

    def iteration(self, line: dict[str, Any]) -> None:
        """Adds a line for the next `flush`; NaN, which JSON lacks, becomes null."""
        self.add((json.dumps(finite(line)) + "\n").encode())


def _begins_with(path: Path, lines: list[bytes]) -> bool:
    with open_regular(path, path.parent, 2**63) as file:
        return all(file.read(len(line)) == line for line in lines)


def _is_kept(line: bytes, last_iteration: int) -> bool:
    try:
        return line.endswith(b"\n") and bool(parse_json(line)["iteration"] <= last_iteration)
    except (ValueError, KeyError, TypeError):
        return False
