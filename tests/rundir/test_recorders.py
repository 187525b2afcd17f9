"""Recorders hear of a run in order; one that raises is named and left out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dppo.rundir.recorders import Recorders, read_json, write_json
from dppo.seams import Recorder, RunInfo

RUN = RunInfo(Path("runs/x"), "1" * 32, {"seed": 1}, 4, False, 0)


class Diary(Recorder):
    """Notes everything; asks to stop where `stops` says so."""

    def __init__(self, *stops: str, answer: Any = True) -> None:
        self.heard: list[tuple[str, Any]] = []
        self.stops, self.answer = stops, answer

    def _note(self, what: str, told: Any) -> Any:
        self.heard.append((what, told))
        return self.answer if what in self.stops else None

    def start(self, run: RunInfo) -> None:
        self._note("start", run)

    def iteration(self, line: dict[str, Any]) -> bool | None:
        return self._note("iteration", line)  # type: ignore[no-any-return]

    def evaluation(self, line: dict[str, Any]) -> bool | None:
        return self._note("evaluation", line)  # type: ignore[no-any-return]

    def checkpoint(self, path: Path) -> None:
        self._note("checkpoint", path)

    def end(self, summary: dict[str, Any]) -> None:
        self._note("end", summary)


class Broken(Recorder):
    def iteration(self, line: dict[str, Any]) -> None:
        raise KeyError("loss")


class Leaving(Recorder):
    def checkpoint(self, path: Path) -> None:
        raise SystemExit(3)


def tell_all(recorders: Recorders) -> None:
    recorders.start(RUN)
    recorders.iteration({"iteration": 1})
    recorders.evaluation({"env_steps": 64})
    recorders.checkpoint(Path("runs/x/checkpoints/step_000000064"))
    recorders.end({"exit": "finished"})


def test_recorders_hear_everything_in_order() -> None:
    said: list[str] = []
    recorders, diaries = Recorders(said.append), [Diary(), Diary()]
    recorders.add(*diaries, Recorder())
    tell_all(recorders)
    names = ["start", "iteration", "evaluation", "checkpoint", "end"]
    assert [[what for what, _ in diary.heard] for diary in diaries] == [names, names]
    assert diaries[0].heard[0][1] is RUN and diaries[0].heard[-1][1] == {"exit": "finished"}
    assert said == [] and recorders.stopped_by is None


def test_a_recorder_that_raises_is_named_once_and_left_out_and_the_others_go_on() -> None:
    said: list[str] = []
    recorders, diary = Recorders(said.append), Diary()
    recorders.add(Broken(), Leaving(), diary)
    for _ in range(2):
        tell_all(recorders)
    assert [line.partition(":")[0] for line in said] == [
        "the recorder Broken is left out from here on",
        "the recorder Leaving is left out from here on",
    ]
    assert "iteration raised KeyError: 'loss'" in said[0] and __file__ in said[0]
    assert len(diary.heard) == 10


@pytest.mark.parametrize("stops", ["iteration", "evaluation"])
def test_a_recorder_may_ask_the_run_to_stop(stops: str) -> None:
    recorders = Recorders(print)
    recorders.add(Diary("start", "checkpoint", answer=3), Diary(stops), Diary(stops))
    tell_all(recorders)
    assert recorders.stopped_by == "Diary"


@pytest.mark.parametrize("answer", [None, False, 17, "yes", np.float64(1.0)])
def test_only_true_stops(answer: Any) -> None:
    """A method may return what it has written, by mistake."""
    recorders = Recorders(print)
    recorders.add(Diary("iteration", "evaluation", answer=answer))
    tell_all(recorders)
    assert recorders.stopped_by is None


def test_a_comparison_of_numpy_numbers_stops() -> None:
    recorders = Recorders(print)
    recorders.add(Diary("iteration", answer=np.float64(2.0) > 1.0))
    tell_all(recorders)
    assert recorders.stopped_by == "Diary"


def test_a_json_file_is_replaced_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "summary.json", {"exit": "running", "return_mean_100": math.nan})
    assert read_json(tmp_path / "summary.json") == {"exit": "running", "return_mean_100": None}
    write_json(tmp_path / "summary.json", {"exit": "finished"})
    assert read_json(tmp_path / "summary.json") == {"exit": "finished"}


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "\x00"])
def test_a_json_file_that_cannot_be_read_is_empty(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "x.json").write_text(content)
    assert read_json(tmp_path / "x.json") == {}
