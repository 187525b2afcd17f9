"""Shows how far many runs are: a table that a terminal redraws, or plain lines in a file."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from dppo.files import plain
from dppo.rundir import paths
from dppo.rundir.summary import read_summary
from dppo.study.local import DONE, Job, Outcome
from dppo.study.spec import as_text

LINES_EVERY_S = 60.0
"""Seconds between two lines about a run, where no terminal shows the table."""
REDRAW_S = 1.0
TAIL_BYTES = 2**16
"""The end of metrics.jsonl in which its last line is looked for."""


class Board:
    """The progress of runs on standard output.

    Args:
      counts: returns the line above the table, such as how many runs have ended.
    """

    def __init__(self, counts: Callable[[], str], stream: TextIO | None = None) -> None:
        self._counts, self._stream = counts, stream or sys.stdout
        self._live: Any = None
        self._began: dict[str, float] = {}
        self._next = 0.0
        self._is_terminal = self._stream.isatty()

    def __enter__(self) -> Board:
        if self._is_terminal:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self._stream, markup=False, emoji=False)
            self._live = Live(console=console, auto_refresh=False, transient=True)  # a thread would live while we fork
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.stop()

    def say(self, text: str) -> None:
        """Prints a line that stays. It may go to a full disk, or to a reader that has left."""
        with contextlib.suppress(OSError, ValueError):
            if self._live is not None:
                self._live.console.print(plain(text), highlight=False, soft_wrap=True)
            else:
                self._stream.write(f"{plain(text)}\n")
                self._stream.flush()

    def began(self, job: Job) -> None:
        """Says that a run has started."""
        self._began[job.name] = time.monotonic()
        self._next = 0.0 if self._is_terminal else time.monotonic() + LINES_EVERY_S
        if not self._is_terminal:
            verb = "goes on" if os.path.lexists(job.folder / paths.CONFIG) else "starts"
            self.say(f"{job.name} {verb}: {settings_of(job) or job.folder}")

    def ended(self, job: Job, outcome: Outcome) -> None:
        """Says how a run has ended."""
        if outcome.state == DONE:
            summary = read_summary(job.folder)
            reached, steps = _number(summary.get("return_mean_100")), _number(summary.get("env_steps"))
            how = f"{plain(summary.get('exit'))}, return {reached} after {steps} steps"
            self.say(f"{job.name} has ended: {how} ({settings_of(job)})" if settings_of(job) else f"{job.name}: {how}")
        else:
            self.say(f"{job.name} {'has failed' if outcome.state != 'cut short' else 'was cut short'}: {outcome.text}")

    def stopping(self, running: int) -> None:
        """Says that the runs were asked to stop."""
        if running:
            self.say(f"asked to stop: {running} run(s) save and leave")

    def draw(self, running: Sequence[Job]) -> None:
        """Shows the runs that run now, if it is time to."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + (REDRAW_S if self._is_terminal else LINES_EVERY_S)
        if self._live is None:
            for job in running:
                _, _, share, steps, reached, seconds = self._row(job)
                self.say(f"{job.name}: {share}, {steps} steps, return {reached}, {seconds}")
            return
        from rich.table import Column, Table

        numbers = ("done", "steps", "return", "time")
        table = Table(
            "run", "settings", *(Column(name, justify="right") for name in numbers), title=self._counts(),
            title_justify="left",
        )  # fmt: skip
        for job in running:
            table.add_row(*self._row(job))
        with contextlib.suppress(OSError):
            self._live.update(table, refresh=True)

    def _row(self, job: Job) -> tuple[str, ...]:
        last = last_metrics(job.folder)
        steps = last.get("env_steps")
        share = f"{min(1.0, steps / job.config.total_steps):.0%}" if isinstance(steps, int | float) else "–"
        seconds = time.monotonic() - self._began[job.name]
        clock = f"{seconds // 3600:.0f}:{seconds // 60 % 60:02.0f}:{seconds % 60:02.0f}"
        return job.name, settings_of(job), share, _number(steps), _number(last.get("return_mean_100")), clock


def settings_of(job: Job) -> str:
    """Returns the settings in which a run differs from the others."""
    return plain(", ".join(f"{key}={_short(value)}" for key, value in job.varied.items()))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else as_text(value)


def _number(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}"


def last_metrics(folder: Path) -> dict[str, Any]:
    """Returns the last whole line of a run's metrics.jsonl; {} where there is none."""
    with contextlib.suppress(OSError, ValueError), open(folder / paths.METRICS, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
        lines = file.read(TAIL_BYTES).split(b"\n")[:-1]
        value = json.loads(lines[-1]) if lines else {}
        return value if isinstance(value, dict) else {}
    return {}
