"""After a job's end: done, failed, or to be started again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dppo import verdict
from dppo.verdict import AGAIN, DONE, FAILED, USAGE, judge

STEP = "step_000050176"
BEFORE = {"job_id": "7", "attempt": 1, "checkpoint": STEP, "fruitless": 0}


def of(exit_: str, attempt: int = 2, **more: Any) -> dict[str, Any]:
    return {"exit": exit_, "attempt": attempt, "env_steps": 50176, **more}


@pytest.mark.parametrize(
    ("summary", "checkpoint", "before", "code", "words", "fruitless"),
    [
        (of("target"), STEP, {}, DONE, "done (target) after 50,176 steps", 0),
        (of("finished"), STEP, BEFORE, DONE, "done (finished)", 0),
        (of("preempted"), "step_000060000", BEFORE, AGAIN, "was preempted; newest checkpoint: step_000060000", 0),
        (of("preempted"), STEP, BEFORE, AGAIN, "was preempted", 1),
        (of("running"), "step_000060000", BEFORE, AGAIN, "was cut short", 0),
        (of("running"), STEP, BEFORE | {"fruitless": 2}, FAILED, "no start of 3 has brought a new one", 3),
        (of("running"), STEP, BEFORE | {"fruitless": 2, "job_id": "6"}, AGAIN, "was cut short", 1),  # submitted anew
        ({}, None, {}, AGAIN, "newest checkpoint: none", 1),
        ({}, None, {"job_id": "7", "checkpoint": None, "fruitless": 2}, FAILED, "not started again", 3),
        (of("running", 1), "step_000000000", {}, AGAIN, "was cut short", 1),  # nothing was trained
        (of("failed", error="rank 3 on n2 failed:\nTraceback\nKeyError: 1\n"), STEP, BEFORE, FAILED, "KeyError: 1", 1),
        (of("failed", error="rank 3: no rollout", stalled=True), "step_000060000", BEFORE, AGAIN, "stalled: rank 3", 0),
        (of("failed", 1, error="x"), STEP, BEFORE, AGAIN, "was cut short", 1),  # of an earlier start
        (of("failed", error=None), STEP, {}, FAILED, "no reason was given", 0),
    ],
)
def test_verdicts(
    summary: dict[str, Any], checkpoint: str | None, before: dict[str, Any], code: int, words: str, fruitless: int
) -> None:
    found = judge(summary, checkpoint, before, "7", 3)
    assert (found.code, found.fruitless) == (code, fruitless)
    assert words in found.text


def test_starts_that_bring_nothing_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    assert [verdict.main([str(run_dir), "--starts", "2"]) for _ in range(2)] == [AGAIN, FAILED]
    said = capsys.readouterr()
    assert said.out.startswith(f"dppo: {run_dir}: was cut short; newest checkpoint: none: start it again")
    assert "not started again" in said.err
    ends = [json.loads(line) for line in (run_dir / "starts.jsonl").read_text().splitlines()]
    assert [(end["fruitless"], end["verdict"], end["exit"]) for end in ends] == [(1, AGAIN, None), (2, FAILED, None)]


def test_a_torn_line_of_the_record_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "starts.jsonl").write_text('{"fruitless": 2, "checkpoint": null, "job_id": null}\n{"frui')
    assert verdict.main([str(tmp_path)]) == FAILED


def test_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert verdict.main([str(tmp_path / "file")]) == USAGE
    assert "give a run directory" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        verdict.main([str(tmp_path), "--starts", "0"])
    assert ended.value.code == USAGE


def test_without_a_record_it_is_not_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(verdict, "replace_atomically", full)
    assert verdict.main([str(tmp_path / "run")]) == FAILED
