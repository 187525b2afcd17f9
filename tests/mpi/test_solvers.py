"""Simulators that own their main loop, beside dppo in one mpirun: what they compute, how they fail, what is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.launch import PROGRAMS, Launcher
from tests.run_directory import count_lines, metric_lines, summary

ROOT = Path(__file__).parents[2]
INCLUDE, HEAT = ROOT / "dppo" / "envs" / "include", ROOT / "examples" / "heat"
BIN = Path(sys.executable).parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SHORT = (
    "--env", "dppo.envs:Solver", "--num-envs", 1, "--horizon", 60, "--ppo.minibatches", 1, "--optim.no-anneal",
    "--log.no-tensorboard",
)  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the simulators: heat_c, faults and, where there is a Fortran compiler, heat_fortran."""
    mpicc = shutil.which("mpicc", path=f"{BIN}:{os.environ.get('PATH', '')}")
    if mpicc is None or shutil.which("cc") is None:
        pytest.skip("there is no C compiler, or no mpicc")
    folder = tmp_path_factory.mktemp("heat")
    strict = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-O2", "-ffp-contract=off", f"-I{INCLUDE}")
    for source, target in ((HEAT / "heat.c", "heat_c"), (PROGRAMS / "simulators.c", "faults")):
        subprocess.run([mpicc, *strict, source, "-o", folder / target, "-lm"], check=True)
    if shutil.which("gfortran") is not None:
        for name in ("heat.f90", "heat.c", "heat_mpi.c", "Makefile"):
            shutil.copy(HEAT / name, folder)
        make = ["make", "-C", folder, f"CC={mpicc}", f"INCLUDE={INCLUDE}", "heat_fortran"]
        subprocess.run(make, check=True, capture_output=True)
    return folder


def couple(launch: Launcher, built: Path, folder: Path, group: int) -> list[dict[str, Any]]:
    """What the workers' simulators, of C and Fortran and for G = 1 of C again, and the Python form have answered."""
    names = ["heat_c", "heat_fortran" if (built / "heat_fortran").exists() else "heat_c", *["heat_c"] * (group == 1)]
    beside = [(group, built / name) for name in names]
    ended = launch.run(
        1 + len(names), folder, group, program="couple.py", beside=beside, timeout=200,
    )  # fmt: skip
    answers: list[dict[str, Any]] = json.loads(ended.stdout)
    return answers


def test_python_c_and_fortran_play_the_same_episode_on_any_number_of_ranks(
    launch: Launcher, built: Path, tmp_path: Path
) -> None:
    for group in (1, 2, 4):
        (tmp_path / str(group)).mkdir()
    first = couple(launch, built, tmp_path / "1", 1)
    python = first[0]["python on 1"]
    assert len(python) == 61 and python[-1][-1] == 1.0
    for name in ("python alone", "python on 2", "python on 4"):
        assert first[0][name] == python, name
    alone = [first[1]["whole"], first[2]["whole"]]
    for group, answers in ((1, first), (2, couple(launch, built, tmp_path / "2", 2)),
                           (4, couple(launch, built, tmp_path / "4", 4))):  # fmt: skip
        for worker in (1, 2):
            whole = answers[worker]["whole"]
            assert whole == alone[worker - 1], (group, worker)  # to the bit, because their sums are
            for mine, reference in zip(whole, python, strict=True):
                np.testing.assert_allclose(mine, reference, atol=1e-6)
            assert answers[worker]["again"] == whole[26:], "a state that was saved continues as the first time"
    assert first[3]["again"] == alone[0][26:], "also in a simulator that has begun no episode"


def test_fortran_is_tested_where_there_is_a_compiler(built: Path) -> None:
    if not (built / "heat_fortran").exists():
        pytest.skip("there is no gfortran: the Fortran module and its example are not tested")


def test_a_run_is_the_same_on_any_number_of_ranks_and_in_two_parts(
    launch: Launcher, built: Path, tmp_path: Path
) -> None:
    def run(name: str, group: int, *flags: object) -> None:
        given = (*SHORT, "--env-ranks", group) if "--resume" not in flags else ()
        launch.run(3, *given, *flags, "--run-dir", tmp_path / name, beside=[(2 * group, built / "heat_c")], timeout=200)

    run("whole", 2, "--total-steps", 960)
    run("parts", 1, "--total-steps", 480)
    run("parts", 1, "--resume", "--total-steps", 960)
    whole, parts = (metric_lines(tmp_path / name) for name in ("whole", "parts"))
    assert len(whole) == 8
    assert whole == parts


def test_a_trained_policy_plays_with_the_simulator_beside_it(launch: Launcher, built: Path, tmp_path: Path) -> None:
    """The same episodes under ULFM; wrong arguments do not leave the simulator waiting."""
    beside, played = [(2, built / "heat_c")], list[str]()
    ended = launch.run(
        2, *SHORT, "--env-ranks", 2, "--total-steps", 60, "--run-dir", "run", beside=beside, timeout=200
    )  # fmt: skip
    assert "dppo.evaluate run : -n 2 ./simulator" in ended.stdout.replace(f"{tmp_path}/", ""), ended
    for survives in (False, True):
        ended = launch.run(
            1, "run", "--episodes", 3, "--json", program="evaluate.py", beside=beside, survives=survives, timeout=200
        )  # fmt: skip
        played.append(ended.stdout)
        assert not ended.messages, ended
    assert played[0] == played[1] and json.loads(played[0])["ended"] == 3
    for flags, message in ((("run", "--episodes", 0), "--episodes"), (("none",), "none holds no run")):
        refused = launch.run(1, *flags, program="evaluate.py", beside=beside, survives=True, timeout=60, code=2)
        assert len(refused.messages) == 1 and message in refused.messages[0], refused


@pytest.mark.parametrize("mode", [("--exchange", "allreduce"), ("--mode", "async")], ids=["allreduce", "async"])
def test_the_others_go_on_when_a_rank_of_a_simulator_is_killed(
    launch: Launcher, built: Path, tmp_path: Path, mode: tuple[str, str]
) -> None:
    run = tmp_path / "run"
    settings = (*SHORT, "--env-ranks", 2, *mode, "--total-steps", 6000, "--run-dir", run)
    job = launch.start(3, *settings, survives=True, beside=[(4, built / "heat_c")])
    job.until(lambda: count_lines(run) > 2, timeout=120)
    job.send(signal.SIGKILL, rank=6)  # not the one that speaks with the worker
    ended = job.wait(200)
    assert any("simulator 1 (ranks 5-6 of the job) has died" in line for line in ended.messages), ended
    assert summary(run)["exit"] == "finished" and summary(run)["env_steps"] >= 6000


WRONG = {
    "too few ranks": ("right", 3, ("--env-ranks", 2), "2 worker(s) with --env-ranks 2 need 4 rank(s)", False),
    "unknown flag": ("right", 2, ("--sed", 1), "did you mean --seed?", False),
    "groups differ": ("differs", 2, (), "simulators 1 and 0 have declared different things", True),
    "bounds": ("bounds", 2, (), "the lower bound must be below the upper one", False),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_use_has_one_message_and_code_2(launch: Launcher, built: Path, tmp_path: Path, what: str) -> None:
    fault, ranks, flags, message, survives = WRONG[what]
    ended = launch.run(
        3, *SHORT, *flags, "--run-dir", tmp_path / "run", beside=[(ranks, built / "faults", fault)], timeout=200,
        code=2, survives=survives,
    )  # fmt: skip
    assert len(ended.messages) == 1 and message in ended.messages[0], ended
    assert not (tmp_path / "run").exists()


def test_a_simulator_that_never_begins_ends_the_job(launch: Launcher, built: Path, tmp_path: Path) -> None:
    ended = launch.run(
        2, *SHORT, "--run-dir", tmp_path / "run", program="hasty.py", beside=[(1, built / "faults", "never begins")],
        timeout=200, code=2,
    )  # fmt: skip
    assert "has not called dppo_begin within 3 s" in ended.messages[0], ended


def test_a_program_that_does_not_start_mpi_ends_the_job(launch: Launcher, built: Path, tmp_path: Path) -> None:
    beside = [(1, built / "faults", "leaves at once")]
    ended = launch.run(2, *SHORT, "--run-dir", tmp_path / "run", beside=beside, timeout=200, code=None)
    assert ended.code != 0 and "must call MPI_Init, then dppo_begin" in ended.messages[0], ended


def test_a_simulator_that_exits_dies_with_its_worker_only(launch: Launcher, built: Path, tmp_path: Path) -> None:
    """Nobody would notice its exit code where deaths are survived; dppo.h makes a death of it."""
    ended = launch.run(
        3, *SHORT, "--env-ranks", 2, "--total-steps", 600, "--run-dir", tmp_path / "run", survives=True,
        beside=[(4, built / "faults", "exits")], timeout=200,
    )  # fmt: skip
    assert any("it exits before DPPO_END" in line for line in ended.messages), ended
    assert summary(tmp_path / "run")["exit"] == "finished"


def test_a_simulator_alone_says_how_it_is_started(launch: Launcher, built: Path) -> None:
    done = subprocess.run([built / "heat_c"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "python -m dppo.run --env dppo.envs:Solver" in done.stderr
