"""Trajectory dumps of real jobs: every step once, whatever dies; what was lived through can be lived through again."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest

from dppo.trajectories.format import checksum_problem, rank_folders, segment_files
from dppo.trajectories.reader import open_trajectories
from dppo.trajectories.validate import validate
from tests.launch import Launcher
from tests.run_directory import count_lines, metric_lines, summary

CELLS = {
    "allreduce": ("--exchange", "allreduce"),
    "p2p": ("--exchange", "p2p"),
    "drop": ("--exchange", "p2p", "--server.drop", 1),
    "async": ("--mode", "async"),
}
DUMPS = ("--trajectories.enabled", "--trajectories.segment-mb", 0.2, "--log.no-tensorboard")
SMALL = ("--env", "CartPole-v1", "--num-envs", 4, "--horizon", 16, "--ppo.epochs", 1, "--ppo.minibatches", 1)


def rows(run_dir: Path) -> dict[int, list[int]]:
    """{rank: rows of all its segments, in their order}."""
    out: dict[int, list[int]] = {}
    for rank, folder in rank_folders(run_dir).items():
        out[rank] = []
        for path in segment_files(folder).values():
            with h5py.File(path) as file:
                out[rank] += file["steps/row"][()].tolist()
    return out


def manifest(run_dir: Path) -> dict[str, Any]:
    """Of the newest checkpoint."""
    path = sorted((run_dir / "checkpoints").glob("step_*/manifest.json"))[-1]
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def assert_valid(run_dir: Path) -> None:
    assert [str(v) for v in validate(run_dir)] == []


# -- every step once --------------------


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_every_step_is_there_once_after_kills_and_resumes(cell: str, launch: Launcher, tmp_path: Path) -> None:
    run_dir, rng = tmp_path / "run", random.Random(cell)
    first = (*SMALL, *CELLS[cell], *DUMPS, "--total-steps", 10**8, "--checkpoint.every", 3000)
    for attempt in range(3):
        flags = first if attempt == 0 else ("--resume",)
        lines = count_lines(run_dir)
        job = launch.start(4, *flags, "--run-dir", run_dir)
        job.until(lambda lines=lines: count_lines(run_dir) not in (0, lines))  # type: ignore[misc]
        time.sleep(rng.uniform(0, 0.5))
        job.kill()
        assert_valid(run_dir)
    steps = manifest(run_dir)["env_steps"] + 4000
    launch.run(4, "--resume", "--run-dir", run_dir, "--total-steps", steps)
    assert_valid(run_dir)
    for held in rows(run_dir).values():
        assert held == list(range(len(held)))
    assert sum(4 * len(held) for held in rows(run_dir).values()) == summary(run_dir)["env_steps"]
    named = manifest(run_dir)["next_segments"]
    assert named == {str(rank): len(segment_files(f)) for rank, f in rank_folders(run_dir).items()}
    assert all(checksum_problem(p) is None for f in rank_folders(run_dir).values() for p in segment_files(f).values())


def test_a_preempted_run_and_its_resume_hold_what_one_run_holds(launch: Launcher, tmp_path: Path) -> None:
    """To the bit: the rows, actions and rewards of all ranks, and the policy versions."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = (*SMALL, *DUMPS, "--checkpoint.every", 3000)
    launch.run(3, *flags, "--total-steps", 12_000, "--run-dir", whole)
    job = launch.start(3, *flags, "--total-steps", 12_000, "--run-dir", parts)
    job.until(lambda: count_lines(parts) > 20)
    job.send(signal.SIGUSR1)
    assert job.wait(20).code == 75
    assert_valid(parts)
    launch.run(3, "--resume", "--run-dir", parts)
    assert metric_lines(parts) == metric_lines(whole)
    assert_valid(parts)
    a, b = (open_trajectories(run).to_numpy() for run in (whole, parts))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize(("cell", "victim"), [("allreduce", 0), ("p2p", 0), ("async", 0), ("async", 2)])
def test_ranks_may_die_while_trajectories_are_written(cell: str, victim: int, launch: Launcher, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    flags = (*SMALL, *CELLS[cell], *DUMPS, "--total-steps", 10**8, "--checkpoint.every", 2000)
    job = launch.start(4, *flags, "--run-dir", run_dir, survives=True)
    job.until(lambda: count_lines(run_dir) > 30)
    job.send(signal.SIGKILL, rank=victim)
    seen = count_lines(run_dir)
    job.until(lambda: count_lines(run_dir) > seen + 60)
    job.send(signal.SIGUSR1)
    assert job.wait(20).code == 75
    assert_valid(run_dir)
    ended = launch.run(4, "--resume", "--run-dir", run_dir, "--total-steps", manifest(run_dir)["env_steps"] + 4000)
    assert ended.code == 0
    assert_valid(run_dir)


def test_a_replacement_writes_on_in_the_folder_of_the_dead(launch: Launcher, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    flags = (*SMALL, *DUMPS, "--total-steps", 10**8, "--checkpoint.every", 2000, "--respawn")
    job = launch.start(4, *flags, "--run-dir", run_dir, survives=True)
    job.until(lambda: count_lines(run_dir) > 30)
    job.send(signal.SIGKILL, rank=2)
    job.until(lambda: metric_lines(run_dir)[-1]["ranks_replaced"] == "1")
    seen = count_lines(run_dir)
    job.until(lambda: count_lines(run_dir) > seen + 60)
    job.send(signal.SIGUSR1)
    job.wait(20)
    assert_valid(run_dir)
    held = rows(run_dir)
    assert set(held) == {1, 2, 3}
    assert held[2][-1] == held[1][-1] and len(held[2]) <= len(held[1])


# -- again --------------------


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "HalfCheetah-v5"])
def test_what_was_lived_through_can_be_lived_through_again(env: str, launch: Launcher, tmp_path: Path) -> None:
    """A fresh environment, the dumped seed and actions: observations, rewards and ends to the bit."""
    run_dir = tmp_path / "run"
    steps = {"HalfCheetah-v5": 10_000}.get(env, 6000)
    horizon = ("--num-envs", 2, "--horizon", 64, "--ppo.epochs", 1, "--ppo.minibatches", 1)
    launch.run(3, "--env", env, *horizon, *DUMPS, "--total-steps", steps, "--run-dir", run_dir, timeout=100)
    fresh = gymnasium.make(env)
    episodes = list(open_trajectories(run_dir, complete_only=True))
    assert len(episodes) >= 4
    for episode in episodes:
        observation, _ = fresh.reset(seed=episode.seed)
        for t, action in enumerate(episode.actions):
            np.testing.assert_array_equal(episode.observations[t], observation)
            observation, reward, terminated, truncated, _ = fresh.step(action)
            assert np.float32(reward) == episode.rewards[t]
            assert (terminated, truncated) == (episode.terminations[t], episode.truncations[t])
        assert terminated or truncated
        np.testing.assert_array_equal(episode.observations[-1], observation)


# -- a full disk --------------------


def full_disk(launch: Launcher, run_dir: Path, *flags: object, **expected: Any) -> Any:
    settings = (
        "--env", "odd_envs:odd/FullDisk-v0", "--num-envs", 4, "--horizon", 32, "--ppo.epochs", 1,
        "--ppo.minibatches", 1, *DUMPS, "--trajectories.compression", "none", "--trajectories.segment-mb", 0.02,
        "--total-steps", 20_000, "--checkpoint.every", 0,
    )  # fmt: skip
    return launch.run(3, *settings, "--run-dir", run_dir, *flags, **expected)


def test_a_full_disk_is_said_once_and_training_goes_on(launch: Launcher, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    ended = full_disk(launch, run_dir)
    assert len(ended.messages) == 1, ended
    assert "could not be written: [Errno 27] File too large; training goes on" in ended.messages[0]
    assert summary(run_dir)["exit"] == "finished"
    assert not list(run_dir.rglob("*.part"))
    assert_valid(run_dir)
    assert all(len(held) > 100 for held in rows(run_dir).values()), "what was sealed before is intact"


def test_a_full_disk_ends_the_run_where_dumps_are_required(launch: Launcher, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    ended = full_disk(launch, run_dir, "--trajectories.required", code=1)
    assert "could not be written: [Errno 27] File too large (--trajectories.required)" in ended.stderr
    assert "Traceback" not in ended.stderr, ended
    assert summary(run_dir)["exit"] == "failed"
    assert_valid(run_dir)
    assert all(len(held) > 100 for held in rows(run_dir).values())


# -- what goes wrong together --------------------


def test_a_signal_right_after_a_death_still_saves(launch: Launcher, tmp_path: Path) -> None:
    """The last boundary is of before the death: nobody asks the dead for their rows."""
    run_dir = tmp_path / "run"
    env = ("--env", "odd_envs:odd/SlowLater-v0", "--num-envs", 2, "--horizon", 10, "--ppo.epochs", 1)
    job = launch.start(
        4, *env, "--ppo.minibatches", 1, *DUMPS, "--total-steps", 10**6, "--run-dir", run_dir, survives=True
    )
    job.until(lambda: count_lines(run_dir) >= 9)
    job.send(signal.SIGKILL, rank=2)
    time.sleep(0.3)
    job.send(signal.SIGUSR1)
    ended = job.wait(30)
    assert ended.code == 75, ended
    assert_valid(run_dir)


@pytest.mark.parametrize("survives", [False, True])
def test_what_was_lost_is_made_again_where_dumps_are_required(survives: bool, launch: Launcher, tmp_path: Path) -> None:
    """No checkpoint is written over lost rows; a resume, on a disk with room, holds every step."""
    run_dir = tmp_path / "run"
    full_disk(launch, run_dir, "--trajectories.required", "--checkpoint.every", 300, code=1, survives=survives)
    seen = manifest(run_dir)
    assert "missing_rows" not in seen or not seen["missing_rows"]
    config = run_dir / "config.toml"
    config.write_text(config.read_text().replace("FullDisk", "Uneven"))
    launch.run(3, "--resume", "--run-dir", run_dir, "--total-steps", seen["env_steps"] + 2000)
    assert_valid(run_dir)
    assert all(held == list(range(len(held))) for held in rows(run_dir).values())


def test_a_slow_disk_does_not_keep_checkpoints_from_being_written(launch: Launcher, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    flags = (*SMALL, *DUMPS, "--trajectories.segment-mb", 0.02, "--checkpoint.every", 1000, "--total-steps", 20_000)
    launch.run(3, *flags, "--run-dir", run_dir, program="slow_disk.py")
    assert len(list((run_dir / "checkpoints").glob("step_*"))) == 3
    assert manifest(run_dir)["env_steps"] >= 20_000
    lines = (run_dir / "checkpoints.txt").read_text().split()
    assert len(lines) >= 4, "while it trains, too"
    assert_valid(run_dir)


def test_a_worker_that_is_stuck_does_not_cost_the_others_their_rows(launch: Launcher, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    env = ("--env", "odd_envs:odd/BadOnRankTwo-v0", "--mode", "async", "--num-envs", 2, "--horizon", 8)
    job = launch.start(
        4, *env, *DUMPS, "--total-steps", 10**6, "--checkpoint.grace-s", 3, "--run-dir", run_dir, FAULT="hang",
    )  # fmt: skip
    job.until(lambda: count_lines(run_dir) >= 30)
    job.send(signal.SIGUSR1)
    ended = job.wait(30)
    assert ended.code == 75, ended
    assert_valid(run_dir)
    state, held = manifest(run_dir), rows(run_dir)
    assert all(len(held[rank]) >= 200 for rank in (1, 3))
    assert set(state["missing_rows"]) <= {"2"}, "what the healthy ones had is on disk"


# -- what is in them --------------------


def test_in_async_the_version_of_a_row_is_that_of_the_parameters_that_acted(launch: Launcher, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    flags = (*SMALL, "--mode", "async", *DUMPS, "--total-steps", 6000, "--run-dir", run_dir)
    launch.run(4, *flags, program="acting_versions.py")
    server = dict(json.loads(line) for line in (tmp_path / "server.txt").read_text().splitlines())
    checked = lags = 0
    for worker in range(3):
        acted = dict(json.loads(line) for line in (tmp_path / f"worker_{worker}.txt").read_text().splitlines())
        for segment in open_trajectories(run_dir, ranks=[worker + 1]).segments():
            for row, version in zip(segment["row"].tolist(), segment["policy_version"].tolist(), strict=True):
                first = max(r for r in acted if r <= row)
                assert server[version] == acted[first]
                checked += 1
                lags += version > 0
    assert checked > 1000 and lags > 500
