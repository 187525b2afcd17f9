"""Environments that are programs of several ranks: one run of groups equals one without, and a group dies as one."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from dppo.trajectories.reader import open_trajectories
from dppo.trajectories.validate import validate
from tests.launch import Launcher
from tests.mpi.test_recovery import CELLS, MODES, assert_whole, kill, lost
from tests.run_directory import checkpoint, count_lines, differences, metric_lines, summary

HOST = socket.gethostname()
SMALL = (
    "--env", "group_envs:Ring", "--num-envs", 2, "--horizon", 8, "--log.no-tensorboard", "--no-optim.anneal",
)  # fmt: skip
SYNC = ("--ppo.epochs", 2, "--ppo.minibatches", 2)
PAIRS = ("--env-ranks", 2)
CASES = ("--cases", '{name="short",env-kwargs={length=13}}', '{name="long"}', '{name="odd",env-kwargs={length=17}}')


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["allreduce", "p2p"])
def test_two_ranks_are_one_environment_to_the_bit(cell: str, launch: Launcher, tmp_path: Path) -> None:
    """Also where the run is interrupted within episodes, and resumed; also in cases."""
    one, two = tmp_path / "one", tmp_path / "two"
    flags = (*SMALL, *SYNC, *CELLS[cell], "--trajectories.enabled", *(CASES if cell == "p2p" else ()))
    launch.run(3, *flags, "--total-steps", 320, "--run-dir", one, timeout=180)
    launch.run(5, *flags, *PAIRS, "--total-steps", 160, "--run-dir", two, timeout=180)
    ended = launch.run(5, "--resume", "--run-dir", two, "--total-steps", 320, timeout=180)
    assert f"group 1: ranks 3-4 on {HOST}, core" in ended.stdout
    assert metric_lines(one) == metric_lines(two)
    assert len(metric_lines(one)) == 10
    assert differences(checkpoint(one)["state"], checkpoint(two)["state"]) == []
    if cell == "p2p":
        assert "case short: environments 0,3 of groups 0-1" in ended.stdout
        lengths = {(int(e.env), e.case, e.length) for e in open_trajectories(two) if e.complete}
        assert lengths == {(0, "short", 13), (1, "long", 20), (2, "odd", 17), (3, "short", 13)}
        assert validate(two) == []
        last: dict[str, Any] = metric_lines(two)[-1]
        assert sum(int(case["episodes"]) for case in last["cases"].values()) == int(last["episodes"])


@pytest.mark.slow
def test_a_group_evaluates_as_one_rank_does(launch: Launcher, tmp_path: Path) -> None:
    flags = (*SMALL, *SYNC, "--total-steps", 32)
    launch.run(2, *flags, "--run-dir", "one", timeout=180)
    launch.run(3, *flags, *PAIRS, "--run-dir", "two", timeout=180)
    play = ("--episodes", 3, "--json")
    alone = launch.run(1, "one", *play, program="evaluate.py", timeout=180)
    pair = launch.run(2, "two", *play, program="evaluate.py", timeout=180)
    assert json.loads(alone.stdout) == json.loads(pair.stdout)
    refused = launch.run(1, "two", *play, program="evaluate.py", timeout=180, code=2)
    assert [line for line in refused.messages if "mpirun -n 2 python -m dppo.evaluate two" in line], refused


@pytest.mark.slow
@pytest.mark.parametrize("cell", MODES)
def test_groups_die_as_one_and_the_others_learn_on(cell: str, launch: Launcher, tmp_path: Path) -> None:
    """Of three groups one loses a member, another one its head."""
    run_dir = tmp_path / "run"
    flags = (*SMALL, *CELLS[cell], *PAIRS, "--ppo.minibatches", 2, "--checkpoint.every", 200)
    job = launch.start(7, *flags, "--target-return", 8, "--run-dir", run_dir, survives=True)
    job.until(lambda: count_lines(run_dir) > 1, timeout=180)
    kill(job, 4)
    job.until(lambda: lost(run_dir) == 1, timeout=60)
    assert not job.has_rank(3)
    kill(job, 5)
    ended = job.wait(240)
    assert ended.code == 0, ended
    assert f"group 1: rank 4 on {HOST} has died, and rank 3 on {HOST} with it" in ended.stderr, ended
    assert f"rank 5 on {HOST} has died in iteration" in ended.stderr, ended
    last = assert_whole(run_dir)[-1]
    assert (int(last["ranks_lost"]), int(last["workers"])) == (2, 1)
    assert summary(run_dir)["exit"] == "target" and summary(run_dir)["return_mean_100"] >= 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "victims", "left"), [("allreduce", (2, 3), 0), ("p2p", (0, 4), 1), ("async", (1, 0), 3)]
)
def test_a_group_is_replaced_whole(
    cell: str, victims: tuple[int, int], left: int, launch: Launcher, tmp_path: Path
) -> None:
    """A member, a head, and the server, in whose place the head of group 0 serves; each once the last is replaced."""
    run_dir = tmp_path / "run"
    flags = (*SMALL, *CELLS[cell], *PAIRS, "--ppo.minibatches", 2, "--total-steps", 10**8, "--respawn")
    job = launch.start(5, *flags, "--run-dir", run_dir, survives=True)
    job.until(lambda: count_lines(run_dir) > 1, timeout=180)
    pids = [job.rank_pid(rank) for rank in range(5)]  # replacements have numbers from 0 as well
    for number, victim in enumerate(victims):
        os.kill(pids[victim], signal.SIGKILL)
        counted = f'"ranks_replaced": {number + 1},'
        job.until(lambda counted=counted: counted in (run_dir / "metrics.jsonl").read_text(), 120)  # type: ignore[misc]
    os.kill(pids[left], signal.SIGUSR1)
    ended = job.wait(60)
    assert ended.code == 75 and "2 rank(s) were replaced: 5 again" in ended.stderr, ended
    last = assert_whole(run_dir)[-1]
    assert (last["workers"], last["ranks_lost"], last["ranks_replaced"]) == ("2", "2", "2")
    assert summary(run_dir)["exit"] == "preempted" and summary(run_dir)["world_size"] == 3


@pytest.mark.slow
def test_without_groups_a_run_cannot_go_on(launch: Launcher, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = launch.start(3, *SMALL, *PAIRS, *SYNC, "--total-steps", 10**8, "--run-dir", run_dir, survives=True)
    job.until(lambda: count_lines(run_dir) > 1, timeout=180)
    kill(job, 2)
    ended = job.wait(60)
    assert ended.code == 1 and "no group is left: --resume goes on from the last checkpoint" in ended.stderr, ended
    assert summary(run_dir)["exit"] == "failed" and "Traceback" not in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 3])
def test_a_rank_that_dies_before_there_are_groups_takes_its_group_with_it(
    victim: int, launch: Launcher, tmp_path: Path
) -> None:
    """The ranks that are left would make no whole groups; the lowest one serves."""
    flags = (*SMALL, *SYNC, *PAIRS, "--total-steps", 64, "--run-dir", "run")
    ended = launch.run(5, *flags, program="early_death.py", survives=True, VICTIMS=str(victim), timeout=180)
    assert "a rank has died at start-up; 3 begin again" in ended.stderr, ended
    assert summary(tmp_path / "run")["exit"] == "finished" and summary(tmp_path / "run")["world_size"] == 2


@pytest.mark.slow
def test_without_ulfm_a_death_ends_the_job_and_a_resume_goes_on(launch: Launcher, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    flags = (*SMALL, *SYNC, *PAIRS, "--checkpoint.every", 1)
    job = launch.start(5, *flags, "--total-steps", 10**8, "--run-dir", run_dir)
    job.until(lambda: count_lines(run_dir) > 1, timeout=180)
    os.kill(job.rank_pid(2), signal.SIGKILL)
    assert job.wait(20).code in (1, 137)
    done = count_lines(run_dir)
    launch.run(5, "--resume", "--run-dir", run_dir, "--total-steps", 32 * (done + 2), timeout=180)
    assert_whole(run_dir)
    assert count_lines(run_dir) == done + 2 and summary(run_dir)["exit"] == "finished"


FAILING = (*SMALL, "--env", "group_envs:Failing", *SYNC, *PAIRS, "--total-steps", 160, "--run-dir", "run")


@pytest.mark.slow
def test_a_members_error_ends_the_job_though_its_head_waits_for_it(launch: Launcher, tmp_path: Path) -> None:
    ended = launch.run(5, *FAILING, "--env-kwargs", "rank=4", code=1, timeout=180)
    assert f"dppo: rank 4 on {HOST} failed in the environment of group 1:" in ended.stderr, ended
    assert "the flow has diverged" in ended.stderr
    assert summary(tmp_path / "run")["exit"] == "failed"


@pytest.mark.slow
def test_a_members_error_interrupts_the_others(launch: Launcher, tmp_path: Path) -> None:
    """Then the environment is made anew on all ranks of the group."""
    flags = (*FAILING, "--env-kwargs", "rank=4", "step=7", "--on-env-error", "restart")
    ended = launch.run(5, *flags, timeout=180, survives=True)
    assert f"environment 2 (group_envs:Failing) is made anew, its episode is cut: MemberError: rank 4 on {HOST}" in (
        ended.stderr
    ), ended
    assert int(metric_lines(tmp_path / "run")[-1]["env_restarts"]) > 2


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "cell"), [(4, "allreduce"), (3, "p2p")], ids=["member", "head"])
def test_a_rank_that_hangs_is_the_end_of_its_group(rank: int, cell: str, launch: Launcher, tmp_path: Path) -> None:
    limits = ("--log.stall-abort-s", 8, "--on-worker-error", "continue")
    flags = (*FAILING, *CELLS[cell], "--env-kwargs", f"rank={rank}", "how=hang", *limits)
    ended = launch.run(5, *flags, timeout=180, survives=True)
    assert "no progress for" in ended.stderr and f"rank 3 on {HOST} has died" in ended.stderr, ended
    assert "rank 1 on" not in ended.stderr and "rank 2 on" not in ended.stderr, ended
    assert summary(tmp_path / "run")["exit"] == "finished"


@pytest.mark.slow
def test_an_environment_that_a_member_cannot_make_is_wrong_use(launch: Launcher, tmp_path: Path) -> None:
    ended = launch.run(5, *FAILING, "--env-kwargs", "rank=4", "where=make", code=2, timeout=180)
    assert len(ended.messages) == 1 and f"rank 4 on {HOST}: env='group_envs:Failing' cannot be made" in ended.stderr
    assert not (tmp_path / "run").exists()
