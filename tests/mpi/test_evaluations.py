"""Evaluations on ranks: training's numbers stay the same; they go on after a kill, a resume and a server's death."""

from __future__ import annotations

import json
import os
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dppo.training.policy import load_policy
from tests.launch import Launcher, train_in_one_start
from tests.run_directory import checkpoint, count_lines, differences, metric_lines, summary

CARTPOLE = (
    "--env", "CartPole-v1", "--num-envs", 4, "--horizon", 64, "--ppo.epochs", 2, "--ppo.minibatches", 4,
    "--log.no-tensorboard", "--checkpoint.every", 1500, "--total-steps", 512 * 30,
)  # fmt: skip
EVALUATED = ("--eval.every", 2000, "--eval.episodes", 4)
CELLS = {"allreduce": ("--exchange", "allreduce"), "p2p": ("--exchange", "p2p")}


def evaluations(run_dir: Path) -> list[dict[str, Any]]:
    """evaluations.jsonl without the clock figures."""
    path = run_dir / "evaluations.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{k: v for k, v in line.items() if not k.endswith("_s")} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each cell with and without evaluations, and one that ends by its target, on three ranks."""
    folder = tmp_path_factory.mktemp("whole")
    runs: dict[str, tuple[object, ...]] = {}
    for cell, flags in CELLS.items():
        runs[cell] = (*CARTPOLE, *flags)
        runs[f"{cell}-evaluated"] = (*CARTPOLE, *flags, *EVALUATED)
    runs["target"] = (*CARTPOLE, *CELLS["p2p"], *EVALUATED, "--eval.target-return", 1)
    train_in_one_start(folder, 3, runs, timeout=120)
    return folder


@pytest.mark.parametrize("cell", CELLS)
def test_evaluations_change_no_number_of_the_training(cell: str, whole: Path) -> None:
    alone, evaluated = whole / cell, whole / f"{cell}-evaluated"
    assert count_lines(alone) == 30 and metric_lines(alone) == metric_lines(evaluated)
    assert differences(checkpoint(alone), checkpoint(evaluated)) == []
    assert [line["env_steps"] for line in evaluations(evaluated)] == [
        2048,
        4096,
        6144,
        8192,
        10240,
        12288,
        14336,
        15360,
    ]
    best = max(evaluations(evaluated), key=lambda line: (line["return_mean"], line["env_steps"]))
    assert best["best"] and load_policy(evaluated, "best").env_steps == best["env_steps"]
    assert not (alone / "evaluations.jsonl").exists() and not (alone / "checkpoints" / "best").exists()


def test_the_target_ends_the_run_at_the_next_evaluation(whole: Path) -> None:
    run = summary(whole / "target")
    assert (run["exit"], run["stopped_by"], run["env_steps"]) == ("target", "eval.target-return", 4096)
    assert metric_lines(whole / "target") == metric_lines(whole / "p2p")[:8]
    assert [line["env_steps"] for line in evaluations(whole / "target")] == [2048, 4096]


def test_a_run_that_was_killed_ends_with_the_same_evaluations(whole: Path, launch: Launcher, tmp_path: Path) -> None:
    """SIGKILL to all, in the middle of an evaluation or not, between two checkpoints."""
    run_dir = tmp_path / "run"
    flags = (*CARTPOLE, *CELLS["allreduce"], *EVALUATED, "--run-dir", run_dir)
    job = launch.start(3, *flags)
    job.until(lambda: count_lines(run_dir) >= 11)
    job.kill()
    launch.run(3, "--resume", "--run-dir", run_dir)
    assert metric_lines(run_dir) == metric_lines(whole / "allreduce")
    assert evaluations(run_dir) == evaluations(whole / "allreduce-evaluated")
    assert summary(run_dir)["attempt"] == 2


def test_evaluations_survive_the_servers_death(launch: Launcher, tmp_path: Path) -> None:
    """The new server starts a process of its own; an evaluation that the old one has not finished is played again."""
    run_dir = tmp_path / "run"
    flags = (*CARTPOLE[:-1], 10**8, *CELLS["allreduce"], *EVALUATED, "--run-dir", run_dir)
    job = launch.start(3, *flags, survives=True)
    job.until(lambda: len(evaluations(run_dir)) >= 2)
    before = evaluations(run_dir)
    os.kill(job.rank_pid(0), signal.SIGKILL)
    job.until(lambda: len(evaluations(run_dir)) >= len(before) + 4)
    job.send(signal.SIGUSR1)
    ended = job.wait()
    assert ended.code == 75 and "is the server now" in ended.stderr, ended
    assert "has left processes behind" not in ended.stderr, ended
    steps = [line["env_steps"] for line in evaluations(run_dir)]
    assert evaluations(run_dir)[: len(before)] == before and steps == sorted(set(steps))
    assert max(b - a for a, b in pairwise(steps)) < 2 * 2000 + 512, "at most one was lost"
    load_policy(run_dir, "best")
