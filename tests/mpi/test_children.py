"""Environments with processes of their own: they work, they hear nothing of the job, and nothing is left of them."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from tests.launch import Launcher
from tests.run_directory import count_lines, summary

SMALL = (
    "--num-envs", 2, "--horizon", 16, "--ppo.epochs", 1, "--ppo.minibatches", 1, "--log.no-tensorboard",
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "ranks", "survives"),
    [("fork", None, False), ("fork", 3, True), ("spawn", 3, False), ("forkserver", 3, True), ("program", 3, True)],
)
def test_a_simulator_in_a_child_trains_is_spared_by_signals_and_ended(
    kind: str, ranks: int | None, survives: bool, launch: Launcher, tmp_path: Path
) -> None:
    """mpirun sends SIGUSR1 to all processes of a rank's group."""
    run_dir = tmp_path / "run"
    flags = (*SMALL, "--env", "child_envs:child/InAChild-v0", "--total-steps", 10**8, "--run-dir", run_dir)
    job = launch.start(ranks, *flags, survives=survives, KIND=kind)
    job.until(lambda: count_lines(run_dir) > 2)
    job.send(signal.SIGUSR1)
    ended = job.wait(15)
    assert ended.code == 75 and ended.messages == [], ended
    assert summary(run_dir)["exit"] == "preempted"


@pytest.mark.parametrize("flags", [("--total-steps", 1000), ("--dry-run",)])
def test_what_environments_leave_behind_does_not_hold_the_job(
    flags: tuple[object, ...], launch: Launcher, tmp_path: Path
) -> None:
    ended = launch.run(2, *SMALL, "--env", "child_envs:child/Abandoned-v0", *flags, "--run-dir", "run", timeout=20)
    for rank in (0, 1):
        assert f"rank {rank} on {socket.gethostname()} has left processes behind (sleep" in ended.stderr, ended


@pytest.mark.parametrize("survives", [True, False])
def test_a_constructor_that_blocks_is_caught_by_the_stall_limits(
    survives: bool, launch: Launcher, tmp_path: Path
) -> None:
    flags = (*SMALL, "--env", "child_envs:child/Blocked-v0", "--log.stall-after-s", 0.5, "--log.stall-abort-s", 1.5)
    ended = launch.run(3, *flags, "--run-dir", "run", survives=survives, code=1, timeout=20)
    assert f"rank 1 on {socket.gethostname()}" in ended.stderr and "child_envs.py" in ended.stderr, ended
    assert "rank 2" not in ended.stderr, "who waits is not to blame"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "survives"), [("spawn", False), ("forkserver", True)])
def test_a_program_of_the_users_own_may_have_environments_with_children(
    kind: str, survives: bool, launch: Launcher
) -> None:
    """They import it, and dppo with it, under the same launcher: they are no ranks all the same."""
    ended = launch.run(3, program="own_program.py", survives=survives, timeout=30, KIND=kind)
    assert "the run has finished" in ended.stdout, ended
