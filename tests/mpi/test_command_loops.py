"""A solver that obeys commands of a program beside it, for which a job has 1 + nproc ranks, becomes an environment: the
group's communicator takes the place of its world.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dppo import open_trajectories
from tests.launch import PROGRAMS, Launcher
from tests.mpi.programs.command_env import STEPS, SUBSTEPS
from tests.run_directory import summary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
NPROC = 2


def episode(seed: int, controls: list[float]) -> list[list[float]]:
    """The observations of an episode, by hand."""
    cells = np.array([(seed % 10 + rank) / 8 for rank in range(NPROC)])
    rows = [[seed, 0, cells.sum(), NPROC]]
    for step, control in enumerate(controls, 1):
        for _ in range(SUBSTEPS):
            cells = cells + (0.25 * (control - cells) + 0.125 * (np.roll(cells, 1) - cells))
        rows.append([seed, step, cells.sum(), NPROC])
    return rows


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the solver, as a program and as a library."""
    mpicc = shutil.which("mpicc", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if mpicc is None or shutil.which("cc") is None:
        pytest.skip("there is no C compiler, or no mpicc")
    folder = tmp_path_factory.mktemp("commands")
    source, strict = PROGRAMS / "commands.c", ("-std=c99", "-Wall", "-Wextra", "-Werror", "-O2", "-ffp-contract=off")
    subprocess.run([mpicc, *strict, source, "-o", folder / "commands"], check=True)
    subprocess.run([mpicc, *strict, "-fPIC", "-shared", source, "-o", folder / "commands.so"], check=True)
    return folder


def test_a_solver_with_a_command_loop_trains_on_groups_as_it_runs_alone(
    launch: Launcher, built: Path, tmp_path: Path
) -> None:
    alone = launch.run(1, program="command_env.py", beside=[(NPROC, built / "commands")])
    assert np.allclose(json.loads(alone.stdout), episode(17, [0.5, -1.0, 0.25, 0.0, 1.0]), rtol=0, atol=1e-12)
    run = tmp_path / "run"
    trained = launch.run(
        7, "--env", "command_env:Controlled", "--env-ranks", 1 + NPROC, "--num-envs", 1, "--horizon", 20,
        "--ppo.minibatches", 1, "--total-steps", 80, "--trajectories.enabled", "--run-dir", run, timeout=200,
        COMMANDS=str(built / "commands.so"),
    )  # fmt: skip
    for number, ranks in enumerate(("1-3", "4-6")):
        assert f"group {number}: ranks {ranks} on {socket.gethostname()}" in trained.stdout
    assert not trained.messages and summary(run)["episodes"] == 16, trained
    played = list(open_trajectories(run).episodes())
    assert len({e.env for e in played}) == 2 and len({e.observations[0][0] for e in played}) == 16
    for each in played:
        by_hand = episode(int(each.observations[0][0]), each.steps["actions"][:, 0].tolist())
        np.testing.assert_allclose(each.observations, by_hand, rtol=0, atol=1e-12)
        np.testing.assert_allclose(each.steps["rewards"], [-(row[2] ** 2) for row in by_hand[1:]], atol=1e-12)
        assert each.length == STEPS and each.terminated
    ended = sorted(str(path.relative_to(run / "envs")) for path in (run / "envs").glob("*/solver_*_has_ended"))
    assert ended == [f"env_{env:05}/solver_{rank}_has_ended" for env in (0, 1) for rank in (1, 2)]
