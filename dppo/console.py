"""What rank 0 shows: lines, and one progress line that is redrawn on a terminal and repeated at a sane rate in a file.

Uses the standard library; run.py and the journal write through it, and other commands make their tables with it.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from typing import TextIO


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 0) -> list[str]:
    """Lines of a table that reads well as plain text, too; the first `left` columns begin on the left."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*escaped, strict=True)]

    def line(cells: Sequence[str]) -> str:
        placed = (c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return f"| {' | '.join(placed)} |"

    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return [line(escaped[0]), line(rule), *map(line, escaped[1:])]


def on_terminal() -> bool:
    """Whether a person watches. Under mpirun a rank's own stdout is always a pseudo-terminal: its parent's says the
    truth.
    """
    if "OMPI_COMM_WORLD_SIZE" not in os.environ:
        return sys.stdout.isatty()
    try:
        return os.readlink(f"/proc/{os.getppid()}/fd/1").startswith(("/dev/pts/", "/dev/tty"))
    except OSError:
        return False


class Console:
    """Prints for rank 0; silent where `enabled` is False.

    Args:
      interval_s: seconds between two lines of progress, where no person watches.
      stream: None: standard output.
    """

    def __init__(self, interval_s: float, *, enabled: bool = True, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._enabled = self._terminal = self._drawn = False
        self._interval_s = interval_s
        self._next = 0.0
        if enabled:
            self.enable()

    def enable(self) -> None:
        """This rank is rank 0 now."""
        self._enabled = True
        self._terminal = on_terminal() if self._stream is None else self._stream.isatty()
        if self._terminal:
            self._interval_s = 0.1

    def line(self, text: str) -> None:
        """A line that stays."""
        if self._enabled:
            self._clear()
            print(text, flush=True, file=self._stream)

    def warn(self, text: str) -> None:
        """A line on stderr that stays."""
        self._clear()
        print(f"dppo: {text}", file=sys.stderr, flush=True)

    def progress_due(self) -> bool:
        """Whether `progress` would show something now; asks before work is put into a text."""
        return self._enabled and time.monotonic() >= self._next

    def progress(self, text: str) -> None:
        """Where the run stands."""
        self._next = time.monotonic() + self._interval_s
        if self._terminal:
            width = shutil.get_terminal_size().columns
            print("\r\x1b[2K" + text[: width - 1], end="", flush=True, file=self._stream)
            self._drawn = True
        else:
            print(text, flush=True, file=self._stream)

    def done(self) -> None:
        """Takes the progress line away."""
        self._clear()

    def _clear(self) -> None:
        if self._drawn:
            print("\r\x1b[2K", end="", flush=True, file=self._stream)
            self._drawn = False
