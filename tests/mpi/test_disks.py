"""Run directories that cannot be opened, or not taken over, and disks that are full: the reason, at once, once."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch import Job, Launcher
from tests.run_directory import count_lines, latest, metric_lines, summary

SMALL = (
    "--num-envs", 2, "--horizon", 16, "--ppo.epochs", 1, "--ppo.minibatches", 1, "--log.no-tensorboard",
    "--checkpoint.every", 200,
)  # fmt: skip
SLOW = ("--env", "odd_envs:odd/Uneven-v0", *SMALL, "--total-steps", 10**8)
LIMIT_S = 15.0


@pytest.mark.parametrize("ranks", [None, 3])
def test_a_run_directory_that_cannot_be_made_is_wrong_use(ranks: int | None, launch: Launcher) -> None:
    """The kernel refuses it to root as well."""
    flags = ("--env", "CartPole-v1", *SMALL, "--run-dir", "/proc/dppo")
    ended = launch.run(ranks, *flags, code=2, timeout=LIMIT_S)
    (message,) = ended.messages
    assert "--run-dir /proc/dppo cannot be written" in message and "choose another" in message
    assert "Traceback" not in ended.stderr


def test_where_a_run_cannot_be_opened_nothing_is_left(launch: Launcher, tmp_path: Path) -> None:
    """Its first checkpoint finds no room."""
    flags = ("--env", "CartPole-v1", *SMALL, "--run-dir", "new/run")
    ended = launch.run(3, *flags, code=2, timeout=LIMIT_S, survives=True, program="no_room.py")
    (message,) = ended.messages
    assert f"--run-dir {tmp_path}/new/run cannot be written ([Errno 28] No space left on device)" in message
    assert not (tmp_path / "new").exists()


def test_a_server_that_cannot_take_the_run_over_says_why(launch: Launcher, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = launch.start(3, *SLOW, "--mode", "async", "--run-dir", run_dir, survives=True)
    job.until(lambda: count_lines(run_dir) > 2)
    (run_dir / "metrics.jsonl").rename(run_dir / "lines")
    (run_dir / "metrics.jsonl").mkdir()
    job.send(signal.SIGKILL, rank=0)
    ended = job.wait(LIMIT_S)
    assert ended.code == 1, ended
    assert sum("cannot be taken over: [Errno 21] Is a directory" in line for line in ended.messages) == 1, ended
    assert "Traceback" not in ended.stderr
    assert summary(run_dir)["exit"] == "failed" and "cannot be taken over" in summary(run_dir)["error"]


def test_a_worker_that_fails_before_the_books_are_open_is_heard(launch: Launcher, tmp_path: Path) -> None:
    """The others wait for it at the start: its word must not be taken for its coming."""
    run_dir = tmp_path / "run"
    flags = ("--env", "odd_envs:odd/BadOnRankTwo-v0", *SMALL)
    launch.run(3, *flags, "--run-dir", run_dir, "--total-steps", 64, FAULT="none")
    ended = launch.run(
        3, "--resume", "--run-dir", run_dir, "--total-steps", 640, code=1, timeout=LIMIT_S, survives=True, FAULT="reset"
    )
    assert sum("rank 2 on" in line and "failed" in line for line in ended.messages) == 1, ended
    assert "RuntimeError: simulated bug in reset" in ended.stderr
    assert summary(run_dir)["exit"] == "failed" and summary(run_dir)["attempt"] == 2


# -- a disk that is full --------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """One of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("nobody but root mounts a disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(job: Job, run_dir: Path) -> Path:
    """Once the run is under way."""
    job.until(lambda: count_lines(run_dir) > 3)
    rest = run_dir.parent / "rest"
    with pytest.raises(OSError, match="No space"), open(rest, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return rest


def test_a_disk_that_is_full_for_a_while_costs_nothing(disk: Path, launch: Launcher) -> None:
    run_dir = disk / "run"
    job = launch.start(3, *SLOW, "--run-dir", run_dir)
    rest = fill(job, run_dir)
    time.sleep(1.0)
    rest.unlink()
    full_at = latest(run_dir).name
    job.until(lambda: latest(run_dir).name > full_at)
    job.send(signal.SIGUSR1)
    ended = job.wait(LIMIT_S)
    assert ended.code == 75, ended
    refused, well = ended.messages
    assert "could not be written: [Errno 28]" in refused and "can be written again" in well
    lines = metric_lines(run_dir)
    assert [int(line["iteration"]) for line in lines] == list(range(1, len(lines) + 1))
    assert int(lines[-1]["env_steps"]) == summary(run_dir)["env_steps"]


def test_a_disk_that_stays_full_ends_the_run_and_the_summary_says_so(disk: Path, launch: Launcher) -> None:
    run_dir = disk / "run"
    job = launch.start(3, *SLOW, "--checkpoint.patience-s", 1, "--run-dir", run_dir)
    fill(job, run_dir)
    ended = job.wait(LIMIT_S)
    assert ended.code == 1, str(ended)
    assert ended.stderr.count("(--checkpoint.patience-s)") == 1, str(ended)
    assert "Traceback" not in ended.stderr
    assert summary(run_dir)["exit"] == "failed" and "No space left" in summary(run_dir)["error"]


def test_a_run_directory_that_was_moved_ends_the_run_and_stays_away(launch: Launcher, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = launch.start(
        3, *SLOW, "--trajectories.enabled", "--checkpoint.patience-s", 1, "--run-dir", run_dir, survives=True
    )
    job.until(lambda: count_lines(run_dir) > 3)
    run_dir.rename(tmp_path / "moved")
    ended = job.wait(LIMIT_S)
    assert ended.code == 1, ended
    assert ended.stderr.count("(--checkpoint.patience-s)") == 1 and "metrics.jsonl was moved" in ended.stderr, ended
    assert not run_dir.exists()


# -- Ctrl-C --------------------


def test_ctrl_c_amid_the_imports_is_a_request_like_any_other(launch: Launcher, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = launch.start(2, *SLOW, "--run-dir", run_dir)
    job.until(lambda: job.has_rank(1) and _imports(job.rank_pid(1)))
    job.send(signal.SIGINT, rank=1)
    ended = job.wait(LIMIT_S)
    assert ended.code == 75, ended
    assert ended.messages == [] and "Traceback" not in ended.stderr
    assert summary(run_dir)["exit"] == "preempted"


def _imports(pid: int) -> bool:
    """Whether the process has come as far as NumPy: long after dppo's first lines, long before training."""
    return "numpy" in Path(f"/proc/{pid}/maps").read_text()
