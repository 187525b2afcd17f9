"""Run directories are found and read in whatever state a job has left them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from dppo.rundir.runs import find_runs, read_curve, read_run
from tests.fakeruns import CURVE, write_run

# -- where they are --------------------


def test_runs_are_found_at_any_depth_but_none_within_another(tmp_path: Path) -> None:
    for name in ("b", "a/x/y", "a/z"):
        write_run(tmp_path / name)
    write_run(tmp_path / "b" / "checkpoints" / "odd")
    (tmp_path / "config.toml").touch()  # the user's own
    assert [str(p.relative_to(tmp_path)) for p in find_runs(tmp_path)] == ["a/x/y", "a/z", "b"]
    assert find_runs(tmp_path / "b") == [tmp_path / "b"]


def test_a_run_that_has_just_begun_is_one(tmp_path: Path) -> None:
    write_run(tmp_path / "r", exit=None, curve=())
    (tmp_path / "r" / "metrics.jsonl").unlink()
    assert find_runs(tmp_path) == [tmp_path / "r"]


# -- how they stand --------------------


@pytest.mark.parametrize("state", ["finished", "target", "preempted", "failed", "running"])
def test_a_state_is_that_of_the_summary(tmp_path: Path, state: str) -> None:
    run = read_run(write_run(tmp_path / "r", exit=state))
    assert (run.state, run.ended, run.is_damaged) == (state, state in ("finished", "target"), False)
    assert bool(run.reason) != run.ended
    assert run.config is not None and run.config.env == "Env-v0"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("rank 2 on n7 failed:\nTraceback", "rank 2 on n7 failed"),
        (
            "rank 2 failed:\nTraceback (most recent call last):\n  File x\nValueError: no\na note",
            "rank 2 failed: ValueError: no",
        ),
        (None, "its job's output has the traceback"),
        ("", "its job's output has the traceback"),
    ],
)
def test_a_failures_reason_is_where_it_failed_and_its_exception(tmp_path: Path, error: str | None, reason: str) -> None:
    assert read_run(write_run(tmp_path / "r", exit="failed", error=error)).reason == reason


def test_a_running_ones_age_is_told(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", exit="running")
    old = time.time() - 3 * 3600
    for path in folder.iterdir():
        os.utime(path, (old, old))
    assert "its last sign of life is 3 hours old" in read_run(folder).reason
    os.utime(folder / "metrics.jsonl")
    assert "0 seconds old" in read_run(folder).reason


def test_without_a_summary_it_has_just_begun(tmp_path: Path) -> None:
    assert read_run(write_run(tmp_path / "r", exit=None)).state == "running"


def test_damaged_files(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "summary.json").write_text('{"exit": "fini')
    run = read_run(folder)
    assert (run.state, run.reason, run.is_damaged) == ("unreadable", "its summary.json is damaged", False)
    for content, reason in (("[", "is not valid TOML"), ("envv = 'x'", "envv: no such setting; did you mean env?")):
        (folder / "config.toml").write_text(content)
        run = read_run(folder)
        assert (run.state, run.config, run.is_damaged) == ("unreadable", None, True)
        assert run.reason.startswith("its settings: ") and reason in run.reason


@pytest.mark.parametrize("made", [False, True])
def test_nothing_there(tmp_path: Path, made: bool) -> None:
    if made:
        (tmp_path / "r").mkdir()
    assert read_run(tmp_path / "r").state == "missing"


def test_numbers_are_finite_or_none(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r")
    values = {"exit": "finished", "a": 1, "b": 2.5, "c": None, "d": float("nan"), "e": "3", "f": True}
    (folder / "summary.json").write_text(json.dumps(values))
    run = read_run(folder)
    assert [run.number(key) for key in "abcdefg"] == [1.0, 2.5, None, None, None, None, None]


# -- learning curves --------------------


def test_a_curve_has_the_iterations_with_a_return(tmp_path: Path) -> None:
    steps, returns, damaged = read_curve(write_run(tmp_path / "r", curve=(*CURVE, (4000, 0.0))))
    assert (steps.tolist(), returns.tolist(), damaged) == ([2000, 3000, 4000], [20, 40, 0], 0)


def test_nan_is_no_return_and_a_cut_last_line_none_at_all(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"env_steps": 4000, "return_mean_100": NaN}\n')
        file.write('{"env_steps": 5000, "return_me')
    steps, _, damaged = read_curve(folder)
    assert (steps.tolist(), damaged) == ([2000, 3000], 0)


def test_damaged_lines_are_counted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r")
    content = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(b"\0\0\0\n[]\n" + content + b'{"env_steps": "x", "return_mean_100": 1}\n')
    steps, _, damaged = read_curve(folder)
    assert (steps.tolist(), damaged) == ([2000, 3000], 3)


@pytest.mark.parametrize("content", [None, b"", b"\n"])
def test_no_curve(tmp_path: Path, content: bytes | None) -> None:
    folder = write_run(tmp_path / "r", curve=())
    (folder / "metrics.jsonl").unlink()
    if content is not None:
        (folder / "metrics.jsonl").write_bytes(content)
    steps, returns, _ = read_curve(folder)
    assert steps.shape == returns.shape == (0,)
