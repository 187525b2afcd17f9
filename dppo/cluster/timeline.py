"""Notes what a rank does, as spans of time, within bounds of memory: for RUN/trace.json (rundir/traces.py).

What is short is summed: the parts of a span that are on average shorter than `SHORT_S` become one part for each name,
one behind the other from the beginning of the span, with their number. So a rank notes at most some thousand spans a
second, however fast its steps and updates are.
"""

from __future__ import annotations

import json
import math
import os
import socket
import statistics
import sys
import time
from array import array
from bisect import bisect
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

NAMES = ("collect", "act", "step", "learn", "exchange", "wait", "serve", "checkpoint", "recovery", "replay")
"""What a span may be."""
MAIN, DISK = 0, 1
"""The tracks of a rank: what it does, and what its thread for the disk does."""
_NUMBER_OF = {name: float(number) for number, name in enumerate(NAMES)}
_ROW, _ENDED = 5, 2
"""A span in an array: the number of its name, then as in `Span`; and the place of its end."""
SHORT_S = 1e-3
FIRST_S = LAST_S = 60.0
"""Seconds after the start, and before the end, of which a rank keeps all spans, as far as they fit into MOST."""
MOST, MOST_SLOW, MOST_PARTS = 20_000, 10_000, 4096
"""The most spans of the first and of the last seconds each, of slow iterations, and of the parts of a span."""
SLOW, RECENT = 3.0, 101
"""An iteration is slow that takes so many times the median of the last ones, and the number of those."""
FIRST_FLUSH_S, FLUSH_S = 0.5, 10.0
"""Seconds between two writes of what is known: at first, after the first iteration, and later on."""


class Span(NamedTuple):
    """A time in which a rank did one thing. Seconds are those of time.monotonic() on the rank's host."""

    name: str
    began: float
    ended: float
    num: int = 1
    """The number of short ones that it sums; 1: it is one."""
    track: int = MAIN


class Timeline:
    """The spans of one rank.

    Args:
      rank: the rank's number in the job.
      write: replaces the rank's file by these bytes; may raise OSError.

    Attributes:
      offset: what added to time.monotonic() here gives the job's time; None: not known yet.
    """

    def __init__(self, rank: int, write: Callable[[bytes], None], attempt: int = 1) -> None:
        self._write = write
        self._about = {"rank": rank, "host": socket.gethostname(), "pid": os.getpid(), "attempt": attempt}
        self.offset: float | None = None
        self._began, self._flushed = time.monotonic(), 0.0
        self._first, self._slow, self._last = array("d"), array("d"), array("d")
        self._parts: list[tuple[str, float, float]] = []
        self._sums: dict[str, tuple[float, int]] = {}
        self._steps: list[tuple[float, float]] = []
        self._durations: deque[float] = deque(maxlen=RECENT)
        self._limit, self._iterations = float("inf"), 0
        self._flush_s = FIRST_FLUSH_S
        self._has_failed = False

    # -- spans --------------------

    def add(self, name: str, began: float, ended: float, num: int = 1, track: int = MAIN) -> None:
        """Notes a span. Threads may call it."""
        row = (_NUMBER_OF[name], began, ended, num, track)
        if ended < self._began + FIRST_S and len(self._first) < _ROW * MOST:
            self._first.extend(row)
        else:
            self._last.extend(row)
            _shorten(self._last, MOST)

    def part(self, name: str, began: float, ended: float) -> None:
        """Notes a part of the span that is noted next by `whole`."""
        self._parts.append((name, began, ended))
        if len(self._parts) >= MOST_PARTS:
            self._sum_up()

    def timed(self, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Returns `step`, the environments', which notes its seconds as a part."""
        rows, now = self._steps, time.monotonic

        def timed_step(actions: Any) -> Any:
            began = now()
            result = step(actions)
            rows.append((began, now()))
            if len(rows) >= MOST_PARTS:
                self._sum_rows(rows[0][0])
            return result

        return timed_step

    def whole(self, name: str, began: float, ended: float) -> None:
        """Notes a span, and its parts since the last one."""
        self.add(name, began, ended)
        if rows := self._steps:
            if self._sums or ended - began < 2 * SHORT_S * len(rows):
                self._sum_rows(rows[0][0] if self._sums else began)
            else:
                for start, end in rows:
                    self.add("act", began, start)
                    self.add("step", start, end)
                    began = end
                rows.clear()
        parts = self._parts
        if parts and not self._sums and sum(end - start for _, start, end in parts) >= SHORT_S * len(parts):
            for part in parts:
                self.add(*part)
            parts.clear()
        elif parts:
            self._sum_up()
        if self._sums:
            start = began
            for part_name, (seconds, count) in self._sums.items():
                self.add(part_name, start, start := min(ended, start + seconds), count)
            self._sums.clear()

    def _sum_up(self) -> None:
        for name, start, end in self._parts:
            self._sum(name, end - start, 1)
        self._parts.clear()

    def _sum_rows(self, since: float) -> None:
        """Sums the rows so far, the first of which began at `since`. What is between two steps is the policy's."""
        rows = self._steps
        step_s = sum(end - start for start, end in rows)
        self._sum("act", max(0.0, rows[-1][1] - since - step_s), len(rows))
        self._sum("step", step_s, len(rows))
        rows.clear()

    def _sum(self, name: str, seconds: float, count: int) -> None:
        before = self._sums.get(name, (0.0, 0))
        self._sums[name] = before[0] + seconds, before[1] + count

    # -- iterations --------------------

    def iteration(self, began: float, ended: float) -> None:
        """Notes that an iteration is over, of which the spans are kept if it was slow; writes the file now and then."""
        duration = ended - began
        if duration > self._limit:
            last = self._last
            place = len(last)
            while place and last[place - _ROW + _ENDED] > began:
                place -= _ROW
            self._slow.extend(last[place:])
            _shorten(self._slow, MOST_SLOW)
        self._durations.append(duration)
        self._iterations += 1
        if self._iterations % 16 == 0:  # a median of each iteration would cost short ones 1%
            self._limit = SLOW * statistics.median(self._durations)
        if ended > self._flushed + self._flush_s:
            self._flush_s = min(FLUSH_S, 2 * self._flush_s) if self._flushed else FIRST_FLUSH_S
            self.flush()

    # -- files --------------------

    def _rows(self) -> array[float]:
        """Returns the spans that are kept; slow ones may be there twice."""
        last = self._last[-_ROW * MOST :]
        ends = last[_ENDED::_ROW]
        old = bisect(ends, ends[-1] - LAST_S) if ends else 0
        return self._first + self._slow[-_ROW * MOST_SLOW :] + last[_ROW * old :]

    def flush(self) -> None:
        """Writes the rank's file. A disk that refuses it is named once; training goes on."""
        try:
            self._write(_to_bytes({**self._about, "offset": self.offset}, self._rows()))
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                print(f"dppo: rank {self._about['rank']}: its timeline is not written: {error}", file=sys.stderr)
        self._flushed = time.monotonic()


def to_bytes(about: dict[str, Any], spans: Iterable[Span]) -> bytes:
    """Returns a rank's file: a line of JSON, and five numbers of 8 bytes for each span."""
    rows = array("d")
    for name, *numbers in spans:
        rows.extend((_NUMBER_OF[name], *numbers))
    return _to_bytes(about, rows)


def _to_bytes(about: dict[str, Any], rows: array[float]) -> bytes:
    if sys.byteorder == "big":
        rows.byteswap()
    return json.dumps({**about, "names": NAMES}).encode() + b"\n" + rows.tobytes()


def _shorten(rows: array[float], most: int) -> None:
    """Drops the oldest spans down to `most`, once there are twice as many: so that few are moved."""
    if len(rows) >= 2 * _ROW * most:
        del rows[: -_ROW * most]


def from_bytes(data: bytes) -> tuple[dict[str, Any], list[Span]]:
    """Inverts `to_bytes`, but for spans that are there twice. Raises ValueError where it is damaged."""
    line, _, rest = data.partition(b"\n")
    about = json.loads(line)
    numbers = array("d")
    numbers.frombytes(rest)
    if sys.byteorder == "big":
        numbers.byteswap()
    if not isinstance(about, dict) or len(numbers) % 5:
        raise ValueError("it holds no whole spans")
    if not all(map(math.isfinite, numbers)) or not isinstance(about["offset"], float | int | None):
        raise ValueError("it holds numbers that are none")
    names = about["names"]
    rows = zip(*(numbers[i::5] for i in range(5)), strict=True)
    spans = [Span(names[int(n)], began, ended, int(num), int(track)) for n, began, ended, num, track in rows]
    return about, list(dict.fromkeys(spans))
