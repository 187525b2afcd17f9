"""Folders of environments in a run: numbers, what is kept, and that a run which is refused leaves nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from mpi4py import MPI

from dppo.evaluate import play_episodes
from dppo.run.folders import given_to_envs, leave_no_trace
from dppo.training.build import build_envs, build_parts
from dppo.training.policy import load_policy
from tests.launch import Launcher
from tests.ranks import make_plan

CHANNEL = "tests.envs.sims_of_others:Channel"


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, which stays empty."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def made(run_dir: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in sorted(run_dir.glob("envs/*/made.txt"))}


def test_a_worker_has_those_of_its_numbers_and_a_server_none(tmp_path: Path, temporary: Path) -> None:
    run_dir = tmp_path / "run"
    plan = make_plan(run_dir, 3, env=CHANNEL)
    build_parts(plan.config, 1, given_to_envs(plan, MPI.COMM_SELF)).close()
    assert made(run_dir) == {"env_00002": "2 of 1\n", "env_00003": "3 of 1\n"}
    server = build_parts(plan.config, None, given_to_envs(plan, MPI.COMM_SELF))
    assert list(temporary.iterdir()) == [] and len(made(run_dir)) == 2
    build_envs(server, plan.config, 1)  # it takes over a dead worker's
    server.close()
    assert made(run_dir) == {"env_00002": "2 of 1\n" * 2, "env_00003": "3 of 1\n" * 2}


def test_a_refused_run_leaves_what_was_there(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "run"
    there = tmp_path / "notes.txt"
    there.write_text("mine")
    plan = make_plan(run_dir, 2, env=CHANNEL)
    plans = [given_to_envs(plan, MPI.COMM_SELF) for _ in range(2)]
    object.__setattr__(plan, "was_there", tmp_path)
    for worker, given in enumerate(plans):
        build_parts(plan.config, worker, given).close()
    leave_no_trace(plan, plans[1])
    assert list(made(run_dir)) == ["env_00000", "env_00001"]
    leave_no_trace(plan, plans[0])
    assert list(tmp_path.iterdir()) == [there]


def test_a_dry_run_makes_none_in_the_run_directory(tmp_path: Path, temporary: Path) -> None:
    plan = make_plan(tmp_path / "run", env=CHANNEL, dry_run=True)
    given = given_to_envs(plan, MPI.COMM_SELF)
    build_parts(plan.config, 0, given).close()
    assert len(list(temporary.glob("*/env_0000?/made.txt"))) == 2
    leave_no_trace(plan, given)
    assert list(temporary.iterdir()) == [] and not (tmp_path / "run").exists()


QUICK = ("--num-envs", 2, "--horizon", 8, "--ppo.minibatches", 1, "--ppo.epochs", 1, "--log.no-tensorboard")


@pytest.mark.slow
def test_through_the_commands(launch: Launcher, tmp_path: Path, temporary: Path) -> None:
    run_dir = tmp_path / "run"
    args = ("--env", CHANNEL, *QUICK, "--run-dir", run_dir)
    for refused in (("--env-kwargs", "fails_as=3"), ("--env-kwargs", "workdir=x"), ("--dry-run",)):
        code = 0 if refused == ("--dry-run",) else 2
        ended = launch.run(3, *args, *refused, timeout=200, code=code)
        assert not run_dir.exists(), ended
    launch.run(3, *args, "--total-steps", 64, timeout=200)
    assert made(run_dir) == {f"env_0000{i}": f"{i} of 1\n" for i in range(4)}
    launch.run(3, "--resume", "--run-dir", run_dir, "--total-steps", 128, timeout=200)
    assert made(run_dir) == {f"env_0000{i}": f"{i} of 1\n" * 2 for i in range(4)}
    assert len(play_episodes(load_policy(run_dir), 3)) == 3
    assert list(temporary.glob("dppo-envs-*")) == [] and made(run_dir)["env_00000"] == "0 of 1\n" * 2
