"""After a job's end: done, failed, or to be started again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dppo import verdict
from dppo.errors import EXIT_AGAIN as AGAIN
from dppo.errors import EXIT_FAILED as FAILED
from dppo.errors import EXIT_FINISHED as DONE
from dppo.errors import EXIT_USAGE as USAGE
from dppo.verdict import Found, judge

STEP = "step_000050176"
LATER = "step_000060000"
BEFORE = {"job_id": "7", "written": 1, "checkpoint": STEP, "fruitless": 0}


def of(exit_: str, written: int = 2, **more: Any) -> dict[str, Any]:
    return {"exit": exit_, "env_steps": 50176, "written": written, **more}


@pytest.mark.parametrize(
    ("summary", "checkpoint", "before", "launcher", "code", "words", "fruitless"),
    [
        (of("target"), STEP, {}, 0, DONE, "done (target) after 50,176 steps", 0),
        (of("finished"), STEP, BEFORE, 143, DONE, "done (finished)", 0),
        (of("finished", 1), STEP, BEFORE, 0, DONE, "done (finished)", 0),  # there was nothing to do
        (of("finished", 1), STEP, BEFORE, 1, AGAIN, "was cut short", 1),  # it should have gone on, and never began
        (of("finished", 1), STEP, BEFORE, 2, USAGE, "wrong use", 1),
        (of("preempted"), LATER, BEFORE, 75, AGAIN, f"was preempted; newest checkpoint: {LATER}", 0),
        (of("preempted"), STEP, BEFORE, None, AGAIN, "was preempted", 1),
        (of("running"), LATER, BEFORE, 0, AGAIN, "was cut short", 0),
        (of("running"), LATER, BEFORE, 2, AGAIN, "was cut short", 0),  # not what dppo means by 2
        (of("running"), STEP, BEFORE | {"fruitless": 2}, 0, FAILED, "no start of 3 has brought a new one", 3),
        (of("running"), STEP, BEFORE | {"fruitless": 2, "job_id": "6"}, 0, AGAIN, "was cut short", 1),  # submitted anew
        ({}, None, {}, 1, AGAIN, "newest checkpoint: none", 1),
        ({}, None, {}, 2, USAGE, "not started again", 1),
        ({}, None, {}, 75, AGAIN, "was preempted", 1),  # before it had begun
        ({}, None, {"job_id": "7", "checkpoint": None, "fruitless": 2}, 1, FAILED, "not started again", 3),
        (of("running"), "step_000000000", {}, 0, AGAIN, "was cut short", 1),  # nothing was trained
        (of("failed", error="rank 3 failed:\nTraceback\nKeyError: 1\n"), STEP, BEFORE, 1, FAILED, "KeyError: 1", 1),
        (of("failed", error="rank 3: no rollout", stalled=True), LATER, BEFORE, 1, AGAIN, "stalled: rank 3", 0),
        (of("failed", 1, error="x"), STEP, BEFORE, 0, AGAIN, "was cut short", 1),  # of an earlier start
        (of("failed", error=None), STEP, {}, 1, FAILED, "no reason was given", 0),
    ],
)
def test_verdicts(
    summary: dict[str, Any], checkpoint: str | None, before: dict[str, Any], launcher: int | None, code: int,
    words: str, fruitless: int,
) -> None:  # fmt: skip
    found = judge(Found(summary, summary.get("written"), checkpoint), before, "7", 3, launcher)
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


def test_starts_that_were_killed_with_their_script_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    begin = [str(tmp_path), "--starts", "2", "--begin"]
    assert [verdict.main(begin) for _ in range(3)] == [0, 0, FAILED]
    assert "no start of 2 has brought a new one" in capsys.readouterr().err
    first, second = (json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines())
    assert (first["verdict"], second["verdict"], second["fruitless"]) == (AGAIN, FAILED, 2)

    monkeypatch.setenv("SLURM_JOB_ID", "8")  # submitted anew
    assert verdict.main(begin) == 0
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text(STEP)
    assert verdict.main(begin) == 0
    lines = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert [line.get("fruitless") for line in lines] == [1, 2, 0, 0] and "verdict" not in lines[-1]
    (tmp_path / "summary.json").write_text('{"exit": "finished", "attempt": 1}')
    assert verdict.main([str(tmp_path), "--code", "137"]) == DONE
    last = json.loads((tmp_path / "starts.jsonl").read_text().splitlines()[-1])
    assert last["job_id"] == "8" and last["verdict"] == DONE and last["checkpoint"] == STEP


def test_starts_of_a_finished_run_that_never_go_on_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was submitted again, with more steps."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    (tmp_path / "summary.json").write_text('{"exit": "finished", "attempt": 1}')
    assert [verdict.main([str(tmp_path), "--begin"]) for _ in range(4)] == [0, 0, 0, FAILED]


def test_the_run_directory_of_another_job_is_not_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdict, "in_queue", lambda job_id: job_id == "7")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert verdict.main([str(tmp_path), "--begin"]) == 0
    record = (tmp_path / "starts.jsonl").read_text()
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert verdict.main([str(tmp_path), "--begin"]) == USAGE
    assert "job 7 has it, and is still in the queue" in capsys.readouterr().err

    monkeypatch.setenv("SLURM_JOB_ID", "7")  # Slurm has lost sight of a node, and started the job on another
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert verdict.main([str(tmp_path), "--begin"]) == 0
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    assert verdict.main([str(tmp_path), "--code", "1"]) == USAGE
    assert "started this job again elsewhere" in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert lines[0]["verdict"] == AGAIN and json.loads(record)["time"] == lines[0]["time"] and len(lines) == 2
    assert "verdict" not in lines[1]


def test_wrong_use_leaves_nothing_behind(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert verdict.main([str(run_dir), "--begin"]) == 0
    assert verdict.main([str(run_dir), "--code", "2"]) == USAGE
    assert not run_dir.exists()


def test_a_torn_line_of_the_record_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "starts.jsonl").write_bytes(b'{"fruitless": 2, "checkpoint": null, "job_id": null}\n{"frui\xff')
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
    assert verdict.main([str(tmp_path / "run"), "--begin"]) == FAILED
