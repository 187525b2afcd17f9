"""Any rank may die at any moment under ULFM, rank 0 included: the others go on in the same run directory."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from dppo.rundir.checkpoint import checkpoint_folders, read_checkpoint
from tests.launch import Ended, Job, Launcher, train_in_one_start
from tests.parts import probe
from tests.run_directory import count_lines, differences, latest, metric_lines, parameters, summary

HOST = socket.gethostname()
CELLS = {
    "allreduce": ("--exchange", "allreduce"),
    "p2p": ("--exchange", "p2p"),
    "kl": ("--exchange", "p2p", "--ppo.objective", "kl"),
    "async": ("--mode", "async"),
    "async-ppo": ("--mode", "async", "--loss", "ppo"),
}
MODES = ("allreduce", "p2p", "async")
SMALL = (
    "--env", "CartPole-v1", "--num-envs", 2, "--horizon", 16, "--ppo.epochs", 2, "--ppo.minibatches", 2,
    "--log.no-tensorboard",
)  # fmt: skip


def kill(job: Job, *ranks: int) -> None:
    pids = [job.rank_pid(rank) for rank in ranks]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def lost(run_dir: Path) -> int:
    """Ranks that were lost, as the newest line of metrics says."""
    lines = (run_dir / "metrics.jsonl").read_bytes().splitlines(keepends=True) if count_lines(run_dir) else []
    return int(metric_lines(run_dir)[-1]["ranks_lost"]) if lines and lines[-1].endswith(b"\n") else 0


def assert_whole(run_dir: Path) -> list[dict[str, str]]:
    """Every iteration has one line; every checkpoint is whole; nothing is half written."""
    lines = metric_lines(run_dir)
    assert [int(line["iteration"]) for line in lines] == list(range(1, len(lines) + 1))
    for folder in checkpoint_folders(run_dir):
        read_checkpoint(folder)
    assert not [*run_dir.rglob("*.part")]
    assert summary(run_dir)["env_steps"] == int(lines[-1]["env_steps"])
    return lines


def assert_survived(ended: Ended, run_dir: Path, *victims: int, ranks: int) -> dict[str, str]:
    for victim in victims:
        assert f"rank {victim} on {HOST} has died" in ended.stderr, ended
    last = assert_whole(run_dir)[-1]
    assert int(last["ranks_lost"]) == len(victims)
    left = ranks - len(victims)
    assert int(last["workers"]) == max(1, left - 1)
    assert summary(run_dir)["world_size"] == left
    return last


@pytest.fixture(scope="module")
def survived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the run directories of jobs in which a rank has died."""
    return tmp_path_factory.mktemp("survived")


@pytest.mark.parametrize("victim", [0, 1, 2, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_any_rank_may_die(cell: str, victim: int, launch: Launcher, survived: Path) -> None:
    run_dir, every = survived / f"{cell}-{victim}", 7
    flags = (*CELLS[cell], *SMALL, "--total-steps", 10**8, "--checkpoint.every", 1000, "--server.mirror-every", every)
    flags += ("--log.trace",) if victim < 2 else ()
    job = launch.start(4, *flags, "--run-dir", run_dir, survives=True)
    job.until(lambda: count_lines(run_dir) > 9)
    kill(job, victim)
    job.until(lambda: lost(run_dir) == 1)
    after = count_lines(run_dir)
    job.until(lambda: count_lines(run_dir) > after + 9)
    job.send(signal.SIGUSR1)
    ended = job.wait(20)
    assert ended.code == 75, ended
    last = assert_survived(ended, run_dir, victim, ranks=4)
    if victim:
        assert int(last["updates_lost"]) == 0 if cell != "allreduce" else int(last["updates_lost"]) <= 4
    elif not cell.startswith("async"):
        assert int(last["updates_lost"]) <= every
    assert (f"rank 1 on {HOST} is the server now" in ended.stderr) == (victim == 0)
    if victim < 2:  # the dead one's track is there as well
        events = json.loads((run_dir / "trace.json").read_text())["traceEvents"]
        tracks = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
        told = {
            name: {e["name"] for e in events if e["ph"] == "X" and tracks[e["tid"]] == name} for name in tracks.values()
        }
        assert told.keys() >= {"rank 0", "rank 1", "rank 2", "rank 3"}
        assert told["rank 2"] >= {"collect", "act", "step", "learn", "exchange", "recovery"}
        assert "serve" in told["rank 0"]


def test_what_is_left_after_a_death_can_be_resumed(survived: Path) -> None:
    """All runs of the test above, in one start, because starts are what takes the time."""
    iterations = {path.name: count_lines(path) for path in survived.iterdir()}
    assert iterations, "the test above leaves the runs"
    steps = {name: summary(survived / name)["env_steps"] + 1 for name in iterations}
    resumes = {name: ("--resume", "--total-steps", total) for name, total in steps.items()}
    train_in_one_start(survived, 4, resumes, timeout=120)
    for name, before in iterations.items():
        assert len(assert_whole(survived / name)) > before
        assert summary(survived / name)["exit"] == "finished" and summary(survived / name)["attempt"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("cell", MODES)
def test_ranks_die_until_one_is_left_which_reaches_the_target(cell: str, launch: Launcher, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = launch.start(4, *CELLS[cell], "--target-return", 475, "--run-dir", run_dir, survives=True)
    for number, victim in enumerate((2, 0, 3)):
        job.until(lambda number=number: lost(run_dir) == number and count_lines(run_dir) > 4 * number + 3)  # type: ignore[misc]
        kill(job, victim)
    ended = job.wait(60)
    assert ended.code == 0, ended
    assert_survived(ended, run_dir, 2, 0, 3, ranks=4)
    assert summary(run_dir)["exit"] == "target"
    assert summary(run_dir)["return_mean_100"] >= 475


@pytest.mark.parametrize("cell", MODES)
@pytest.mark.parametrize("victims", [(0, 1), (0, 2), (2, 3), (1, 2, 3), (0, 1, 2)])
def test_deaths_may_come_together(cell: str, victims: tuple[int, ...], launch: Launcher, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = launch.start(4, *CELLS[cell], *SMALL, "--total-steps", 10**8, "--run-dir", run_dir, survives=True)
    job.until(lambda: count_lines(run_dir) > 9)
    kill(job, *victims)
    job.until(lambda: lost(run_dir) == len(victims))
    job.send(signal.SIGUSR1)
    ended = job.wait(20)
    assert ended.code == 75, ended
    assert_survived(ended, run_dir, *victims, ranks=4)


@pytest.mark.parametrize(("cell", "victim", "core"), [("allreduce", 2, "gru"), ("p2p", 0, "lstm"), ("async", 3, "gru")])
def test_a_policy_with_memory_of_images_with_masks_survives(
    cell: str, victim: int, core: str, launch: Launcher, tmp_path: Path
) -> None:
    """To the run's end, in an environment that raises if an illegal action comes."""
    run_dir = tmp_path / "run"
    flags = (*CELLS[cell], *SMALL, "--env", "tests.any_space:Masked", "--model.core", core, "--model.core-size", 8)
    job = launch.start(4, *flags, "--total-steps", 3600, "--run-dir", run_dir, survives=True)
    job.until(lambda: count_lines(run_dir) > 4)
    kill(job, victim)
    ended = job.wait(60)
    assert ended.code == 0, ended
    last = assert_survived(ended, run_dir, victim, ranks=4)
    assert summary(run_dir)["exit"] == "finished" and int(last["env_steps"]) >= 3600
    assert float(last["length_mean_100"]) == 7.0 and 0 < float(last["return_mean_100"]) < 14


@pytest.mark.parametrize("cell", MODES)
@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_may_die_before_the_first_update(cell: str, victim: int, launch: Launcher, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = launch.start(4, *CELLS[cell], *SMALL, "--total-steps", 5000, "--run-dir", run_dir, survives=True)
    job.until(run_dir.exists)
    kill(job, victim)
    ended = job.wait(30)
    assert ended.code == 0, ended
    assert_survived(ended, run_dir, victim, ranks=4)


@pytest.mark.parametrize("cell", MODES)
def test_an_exception_is_a_death_where_that_is_asked_for(cell: str, launch: Launcher, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    flags = (*CELLS[cell], *SMALL, "--env", "odd_envs:odd/BadOnRankTwo-v0", "--total-steps", 5000)
    ended = launch.run(
        4, *flags, "--on-worker-error", "continue", "--run-dir", run_dir, survives=True, FAULT="raise", timeout=30
    )
    assert_survived(ended, run_dir, 2, ranks=4)
    assert "RuntimeError: simulated bug in the environment" in ended.stderr
    assert summary(run_dir)["exit"] == "finished"


@pytest.mark.parametrize(
    ("fault", "said"),
    [("leave", "has left without a word, with exit code 7"), ("finalize", "has called MPI_Finalize")],
)
def test_a_rank_that_leaves_without_a_word_is_missed(fault: str, said: str, launch: Launcher, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    flags = (*SMALL, "--env", "odd_envs:odd/BadOnRankTwo-v0", "--total-steps", 5000, "--run-dir", run_dir)
    ended = launch.run(4, *flags, survives=True, FAULT=fault, CODE="7", timeout=30)
    assert_survived(ended, run_dir, 2, ranks=4)
    assert f"rank 2 on {HOST}" in ended.stderr and said in ended.stderr, ended
    assert summary(run_dir)["exit"] == "finished"


def test_an_environment_may_clear_its_variables(launch: Launcher, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    flags = (*SMALL, "--env", "odd_envs:odd/BadOnRankTwo-v0", "--total-steps", 5000, "--run-dir", run_dir)
    ended = launch.run(3, *flags, survives=True, FAULT="forget", timeout=30)
    assert ended.messages == [] and summary(run_dir)["exit"] == "finished", ended


@pytest.mark.parametrize("cell", MODES)
def test_an_exception_ends_the_job_by_default(cell: str, launch: Launcher, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    flags = (*CELLS[cell], *SMALL, "--env", "odd_envs:odd/BadOnRankTwo-v0", "--total-steps", 10**8)
    ended = launch.run(4, *flags, "--run-dir", run_dir, survives=True, FAULT="raise", code=1, timeout=30)
    assert (ended.stdout + ended.stderr).count(f"rank 2 on {HOST} failed") == 1, ended
    assert ended.stderr.count("Traceback (most recent call last)") == 1, ended
    assert summary(run_dir)["exit"] == "failed"


@pytest.mark.parametrize("choice", ["abort", "continue"])
def test_a_rank_that_hangs_ends_the_job_or_only_itself(choice: str, launch: Launcher, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    flags = (
        *SMALL, "--env", "odd_envs:odd/BadOnRankTwo-v0", "--log.stall-after-s", 1, "--log.stall-abort-s", 2,
        "--on-worker-error", choice, "--total-steps", 5000,
    )  # fmt: skip
    ended = launch.run(
        4, *flags, "--run-dir", run_dir, survives=True, FAULT="hang", timeout=30, code=int(choice == "abort")
    )
    assert "odd_envs.py" in (run_dir / "stalls" / "rank_00002.txt").read_text()
    assert f"rank 0 waits for rank 2 on {HOST}" in ended.stderr, ended
    assert summary(run_dir)["exit"] == ("failed" if choice == "abort" else "finished")
    if choice == "continue":
        assert_survived(ended, run_dir, 2, ranks=4)


def test_a_hanging_environment_does_not_keep_a_job_from_being_preempted(launch: Launcher, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    flags = (*SMALL, "--env", "odd_envs:odd/BadOnRankTwo-v0", "--checkpoint.grace-s", 2, "--run-dir", run_dir)
    job = launch.start(3, *flags, survives=True, FAULT="hang")
    job.until(lambda: count_lines(run_dir) == 3)
    time.sleep(0.3)
    job.send(signal.SIGUSR1)
    ended = job.wait(10)
    assert ended.code == 75, ended
    assert summary(run_dir)["exit"] == "preempted"
    assert latest(run_dir).name == f"step_{3 * 64:09d}"


@pytest.mark.parametrize("cell", MODES)
def test_the_dead_are_replaced(cell: str, launch: Launcher, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    flags = (*CELLS[cell], *SMALL, "--total-steps", 10**8, "--respawn", "--run-dir", run_dir)
    job = launch.start(4, *flags, survives=True)
    job.until(lambda: count_lines(run_dir) > 9)
    for number, victim in enumerate((2, 0)):
        kill(job, victim)
        job.until(lambda number=number: int(metric_lines(run_dir)[-1]["ranks_replaced"]) == number + 1)  # type: ignore[misc]
    job.send(signal.SIGUSR1, 1)
    ended = job.wait(20)
    last = assert_whole(run_dir)[-1]
    assert (last["workers"], last["ranks_lost"], last["ranks_replaced"]) == ("3", "2", "2")
    assert summary(run_dir)["exit"] == "preempted", ended
    assert summary(run_dir)["world_size"] == 4


def replaced_and_stopped(job: Job, run_dir: Path) -> Ended:
    """Kills rank 1, then rank 0, each once the one before is replaced; then asks the job to save and end."""
    for number, victim in enumerate((1, 0)):
        kill(job, victim)
        counted = f'"ranks_replaced": {number + 1},'
        job.until(lambda counted=counted: counted in (run_dir / "metrics.jsonl").read_text())  # type: ignore[misc]
    job.send(signal.SIGUSR1, 2)
    ended = job.wait(20)
    return ended


def test_a_replacement_that_becomes_the_server_knows_what_came_before_it(launch: Launcher, tmp_path: Path) -> None:
    """Rank 1 is replaced; when rank 0 dies, its replacement serves, and goes on with the counts."""
    run_dir = tmp_path / "run"
    job = launch.start(
        3, *CELLS["p2p"], *SMALL, "--total-steps", 10**8, "--respawn", "--run-dir", run_dir, survives=True
    )
    job.until(lambda: count_lines(run_dir) > 5)
    ended = replaced_and_stopped(job, run_dir)
    last = assert_whole(run_dir)[-1]
    assert (last["workers"], last["ranks_lost"], last["ranks_replaced"]) == ("2", "2", "2"), ended


def test_a_replacement_gets_the_constant_buffers_of_a_users_network(launch: Launcher, tmp_path: Path) -> None:
    """Each process draws others: the run would end, as the ranks would differ."""
    run_dir = tmp_path / "run"
    given = ("--env", probe("Inputs"), "--model.factory", "tests.models.structured_networks:Unseeded")
    flags = (*CELLS["allreduce"], *SMALL, *given, "--total-steps", 10**8, "--respawn", "--run-dir", run_dir)
    job = launch.start(3, *flags, survives=True)
    job.until(lambda: count_lines(run_dir) > 3)
    drawn = read_checkpoint(checkpoint_folders(run_dir)[0]).state["constants"]["drawn"]
    ended = replaced_and_stopped(job, run_dir)
    assert int(assert_whole(run_dir)[-1]["ranks_replaced"]) == 2, ended
    saved = read_checkpoint(latest(run_dir)).state
    assert saved["numbers"]["iteration"] > 3
    assert differences(saved["constants"]["drawn"], drawn) == []


def test_a_run_in_which_nobody_dies_is_the_same_with_and_without(launch: Launcher, tmp_path: Path) -> None:
    for name, survives in (("with", True), ("without", False)):
        launch.run(3, *SMALL, "--total-steps", 2000, "--run-dir", name, survives=survives)
    assert metric_lines(tmp_path / "with") == metric_lines(tmp_path / "without")
    assert (parameters(tmp_path / "with") == parameters(tmp_path / "without")).all()


def test_a_rank_that_dies_while_the_program_starts_ends_it_or_is_survived(launch: Launcher, tmp_path: Path) -> None:
    """Before MPI has started nobody can go on without it: guards or MPI itself end the job, and the reason is said."""
    run_dir, seen = tmp_path / "run", set()
    for wait_s in (0.0, 0.1, 0.3, 0.6):
        job = launch.start(3, *SMALL, "--total-steps", 5000, "--run-dir", run_dir / str(wait_s), survives=True)
        job.until(lambda job=job: job.has_rank(2))  # type: ignore[misc]
        time.sleep(wait_s)
        kill(job, 2)
        ended = job.wait(30)
        seen.add(ended.code)
        if ended.code:
            said = r"died while MPI was starting(: the job ends, start it again| \((signal 9|its guard was killed)\))"
            assert re.search(said, ended.stderr), ended
        else:
            assert summary(run_dir / str(wait_s))["exit"] == "finished"
    assert 1 in seen
