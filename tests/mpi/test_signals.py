"""A job that is told to go saves its state in time and leaves with 75, from which it can be resumed."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.launch import Launcher
from tests.run_directory import count_lines, latest, metric_lines, summary

EXIT_PREEMPTED = 75
SMALL = (
    "--num-envs", 2, "--horizon", 32, "--ppo.epochs", 2, "--ppo.minibatches", 2, "--total-steps", 10**8,
    "--log.no-tensorboard",
)  # fmt: skip
CARTPOLE = ("--env", "CartPole-v1", *SMALL)


@pytest.mark.parametrize(
    ("number", "rank", "mode"),
    [
        (signal.SIGUSR1, None, ("--mode", "async")),  # None: to mpirun; sync is in test_repeatable.py
        (signal.SIGTERM, 0, ("--exchange", "allreduce")),
        (signal.SIGTERM, 2, ("--exchange", "p2p")),
        (signal.SIGUSR1, 1, ("--exchange", "allreduce")),
        (signal.SIGUSR1, 2, ("--mode", "async")),
    ],
)
def test_a_signal_saves_the_next_boundary(
    number: signal.Signals, rank: int | None, mode: tuple[str, ...], launch: Launcher, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    job = launch.start(3, *CARTPOLE, *mode, "--run-dir", run_dir)
    job.until(lambda: count_lines(run_dir) > 3)
    job.send(number, rank)
    ended = job.wait(10)
    assert ended.code == EXIT_PREEMPTED, ended
    assert ended.messages == [], ended
    result, lines = summary(run_dir), metric_lines(run_dir)
    assert result["exit"] == "preempted"
    assert result["preempted_by"] in (number.name, "a signal to a worker")  # mpirun passes it on to all of them
    assert f"preempted by {result['preempted_by']}, state saved; run again with --resume" in ended.stdout
    assert result["env_steps"] == int(lines[-1]["env_steps"]) == int(latest(run_dir).name.removeprefix("step_"))

    total = result["env_steps"] + 1
    ended = launch.run(3, "--resume", "--run-dir", run_dir, "--total-steps", total)
    assert f"resumed at {result['env_steps']:,} steps" in ended.stdout
    assert ended.messages == []
    assert summary(run_dir)["exit"] == "finished" and summary(run_dir)["attempt"] == 2
    assert [int(line["iteration"]) for line in metric_lines(run_dir)] == list(range(1, count_lines(run_dir) + 1))


@pytest.mark.parametrize("mode", [("--exchange", "allreduce"), ("--exchange", "p2p"), ("--mode", "async")])
def test_a_rollout_longer_than_the_grace_period_is_given_up(
    mode: tuple[str, ...], launch: Launcher, tmp_path: Path
) -> None:
    """The rollout under way takes 20 s; the boundary before it is saved, well within the grace period."""
    run_dir, grace_s = tmp_path / "run", 4.0
    flags = (
        "--env", "odd_envs:odd/SlowLater-v0", "--num-envs", 2, "--horizon", 100, "--total-steps", 10**6,
        "--ppo.minibatches", 1, "--ppo.epochs", 1, "--checkpoint.grace-s", grace_s, "--run-dir", run_dir,
    )  # fmt: skip
    job = launch.start(3, *flags, *mode)
    job.until(lambda: count_lines(run_dir) == 1)
    time.sleep(0.5)
    since = time.time()
    job.send(signal.SIGUSR1)
    ended = job.wait(10)
    assert ended.code == EXIT_PREEMPTED, ended
    assert (run_dir / "summary.json").stat().st_mtime - since < grace_s
    assert summary(run_dir)["exit"] == "preempted"
    assert summary(run_dir)["env_steps"] == 400
    assert latest(run_dir).name == "step_000000400"
    assert count_lines(run_dir) == 1


@pytest.mark.parametrize("ranks", [None, 3])
def test_the_time_limit_of_a_batch_job_is_kept(ranks: int | None, launch: Launcher, tmp_path: Path) -> None:
    flags = (*CARTPOLE, "--time-limit-s", 4, "--checkpoint.grace-s", 2.5, "--run-dir", "run")
    start_s = launch.run(ranks, *CARTPOLE, "--dry-run").wall_s
    ended = launch.run(ranks, *flags, code=EXIT_PREEMPTED)
    assert ended.wall_s < 4 + 8 * start_s, "the limit, and the time to start and to leave"
    assert summary(tmp_path / "run")["exit"] == "preempted"
    assert count_lines(tmp_path / "run") > 0


def test_a_lone_rank_heeds_signals_too(launch: Launcher, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = launch.start(None, *CARTPOLE, "--run-dir", run_dir)
    job.until(lambda: count_lines(run_dir) > 3)
    job.send(signal.SIGTERM)
    assert job.wait(15).code == EXIT_PREEMPTED
    assert summary(run_dir)["exit"] == "preempted"


def test_a_second_signal_later_means_it(launch: Launcher, tmp_path: Path) -> None:
    """An environment that hangs, a long grace period, an impatient user."""
    run_dir = tmp_path / "run"
    flags = ("--env", "dppo.envs.probes:dppo/ProbeHang-v0", *SMALL, "--run-dir", run_dir)
    job = launch.start(None, *flags)
    job.until(lambda: count_lines(run_dir) == 3)
    job.send(signal.SIGTERM)
    time.sleep(5.5)
    assert job.running
    job.send(signal.SIGTERM)
    assert job.wait(5).code == 128 + signal.SIGTERM


def test_an_environment_that_takes_the_process_for_its_own_changes_neither_place_nor_end(
    launch: Launcher, tmp_path: Path
) -> None:
    """The run directory is relative; handlers, streams and modes are dppo's again."""
    run_dir = tmp_path / "run"
    job = launch.start(None, "--env", "odd_envs:odd/Rude-v0", *SMALL, "--run-dir", "run")
    job.until(lambda: count_lines(run_dir) > 3)
    job.send(signal.SIGTERM)
    ended = job.wait(10)
    assert ended.code == EXIT_PREEMPTED, ended
    assert ended.messages == [], ended
    assert f"files in {run_dir}" in ended.stdout and "preempted by SIGTERM, state saved" in ended.stdout
    assert summary(run_dir)["exit"] == "preempted" and (run_dir / "metrics.jsonl").stat().st_mode & 0o400
    launch.run(None, "--resume", "--run-dir", "run", "--total-steps", 1)
    assert summary(run_dir)["exit"] == "finished"


def test_one_rank_alone_listens_between_its_updates(launch: Launcher, tmp_path: Path) -> None:
    """They would go on for minutes."""
    run_dir = tmp_path / "run"
    flags = ("--ppo.epochs", 10_000, "--ppo.minibatches", 64, "--ppo.target-kl", 0, "--checkpoint.grace-s", 1)
    job = launch.start(None, *CARTPOLE, *flags, "--run-dir", run_dir)
    job.until((run_dir / "metrics.jsonl").exists)
    time.sleep(1.0)
    job.send(signal.SIGTERM)
    assert job.wait(10).code == 75
    assert summary(run_dir)["exit"] == "preempted"
