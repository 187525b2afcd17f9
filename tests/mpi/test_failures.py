"""A rank that fails ends the whole job within seconds, with a code that is not 0 and a message that names it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from dppo.rundir.checkpoint import newest_valid
from tests.launch import Ended, Launcher
from tests.run_directory import count_lines, latest, metric_lines, summary

HOST = socket.gethostname()
LIMIT_S = 10.0

MODES = {
    "allreduce": ("--exchange", "allreduce"),
    "p2p": ("--exchange", "p2p"),
    "async": ("--mode", "async"),
}
SMALL = (
    "--num-envs", 2, "--horizon", 16, "--ppo.epochs", 1, "--ppo.minibatches", 1, "--total-steps", 10**8,
    "--log.no-tensorboard",
)  # fmt: skip


def assert_failed(ended: Ended, run_dir: Path, rank: int, *parts: str) -> None:
    """One account, of this rank; the summary says so, too; what was saved can still be resumed."""
    assert ended.code not in (0, 2, 75), ended
    assert (ended.stdout + ended.stderr).count(f"rank {rank} on {HOST} failed") == 1, ended
    assert ended.stderr.count("Traceback (most recent call last)") == 1, ended
    for part in parts:
        assert part in ended.stderr, ended
    assert summary(run_dir)["exit"] == "failed"
    assert (latest(run_dir) / "manifest.json").exists()


def run_that_fails(launch: Launcher, ranks: int | None, run_dir: Path, *flags: object, **variables: str) -> Ended:
    """Its end, which must come within the limit after training has begun: the failure is some milliseconds later."""
    job = launch.start(ranks, *flags, *SMALL, "--run-dir", run_dir, **variables)
    job.until((run_dir / "summary.json").exists)
    return job.wait(LIMIT_S)


@pytest.mark.parametrize("mode", MODES)
def test_an_exception_in_one_worker_ends_the_job(mode: str, launch: Launcher, tmp_path: Path) -> None:
    """Worker 2 raises while worker 1 waits for it: in Allreduce, for the server, or not at all."""
    run_dir = tmp_path / "run"
    ended = run_that_fails(launch, 3, run_dir, *MODES[mode], "--env", "odd_envs:odd/BadOnRankTwo-v0", FAULT="raise")
    assert_failed(ended, run_dir, 2, "RuntimeError: simulated bug in the environment")


@pytest.mark.parametrize("survives", [False, True], ids=["plain", "ulfm"])
@pytest.mark.parametrize("close", ["stuck", "leave", "finalize"])
def test_the_reason_is_said_whatever_comes_of_closing_the_environments(
    close: str, survives: bool, launch: Launcher, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    env = ("--env", "odd_envs:odd/ClosesBadly-v0")
    job = launch.start(3, *env, *SMALL, "--run-dir", run_dir, survives=survives, FAULT="raise", CLOSE=close)
    job.until((run_dir / "summary.json").exists)
    ended = job.wait(LIMIT_S)
    assert_failed(ended, run_dir, 2, "RuntimeError: simulated bug in the environment")


CLOSINGS: dict[str, tuple[str, tuple[object, ...], bool]] = {
    "stuck": ("stuck", ("--total-steps", 1), False),
    "stuck, dry run": ("stuck", ("--dry-run",), True),
    "finalize": ("finalize", ("--total-steps", 1), False),
    "finalize, dry run": ("finalize", ("--dry-run",), False),
}
"""(what closing does, flags, whether deaths are survived)"""


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Ended, Path]]:
    """How each job has ended, and its run directory; all at once, because they wait, for what never closes."""
    folder = tmp_path_factory.mktemp("closed")
    with contextlib.closing(Launcher(folder)) as launcher:
        jobs = {}
        for name, (close, flags, survives) in CLOSINGS.items():
            run = ("--env", "odd_envs:odd/ClosesBadly-v0", *SMALL, *flags, "--run-dir", folder / name)
            jobs[name] = launcher.start(3, *run, survives=survives, FAULT="none", CLOSE=close)
        return {name: (job.wait(60), folder / name) for name, job in jobs.items()}


@pytest.mark.parametrize("closing", CLOSINGS)
def test_a_run_that_is_done_ends_whatever_comes_of_closing_the_environments(
    closing: str, closed: dict[str, tuple[Ended, Path]]
) -> None:
    ended, run_dir = closed[closing]
    assert "Traceback" not in ended.stderr, ended
    if "--dry-run" not in CLOSINGS[closing][1]:
        assert summary(run_dir)["exit"] == "finished"


@pytest.mark.parametrize("mode", MODES)
def test_a_gradient_that_is_not_finite_is_named_and_never_stepped_with(
    mode: str, launch: Launcher, tmp_path: Path
) -> None:
    """By rank, update and parameter; whatever was saved is finite."""
    run_dir = tmp_path / "run"
    env = ("--env", "odd_envs:odd/SpoilsGradients-v0", "--checkpoint.every", 1)
    ended = run_that_fails(launch, 3, run_dir, *MODES[mode], *env)
    parts = ("the gradient is not finite, though the loss is", "value.weight[1, 0] is nan", "updates:")
    assert_failed(ended, run_dir, 2, "worker 1: ", *parts)
    saved, skipped = newest_valid(run_dir)
    assert saved is not None and saved.iteration > 0 and skipped == []


@pytest.mark.parametrize("ranks", [None, 3])
def test_an_environment_that_raises_everywhere_is_reported_once(
    ranks: int | None, launch: Launcher, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    ended = run_that_fails(launch, ranks, run_dir, "--env", "dppo.envs.probes:dppo/ProbeCrash-v0")
    rank = 0 if ranks is None else 1 if f"rank 1 on {HOST} failed" in ended.stderr else 2
    assert_failed(ended, run_dir, rank, "RuntimeError: probe: simulated bug in the environment")


@pytest.mark.parametrize("code", [0, 75])
def test_no_environment_ends_the_job_with_a_code_of_ours(code: int, launch: Launcher, tmp_path: Path) -> None:
    """For a script, 0 would be a finished run, and 75 one to start again for ever."""
    flags = ("--env", "odd_envs:odd/BadOnRankTwo-v0")
    ended = run_that_fails(launch, 3, tmp_path / "run", *flags, FAULT="leave", CODE=str(code))
    assert ended.code not in (0, 2, 75), ended
    assert f"rank 2 on {HOST} has left without a word, with exit code {code}," in ended.stderr, ended


def test_nan_from_an_environment_is_traced_to_rank_row_and_environment(launch: Launcher, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    ended = run_that_fails(launch, 3, run_dir, "--env", "odd_envs:odd/BadOnRankTwo-v0", FAULT="nan")
    # its environments 2 and 3 both show it as what their 50th step led to, which is what row 50 acts on
    assert_failed(ended, run_dir, 2, "observation is not finite in row 50 of environment 2: [nan nan]")


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_after_a_killed_rank_a_resume_reaches_the_target(mode: str, launch: Launcher, tmp_path: Path) -> None:
    """Nothing before the last checkpoint is lost."""
    run_dir = tmp_path / "run"
    flags = ("--env", "CartPole-v1", "--target-return", 475, "--checkpoint.every", 5000, "--log.no-tensorboard")
    job = launch.start(3, *MODES[mode], *flags, "--run-dir", run_dir)
    job.until(lambda: count_lines(run_dir) > 15)
    os.kill(job.rank_pid(1), signal.SIGKILL)
    assert job.wait(LIMIT_S).code not in (0, 2, 75)
    saved = int(latest(run_dir).name.removeprefix("step_"))
    assert saved > 0
    ended = launch.run(3, "--resume", "--run-dir", run_dir)
    assert f"resumed at {saved:,} steps" in ended.stdout
    assert summary(run_dir)["exit"] == "target"
    assert [int(line["iteration"]) for line in metric_lines(run_dir)] == list(range(1, count_lines(run_dir) + 1))


@pytest.mark.parametrize(("mode", "victim"), [("allreduce", 2), ("async", 1), ("p2p", 0), ("allreduce", 0)])
def test_a_killed_rank_ends_the_job(mode: str, victim: int, launch: Launcher, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = launch.start(3, *MODES[mode], *SMALL, "--env", "CartPole-v1", "--run-dir", run_dir)
    job.until(lambda: count_lines(run_dir) > 2)
    pid = job.rank_pid(victim)
    os.kill(pid, signal.SIGKILL)
    ended = job.wait(LIMIT_S)
    assert ended.code not in (0, 2, 75), ended
    assert HOST in ended.stderr, "mpirun's own message names the host"
    assert f",{victim}]" in ended.stderr or f"rank {victim} " in ended.stderr, "… and the rank"
    # mpirun sends rank 0 SIGTERM, and SIGKILL 0.25 s later: it may have time to save the next boundary, or not
    assert summary(run_dir)["exit"] in ("running", "preempted")
    assert (latest(run_dir) / "manifest.json").exists()


def test_a_hanging_environment_does_not_keep_a_job_from_being_preempted(launch: Launcher, tmp_path: Path) -> None:
    """Worker 2 never comes back: the last boundary is saved, and the job is over within the grace period."""
    run_dir, grace_s = tmp_path / "run", 3.0
    flags = (*SMALL, "--env", "odd_envs:odd/BadOnRankTwo-v0", "--run-dir", run_dir, "--checkpoint.grace-s", grace_s)
    job = launch.start(3, *flags, FAULT="hang")
    job.until(lambda: count_lines(run_dir) == 3)  # row 50 is in the fourth rollout
    time.sleep(0.5)
    since = time.time()
    job.send(signal.SIGUSR1)
    ended = job.wait(LIMIT_S)
    assert ended.code == 75, ended
    assert (run_dir / "summary.json").stat().st_mtime - since < grace_s
    assert "some workers did not leave" in ended.stderr
    assert summary(run_dir)["exit"] == "preempted"
    assert latest(run_dir).name == f"step_{3 * 64:09d}"


def test_a_hanging_environment_is_shown_by_its_stack_and_ends_the_job_where_asked(
    launch: Launcher, tmp_path: Path
) -> None:
    """Worker 2 never comes back from its environment, worker 1 waits for it; who hangs where can be read."""
    run_dir = tmp_path / "run"
    flags = (*SMALL, "--env", "odd_envs:odd/BadOnRankTwo-v0", "--log.stall-after-s", 1, "--log.stall-abort-s", 3)
    job = launch.start(3, *flags, "--run-dir", run_dir, FAULT="hang")
    job.until(lambda: count_lines(run_dir) == 3)
    ended = job.wait(3 + LIMIT_S)
    assert ended.code not in (0, 2, 75), ended
    assert f"rank 2 on {HOST}" in ended.stderr and "no progress for" in ended.stderr, ended
    stack = (run_dir / "stalls" / "rank_00002.txt").read_text()
    assert "odd_envs.py" in stack and "in step" in stack
    assert (latest(run_dir) / "manifest.json").exists()
