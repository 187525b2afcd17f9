"""Evaluations on the disk: lines, the best one, which checkpoints are kept, and how a checkpoint is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dppo.errors import UsageError
from dppo.rundir import paths
from dppo.rundir.checkpoint import read_checkpoint, write_checkpoint
from dppo.rundir.evaluations import (
    best_of,
    evaluated,
    find_checkpoint,
    read_evaluations,
    settle_best,
    waiting,
    write_evaluated,
)
from tests.rundir.test_checkpoint import make_checkpoint


def line(env_steps: int, value: Any) -> dict[str, Any]:
    return {"iteration": env_steps // 10, "env_steps": env_steps, "return_mean": value}


def write_evaluations(run_dir: Path, *lines: dict[str, Any], end: str = "") -> None:
    run_dir.mkdir(exist_ok=True)
    (run_dir / paths.EVALUATIONS).write_text("".join(json.dumps(one) + "\n" for one in lines) + end)


def make_run(run_dir: Path, *steps: int) -> Path:
    """A run whose checkpoints of these steps wait for their evaluation."""
    for env_steps in steps:
        write_evaluated(run_dir, make_checkpoint(env_steps).state)
    return run_dir


def test_lines_are_read_in_order_and_damaged_ones_are_left_out(tmp_path: Path) -> None:
    write_evaluations(tmp_path, line(200, 2.0), line(100, None), {"env_steps": "x", "iteration": 1}, end='{"env_st')
    assert read_evaluations(tmp_path) == [line(100, None), line(200, 2.0)]
    assert read_evaluations(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("returns", "best"),
    [([], None), ([None], None), ([1.0, 3.0, 2.0], 20), ([3.0, 3.0, 2.0], 20), ([float("nan"), -5.0, "9"], 20)],
    ids=str,
)
def test_the_best_is_the_highest_and_of_equal_ones_the_newest(returns: list[Any], best: int | None) -> None:
    assert best_of([line(10 * (i + 1), value) for i, value in enumerate(returns)]) == best


def test_an_evaluated_checkpoint_holds_the_state_and_no_resume_sees_it(tmp_path: Path) -> None:
    make_run(tmp_path, 100)
    (folder,) = evaluated(tmp_path).values()
    assert folder == tmp_path / "checkpoints" / "evaluated" / "step_000000100"
    saved = read_checkpoint(folder)
    assert saved.ranks == {} and saved.env_steps == 100 and (saved.state["parameters"] == 100).all()
    with pytest.raises(UsageError, match="has no valid checkpoint: there is none"):
        find_checkpoint(tmp_path, "latest", lambda checkpoint: None)


def test_those_without_a_line_wait(tmp_path: Path) -> None:
    make_run(tmp_path, 100, 200, 300)
    write_evaluations(tmp_path, line(100, 1.0))
    assert list(waiting(tmp_path, 250)) == [200]


def test_the_best_and_those_that_a_resume_may_need_are_kept(tmp_path: Path) -> None:
    """A resume from 150 undoes the evaluation of 200: then that of 100 is the best again."""
    make_run(tmp_path, 50, 100, 200, 300)
    lines = [line(50, 1.0), line(100, 2.0), line(200, 3.0)]
    write_checkpoint(tmp_path, make_checkpoint(150), keep=3)
    settle_best(tmp_path, lines, pending=[300])
    assert list(evaluated(tmp_path)) == [100, 200, 300]
    assert (tmp_path / "checkpoints" / "best").read_text() == "evaluated/step_000000200\n"
    settle_best(tmp_path, lines[:2], pending=[])
    assert list(evaluated(tmp_path)) == [100]
    assert (tmp_path / "checkpoints" / "best").read_text() == "evaluated/step_000000100\n"
    settle_best(tmp_path, [], pending=[])
    assert evaluated(tmp_path) == {} and not (tmp_path / "checkpoints" / "best").exists()


@pytest.mark.parametrize(
    ("which", "steps"), [("best", 200), ("latest", 150), ("200", 200), (150, 150), ("step_000000150", 150)], ids=str
)
def test_a_checkpoint_has_several_names(tmp_path: Path, which: str | int, steps: int) -> None:
    make_run(tmp_path, 200)
    write_checkpoint(tmp_path, make_checkpoint(150), keep=3)
    settle_best(tmp_path, [line(200, 1.0)], pending=[])
    assert find_checkpoint(tmp_path, which, lambda checkpoint: None)[0].env_steps == steps


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("best", r"has no best checkpoint, which --eval.every keeps while training; there are those of 150, 200 steps"),
        ("17", r"has no checkpoint of 17 steps; there are those of 150, 200 steps"),
        ("newest", r"checkpoint 'newest': name best, latest or a number of steps; there are"),
        (-1, r"checkpoint -1: name best, latest or a number"),
    ],
    ids=str,
)
def test_one_that_is_not_there_is_told_with_those_that_are(tmp_path: Path, which: str | int, said: str) -> None:
    make_run(tmp_path, 200)
    write_checkpoint(tmp_path, make_checkpoint(150), keep=3)
    with pytest.raises(UsageError, match=said):
        find_checkpoint(tmp_path, which, lambda checkpoint: None)


def test_a_best_one_that_is_damaged_or_leads_elsewhere_is_told(tmp_path: Path) -> None:
    make_run(tmp_path, 200)
    best = tmp_path / "checkpoints" / "best"
    best.write_text("../../elsewhere")
    with pytest.raises(UsageError, match=r"names '../../elsewhere', which is not there; there are those of 200 steps"):
        find_checkpoint(tmp_path, "best", lambda checkpoint: None)
    settle_best(tmp_path, [line(200, 1.0)], pending=[])
    (evaluated(tmp_path)[200] / "state.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match=r"step_000000200 is damaged: state.safetensors .*; there are those of 200"):
        find_checkpoint(tmp_path, "best", lambda checkpoint: None)
