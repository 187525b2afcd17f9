"""What a rank notes: parts that are too short are summed, memory is bounded, slow iterations are kept."""

from __future__ import annotations

import math
import time
from array import array
from typing import Any

import pytest

from dppo.cluster import timeline
from dppo.cluster.timeline import DISK, Span, Timeline, from_bytes


class Written:
    """A timeline, and what it has written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.files = 100.0, list[bytes]()
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.timeline = Timeline(3, self.files.append, attempt=2)

    def step(self, seconds: float) -> Any:
        def step(actions: Any) -> Any:
            self.now += seconds
            return actions

        return self.timeline.timed(step)

    def spans(self) -> list[Span]:
        self.timeline.flush()
        return from_bytes(self.files[-1])[1]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Written:
    return Written(monkeypatch)


def rounded(spans: list[Span]) -> list[Span]:
    return [span._replace(began=round(span.began, 6), ended=round(span.ended, 6)) for span in spans]


def collect(written: Written, rows: int, act_s: float, step_s: float) -> list[Span]:
    step, began = written.step(step_s), written.now
    for row in range(rows):
        written.now += act_s
        assert step(row) == row
    written.timeline.whole("collect", began, written.now)
    return rounded(written.spans())


def test_long_rows_are_noted_one_by_one(written: Written) -> None:
    assert collect(written, 2, act_s=0.5, step_s=1.0) == [
        Span("collect", 100.0, 103.0),
        Span("act", 100.0, 100.5), Span("step", 100.5, 101.5), Span("act", 101.5, 102.0), Span("step", 102.0, 103.0),
    ]  # fmt: skip


def test_short_rows_are_summed_however_many(written: Written) -> None:
    rows = 3 * timeline.MOST_PARTS
    whole, act, step = collect(written, rows, act_s=2**-14, step_s=2**-12)
    assert (act.name, act.num, step.name, step.num) == ("act", rows, "step", rows)
    assert act.ended - act.began == pytest.approx(rows * 2**-14, rel=1e-3)
    assert step.ended - step.began == pytest.approx(rows * 2**-12, rel=1e-3)
    assert whole.began == act.began and act.ended == step.began and step.ended <= whole.ended


def test_parts_lie_within_their_whole(written: Written) -> None:
    for seconds, expected in ((0.25, [("exchange", 1)] * 4), (2**-12, [("exchange", 4)])):
        began = written.now
        for _ in range(4):
            written.timeline.part("exchange", written.now, written.now + seconds)
            written.now += seconds
        written.timeline.whole("learn", began, written.now + 1)
        spans = [span for span in written.spans() if span.began >= began]
        assert [(span.name, span.num) for span in spans] == [("learn", 1), *expected]
        assert all(span.ended <= spans[0].ended for span in spans)
        written.now += 2


def test_the_first_and_the_last_seconds_are_kept_and_iterations_that_were_slow(written: Written) -> None:
    slow_at = 100.0 + 500.0
    while written.now < 1100.0:
        began = written.now
        written.now += 20.0 if began == slow_at else 0.5
        written.timeline.add("collect", began, written.now)
        written.timeline.iteration(began, written.now)
    kept = {span.began for span in written.spans()}
    assert {100.0, 158.0, slow_at, 1050.0, 1099.5} <= kept
    assert not [began for began in kept if 170.0 < began < slow_at or slow_at < began < 1030.0]


def test_memory_is_bounded(written: Written) -> None:
    for number in range(5 * timeline.MOST):
        written.timeline.add("step", 100.0 + number * 1e-4, 100.0 + number * 1e-4 + 1e-5)
        if number % 10 == 9:  # each of them is slow
            written.timeline._limit = -math.inf
            written.timeline.iteration(100.0 + (number - 9) * 1e-4, written.now)
    sizes = [len(getattr(written.timeline, name)) for name in ("_first", "_slow", "_last")]
    assert sizes == [5 * timeline.MOST, max(sizes[1], 5 * timeline.MOST_SLOW), max(sizes[2], 5 * timeline.MOST)]
    assert sizes[1] <= 10 * timeline.MOST_SLOW and sizes[2] <= 10 * timeline.MOST
    written.timeline.flush()
    assert len(written.files[-1]) < 40 * (2 * timeline.MOST + timeline.MOST_SLOW) + 1000


def test_the_file_is_renewed_soon_and_then_every_ten_seconds(written: Written) -> None:
    times = []
    while written.now < 160.0:
        written.now += 0.25
        written.timeline.iteration(written.now - 0.25, written.now)
        if len(written.files) > len(times):
            times.append(written.now)
    assert times[0] <= 101.0
    assert times[-1] - times[-2] == pytest.approx(timeline.FLUSH_S, abs=0.3)


def test_a_disk_that_refuses_is_named_once(capfd: pytest.CaptureFixture[str]) -> None:
    def write(data: bytes) -> None:
        raise OSError("no space left")

    one = Timeline(3, write)
    for _ in range(3):
        one.flush()
    assert capfd.readouterr().err == "dppo: rank 3: its timeline is not written: no space left\n"


def test_a_file_is_read_as_it_was_written(written: Written) -> None:
    written.timeline.offset = 12.5
    written.timeline.add("checkpoint", 100.0, 101.0, track=DISK)
    written.timeline.flush()
    about, spans = from_bytes(written.files[-1])
    assert (about["rank"], about["attempt"], about["offset"]) == (3, 2, 12.5)
    assert spans == [Span("checkpoint", 100.0, 101.0, 1, DISK)]
    infinite = written.files[-1][:-40] + array("d", [math.inf] * 5).tobytes()
    nameless = written.files[-1].replace(b'"offset": 12.5', b'"offset": "x" ')
    for damaged in (b"", b"{}\n", written.files[-1][:-3], b"[]\n" + written.files[-1][-40:], infinite, nameless):
        with pytest.raises((ValueError, KeyError, TypeError)):
            from_bytes(damaged)
