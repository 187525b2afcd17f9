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
      env_steps: the steps until then; lines of more, which nobody has written, are removed, too. None: any number.
    """

    def __init__(self, path: Path, last_iteration: int, env_steps: int | None = None) -> None:
        self.best_return: float | None = None
        """The best mean return of the lines that were kept."""
        if path.exists():
            kept: list[bytes] = []
            # a line that is too long is not one of ours: a crash of the machine leaves endless zeros
            for text in read_lines(path, path.parent, skip_long=True):
                if (line := _kept(text, last_iteration, env_steps)) is not None:
                    kept.append(text)
                    self.best_return = better(self.best_return, line)
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


def _kept(text: bytes, last_iteration: int, env_steps: int | None) -> dict[str, Any] | None:
    """Returns the values of a line that stays, else None."""
    try:
        line = parse_json(text)
        is_early = line["iteration"] <= last_iteration and (env_steps is None or 0 < line["env_steps"] <= env_steps)
        return line if text.endswith(b"\n") and is_early else None
    except (ValueError, KeyError, TypeError):
        return None


def better(best: float | None, line: dict[str, Any]) -> float | None:
    """Returns the better one of `best` and a line's mean return. That of the first episodes does not count: they are
    the short ones.
    """
    mean = line.get("return_mean_100")
    if line.get("return_mean_100_settled") is None or not isinstance(mean, int | float):
        return best
    return float(mean) if best is None else max(best, float(mean))
