"""RUN/trace.json: what Perfetto needs, whatever ranks have left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dppo.cluster.timeline import DISK, Span, to_bytes
from dppo.rundir import traces
from dppo.rundir.traces import part_writer, write_trace

SPANS = [Span("collect", 10.0, 11.0), Span("step", 10.0, 10.5, 64), Span("checkpoint", 10.75, 11.25, track=DISK)]


def leave(run_dir: Path, rank: int, attempt: int = 1, host: str = "node0", offset: float | None = 1000.0) -> None:
    about = {"rank": rank, "attempt": attempt, "host": host, "offset": offset, "pid": 1}
    part_writer(run_dir, attempt, rank)(to_bytes(about, SPANS))


def events(run_dir: Path) -> list[dict[str, Any]]:
    write_trace(run_dir)
    found: list[dict[str, Any]] = json.loads((run_dir / "trace.json").read_text())["traceEvents"]
    return found


def test_a_host_is_a_process_and_a_rank_a_thread(tmp_path: Path) -> None:
    leave(tmp_path, 0)
    leave(tmp_path, 1)
    leave(tmp_path, 2, host='no"de1')
    leave(tmp_path, 0, attempt=2)
    found = events(tmp_path)
    named = {(e["pid"], e["args"]["name"]) for e in found if e["name"] == "process_name"}
    assert named == {(1, "node0"), (2, 'no"de1'), (3, "node0, attempt 2")}
    threads = {e["tid"]: (e["pid"], e["args"]["name"]) for e in found if e["name"] == "thread_name"}
    assert sorted(threads.values()) == [
        (1, "rank 0"), (1, "rank 0 (disk)"), (1, "rank 1"), (1, "rank 1 (disk)"), (2, "rank 2"), (2, "rank 2 (disk)"),
        (3, "rank 0"), (3, "rank 0 (disk)"),
    ]  # fmt: skip
    spans = [e for e in found if e["ph"] == "X"]
    assert len(spans) == 4 * len(SPANS)
    assert all(threads[e["tid"]][0] == e["pid"] for e in spans)
    assert spans[1] == {
        "name": "step", "ph": "X", "pid": 1, "tid": spans[0]["tid"], "ts": 1010e6, "dur": 0.5e6, "args": {"sum of": 64}
    }  # fmt: skip


def test_what_is_damaged_or_half_written_is_left_out(tmp_path: Path) -> None:
    leave(tmp_path, 0)
    folder = tmp_path / "trace"
    (whole,) = folder.iterdir()
    for number, damaged in enumerate((b"", b"no json", whole.read_bytes()[:-1], b"{}\n", b'{"rank": null}\n'), 1):
        (folder / f"attempt_001-rank_{number:05d}-9").write_bytes(damaged)
    (folder / "attempt_001-rank_00009-9.part").write_bytes(b"half")
    assert len([e for e in events(tmp_path) if e["ph"] == "X"]) == len(SPANS)
    assert not [*folder.glob("*.part")]
    assert events(tmp_path) == events(tmp_path)


def test_old_attempts_are_forgotten(tmp_path: Path) -> None:
    for attempt in range(1, traces.KEPT_ATTEMPTS + 4):
        leave(tmp_path, 0, attempt)
    names = {e["args"]["name"] for e in events(tmp_path) if e["name"] == "process_name"}
    assert names == {f"node0, attempt {n}" for n in range(4, traces.KEPT_ATTEMPTS + 4)}


def test_without_ranks_it_is_still_valid_and_nothing_is_made_of_a_run_that_was_not_opened(tmp_path: Path) -> None:
    assert events(tmp_path) == []
    leave(tmp_path / "not-there", 0)
    assert not (tmp_path / "not-there").exists()
