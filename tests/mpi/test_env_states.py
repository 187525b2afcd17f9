"""Runs of simulators that save their own states: killed and resumed, and after deaths of ranks."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.envs import saving_sims
from tests.launch import Launcher, train_in_one_start
from tests.run_directory import count_lines, metric_lines, parameters, summary

PLATE = (
    "--env", f"{saving_sims.__name__}:Plate", "--env-kwargs", "length=150", "--num-envs", 1, "--horizon", 16,
    "--log.no-tensorboard", "--checkpoint.every", 160, "--checkpoint.states-s", 0,
)  # fmt: skip
PPO = ("--ppo.epochs", 2, "--ppo.minibatches", 2)
CELLS = {
    "allreduce": ("--exchange", "allreduce", *PPO), "p2p": ("--exchange", "p2p", *PPO), "async": ("--mode", "async"),
}  # fmt: skip
STEPS = 32 * 60


def calls(run_dir: Path, env: int) -> list[str]:
    return (run_dir / "envs" / f"env_{env:05d}" / "calls.txt").read_text().split()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that were never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    runs = {name: (*PLATE, *CELLS[name], "--total-steps", STEPS) for name in ("allreduce", "p2p")}
    train_in_one_start(folder, 3, runs, timeout=200)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("cell", CELLS)
def test_a_killed_run_loads_states_and_ends_as_one_never_stopped(
    cell: str, whole: Path, launch: Launcher, tmp_path: Path
) -> None:
    """Nothing is reset or stepped before the states are loaded; in sync the numbers are the same to the bit."""
    run_dir = tmp_path / "run"
    job = launch.start(3, *PLATE, *CELLS[cell], "--total-steps", STEPS, "--run-dir", run_dir)
    job.until(lambda: count_lines(run_dir) >= 17, timeout=120)
    job.kill()
    before = [calls(run_dir, env) for env in range(2)]
    launch.run(3, "--resume", "--run-dir", run_dir, timeout=150)
    for env in range(2):
        then = calls(run_dir, env)[len(before[env]) :]
        assert then[0] == "load" and then.count("load") == 1
    assert (summary(run_dir)["exit"], summary(run_dir)["attempt"]) == ("finished", 2)
    assert not (run_dir / "checkpoints" / "states").exists(), "the last checkpoint has its own"
    if cell != "async":
        assert metric_lines(run_dir) == metric_lines(whole / cell)
        assert parameters(run_dir).tobytes() == parameters(whole / cell).tobytes()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_rank_that_replaces_a_dead_one_loads_its_states(launch: Launcher, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    endless = [{"length=150": "length=100000"}.get(str(flag), flag) for flag in PLATE]
    flags = (*endless, *CELLS["p2p"], "--total-steps", 10**8, "--respawn")
    job = launch.start(3, *flags, "--run-dir", run_dir, survives=True)
    job.until(lambda: count_lines(run_dir) >= 6, timeout=120)
    before = calls(run_dir, 1)
    job.send(signal.SIGKILL, rank=2)
    job.until(lambda: "load" in calls(run_dir, 1), timeout=120)
    lines = count_lines(run_dir)
    job.until(lambda: count_lines(run_dir) > lines + 2, timeout=120)
    job.send(signal.SIGUSR1)
    ended = job.wait(120)
    after = calls(run_dir, 1)
    assert before.count("reset") == after.count("reset") == 1, ended
    assert summary(run_dir)["exit"] == "preempted" and "could not be" not in ended.stderr, ended
