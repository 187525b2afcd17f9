"""Timelines of a run in this process: the file, and that training's numbers stay the same."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from dppo.config import LogConfig
from dppo.run.loop import train_on
from dppo.run.timelines import begin_timeline, end_timeline
from tests.ranks import make_plan, make_rank
from tests.run_directory import metric_lines


@pytest.mark.parametrize("changes", [{}, {"exchange": "p2p"}, {"mode": "async"}], ids=str)
def test_a_run_leaves_its_timeline_and_the_same_numbers(changes: dict[str, Any], tmp_path: Path) -> None:
    for name, trace in (("plain", False), ("traced", True)):
        log = LogConfig(tensorboard=False, interval_s=60.0, trace=trace)
        plan = make_plan(tmp_path / name, log=log, **changes)
        assert train_on(make_rank(plan), is_command=False).exit == "finished"
    assert metric_lines(tmp_path / "plain") == metric_lines(tmp_path / "traced")
    assert not [*(tmp_path / "plain").glob("trace*")]
    events = json.loads((tmp_path / "traced" / "trace.json").read_text())["traceEvents"]
    spans = [e for e in events if e["ph"] == "X"]
    assert {e["name"] for e in spans} >= {"collect", "act", "step", "learn", "checkpoint"}
    main = [e for e in spans if e["name"] in ("collect", "learn")]
    for before, after in itertools.pairwise(main):
        assert before["ts"] + before["dur"] <= after["ts"] + 1, "one after another"
    for part in [e for e in spans if e["name"] in ("act", "step")]:
        assert any(w["ts"] - 1 <= part["ts"] and part["ts"] + part["dur"] <= w["ts"] + w["dur"] + 1 for w in main)


def test_a_run_without_it_has_none_and_a_disk_that_refuses_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    me = make_rank(make_plan(tmp_path))
    begin_timeline(me)
    end_timeline(me)
    assert me.timeline is None and not [*tmp_path.iterdir()]
    me = make_rank(make_plan(tmp_path, log=LogConfig(trace=True)))
    begin_timeline(me)
    first = me.timeline
    begin_timeline(me)
    assert first is not None and me.timeline is first

    def refuse(run_dir: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("dppo.run.timelines.write_trace", refuse)
    end_timeline(me)
    assert "the timeline could not be written: no space left" in capfd.readouterr().err
    me.parts.close()
