"""Rank 0 beside many workers: it sleeps while they collect, it drops stragglers, it serves 31 of them on two cores."""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.launch import Launcher, train_in_one_start
from tests.run_directory import count_lines, metric_lines, summary

MODES = {
    "allreduce": ("--exchange", "allreduce"),
    "p2p": ("--exchange", "p2p"),
    "async": ("--mode", "async"),
}
SLEEPERS = ("allreduce", "async")
SMALL = ("--ppo.epochs", 1, "--ppo.minibatches", 1, "--log.no-tensorboard")


def cpu_s(pid: int) -> float:
    """Processor time that a process has used, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Of a core, which the server of each mode uses while two workers collect a rollout of 10 s; both jobs at once."""
    folder = tmp_path_factory.mktemp("shares")
    flags = ("--env", "dppo.envs.probes:dppo/ProbeSlow-v0", "--num-envs", 2, "--horizon", 1000, "--total-steps", 4000)
    with closing(Launcher(folder)) as launcher:
        jobs = {mode: launcher.start(3, *MODES[mode], *flags, *SMALL, "--run-dir", folder / mode) for mode in SLEEPERS}
        for mode, job in jobs.items():
            job.until((folder / mode / "summary.json").exists)
        time.sleep(1.5)
        servers, since = {mode: job.rank_pid(0) for mode, job in jobs.items()}, time.monotonic()
        before = {mode: cpu_s(pid) for mode, pid in servers.items()}
        time.sleep(4.0)
        used = {mode: cpu_s(pid) - before[mode] for mode, pid in servers.items()}
        passed = time.monotonic() - since
        for mode in jobs:
            assert count_lines(folder / mode) == 0, "this was to be measured while the workers collect"
    return {mode: used_s / passed for mode, used_s in used.items()}


@pytest.mark.slow
@pytest.mark.parametrize("mode", SLEEPERS)
def test_the_waiting_server_sleeps(mode: str, shares: dict[str, float]) -> None:
    """Less than 2% of a core."""
    assert shares[mode] < 0.02, f"the server uses {shares[mode]:.1%} of a core"


def test_stragglers_are_dropped_counted_and_no_obstacle(launch: Launcher, tmp_path: Path) -> None:
    """Worker 3 is always late; two of three are enough."""
    run_dir = tmp_path / "run"
    flags = ("--env", "odd_envs:odd/Uneven-v0", "--num-envs", 1, "--horizon", 16, "--total-steps", 16 * 150)
    launch.run(
        4, *flags, "--exchange", "p2p", "--server.drop", 1, "--ppo.epochs", 2, "--ppo.minibatches", 2,
        "--ppo.target-kl", 0, "--log.no-tensorboard", "--run-dir", run_dir,
    )  # fmt: skip
    lines = metric_lines(run_dir)
    assert sum(int(line["late"]) for line in lines) > 0
    # each update is made of two workers' samples: 2 epochs of 2 x 16
    assert {float(line["samples"]) for line in lines} == {64.0}
    assert {float(line["minibatches"]) for line in lines} == {4.0}
    assert summary(run_dir)["env_steps"] >= 16 * 150


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 32 ranks in each mode, in one start, because that is what takes the time."""
    folder = tmp_path_factory.mktemp("crowd")
    flags = ("--env", "CartPole-v1", "--num-envs", 2, "--horizon", 16, "--total-steps", 31 * 32 * 20)
    runs = {name: (*mode, *flags, *SMALL) for name, mode in MODES.items()}
    train_in_one_start(folder, 32, runs, timeout=120)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize("mode", MODES)
def test_32_ranks_on_however_few_cores_finish(mode: str, crowd: Path) -> None:
    result = summary(crowd / mode)
    assert result["exit"] == "finished" and result["world_size"] == 32
    assert result["env_steps"] >= 31 * 32 * 20
    assert count_lines(crowd / mode) >= 15
