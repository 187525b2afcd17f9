"""Prints for rank 0: lines, and one progress line, which a terminal redraws and a file repeats at a sane rate.

The output may go to a file on a full disk, or to a reader that has left. No run ends because of that.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from dppo.cluster.launcher import is_by_mpirun
from dppo.files import plain as plain  # also for those who print by themselves


def escaped(text: object) -> str:
    """Returns `plain(text)` with Markdown and HTML escaped: table cells, emphasis, code, tags, links and images."""
    return re.sub(r"[\\|<>`*#\[\]&~$]|(?<!\w)_|_(?!\w)|(?<=:)//|(?<=www)\.|@", r"\\\g<0>", plain(text))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 0) -> list[str]:
    """Returns the lines of a table that also reads well as plain text. The first `left` columns begin on the left.
    Cells are Markdown: names in them are `escaped`.
    """
    cells = [[re.sub(r"(\\.)|\|", lambda m: m[1] or r"\|", cell) for cell in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]

    def line(cells: Sequence[str]) -> str:
        placed = (c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return f"| {' | '.join(placed)} |"

    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return [line(cells[0]), line(rule), *map(line, cells[1:])]


def say(text: str) -> None:
    """Prints a line of dppo's on stderr."""
    _show(f"dppo: {text}\n", sys.stderr)


def _show(text: str, stream: TextIO) -> None:
    with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
        stream.write(text)
        stream.flush()


def end_output() -> None:
    """Flushes the output before the process ends: what cannot be shown must not change the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):  # Python flushes once more
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def on_terminal() -> bool:
    """Returns whether a person watches. Under mpirun a rank's own stdout is always a pseudo-terminal: the stdout of its
    parent tells the truth.
    """
    if not is_by_mpirun():
        return sys.stdout.isatty()
    try:
        parent = os.getppid()
        while Path(f"/proc/{parent}/comm").read_text() == "dppo-guard\n":  # between mpirun and the rank: its guards
            parent = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
        return os.readlink(f"/proc/{parent}/fd/1").startswith(("/dev/pts/", "/dev/tty"))
    except OSError:
        return False


class Console:
    """Prints for rank 0; silent where `enabled` is False.

    Args:
      interval_s: seconds between two lines of progress, where no person watches.
      stream: the stream to print on; None: standard output.
    """

    def __init__(self, interval_s: float, *, enabled: bool = True, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._enabled = self._terminal = self._drawn = False
        self._interval_s = interval_s
        self._next = 0.0
        if enabled:
            self.enable()

    def enable(self) -> None:
        """Begins to print: this rank is rank 0 now."""
        self._enabled = True
        self._terminal = on_terminal() if self._stream is None else self._stream.isatty()
        if self._terminal:
            self._interval_s = 0.1

    def line(self, text: str) -> None:
        """Prints a line that stays."""
        if self._enabled:
            self.done()
            _show(f"{text}\n", self._stream or sys.stdout)

    def warn(self, text: str) -> None:
        """Prints a line on stderr that stays."""
        self.done()
        say(text)

    def progress_due(self) -> bool:
        """Returns whether `progress` would show something now, so that no text is made in vain."""
        return self._enabled and time.monotonic() >= self._next

    @property
    def width(self) -> int | None:
        """The characters of a line of progress; None: there is no limit, because the output is a file."""
        return shutil.get_terminal_size().columns - 1 if self._terminal else None

    def progress(self, text: str) -> None:
        """Shows how far the run is."""
        self._next = time.monotonic() + self._interval_s
        if self._terminal:
            _show("\r\x1b[2K" + text[: self.width], self._stream or sys.stdout)
            self._drawn = True
        else:
            _show(f"{text}\n", self._stream or sys.stdout)

    def done(self) -> None:
        """Takes the progress line away."""
        if self._drawn:
            _show("\r\x1b[2K", self._stream or sys.stdout)
            self._drawn = False
