"""Networks on GPUs give the numbers that they give on the CPU, in each exchange.

Stand-ins need copies as GPUs do (programs/stand_in_gpus.py): a pass with parameters of long ago, or a gradient that is
left there, changes the numbers.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dppo import load_policy
from tests.launch import Launcher
from tests.run_directory import checkpoint, count_lines, differences, metric_lines, summary

IMAGES = "dppo.envs.probes_of_spaces:dppo/ProbeInputs-v0"
SMALL = (
    "--num-envs", 2, "--horizon", 16, "--ppo.epochs", 2, "--ppo.minibatches", 2, "--log.no-tensorboard", "--seed", 4
)  # fmt: skip
VECTORS = ("--env", "CartPole-v1", "--model.backend", "torch", "--no-optim.anneal", *SMALL)
CELLS: dict[str, tuple[int, tuple[object, ...]]] = {
    "allreduce": (3, ("--exchange", "allreduce")),
    "p2p": (3, ("--exchange", "p2p")),
    "async": (1, ("--mode", "async", "--exchange", "p2p", "--loss", "ppo")),  # with more ranks chance decides
}
"""Ranks, and flags."""
GPUS = 2
PLACES = {3: ["cpu", "cpu:0", "cpu:1"], 1: ["cpu:0"]}
"""The devices of all ranks, by their number."""
STEPS, LONG = 320, 640

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    jobs: list[dict[str, Any]] = []

    def job(name: str, ranks: int, *given: object, gpus: int = 0, cores: int = 2) -> None:
        flags = [*map(str, given), "--run-dir", str(folder / name)]
        jobs.append({"ranks": ranks, "gpus": gpus, "cores": cores, "flags": flags})

    for cell, (ranks, given) in CELLS.items():
        job(f"{cell}-cpu", ranks, *VECTORS, *given, "--total-steps", LONG)
        job(f"{cell}-gpu", ranks, *VECTORS, *given, "--total-steps", LONG, gpus=GPUS)
        job(f"{cell}-images-cpu", ranks, "--env", IMAGES, *SMALL, *given, "--total-steps", STEPS)
        job(f"{cell}-images-gpu", ranks, "--env", IMAGES, *SMALL, *given, "--total-steps", STEPS, gpus=GPUS)
        # begun on the CPU, resumed on a GPU
        job(f"{cell}-resumed", ranks, *VECTORS, *given, "--device", "cpu", "--total-steps", STEPS)
        jobs.append(
            {"ranks": ranks, "gpus": GPUS, "cores": 2, "flags": [
                "--resume", "--run-dir", str(folder / f"{cell}-resumed"), "--device", "cuda", "--total-steps", str(LONG)
            ]}
        )  # fmt: skip
    for where, gpus in (("cpu", 0), ("gpu", GPUS)):
        begun = ("--init-from", folder / "allreduce-cpu", "--total-steps", STEPS)
        job(f"allreduce-further-{where}", 3, *VECTORS, *begun, gpus=gpus)
    for exchange in ("allreduce", "p2p"):
        given = (*VECTORS, "--exchange", exchange, "--total-steps", LONG)
        # four workers: in two groups, by cores or by GPUs, and in one
        job(f"{exchange}-two-by-cores", 5, *given)
        job(f"{exchange}-two-by-gpus", 5, *given, gpus=2)
        job(f"{exchange}-one-by-cores", 5, *given, cores=1)
        job(f"{exchange}-one-by-gpus", 5, *given, gpus=1)
    job("shared", 4, *VECTORS, "--mode", "async", "--total-steps", STEPS, gpus=2)
    job("asked-for", 1, "--env", "CartPole-v1", *SMALL, "--device", "cuda", "--total-steps", STEPS, gpus=1)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    launcher = Launcher(folder)
    launcher.run(5, folder / "jobs.json", program="stand_in_gpus.py", timeout=120, OMP_NUM_THREADS="1")
    launcher.close()
    return folder


def devices(run_dir: Path) -> list[str]:
    out: list[str] = json.loads(Path(f"{run_dir}.devices.json").read_text())
    return out


def assert_same(run_dir: Path, other: Path) -> None:
    """The same lines to the byte, apart from clock figures, and the same last checkpoint to the bit."""
    assert count_lines(run_dir) > 2
    assert metric_lines(run_dir) == metric_lines(other)
    assert differences(checkpoint(run_dir), checkpoint(other)) == []


@pytest.mark.parametrize("name", [*CELLS, *(f"{cell}-images" for cell in CELLS), "allreduce-further"])
def test_a_run_on_gpus_gives_the_numbers_of_one_on_the_cpu(name: str, runs: Path) -> None:
    """Of vectors, of images, and with the parameters of another run."""
    assert_same(runs / f"{name}-gpu", runs / f"{name}-cpu")
    ranks = CELLS[name.partition("-")[0]][0]
    assert devices(runs / f"{name}-gpu") == PLACES[ranks]
    assert devices(runs / f"{name}-cpu") == ["cpu"] * ranks


@pytest.mark.parametrize("cell", CELLS)
def test_a_run_may_be_resumed_on_gpus(cell: str, runs: Path) -> None:
    run_dir = runs / f"{cell}-resumed"
    if cell != "async":  # of which no checkpoint has the gradient that is under way
        assert_same(run_dir, runs / f"{cell}-cpu")
    assert devices(run_dir) == PLACES[CELLS[cell][0]]
    assert summary(run_dir)["attempt"] == 2


def test_a_run_that_asked_for_a_gpu_has_a_network_of_torch_that_acts_where_there_is_none(runs: Path) -> None:
    """Of flat vectors, for which it would be NumPy's."""
    assert devices(runs / "asked-for") == ["cpu:0"]
    policy = load_policy(runs / "asked-for")
    assert (policy.config.device, policy.config.model.backend) == ("cuda", "torch")
    assert policy.act(np.zeros(4, np.float32)) in (0, 1)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two groups need two cores")
@pytest.mark.parametrize(
    ("count", "expected"),
    [("two", ["cpu", "cpu:0", "cpu", "cpu:1", "cpu"]), ("one", ["cpu", "cpu:0", "cpu", "cpu", "cpu"])],
)
@pytest.mark.parametrize("exchange", ["allreduce", "p2p"])
def test_workers_without_a_gpu_of_their_own_form_groups_as_those_without_a_core_do(
    exchange: str, count: str, expected: list[str], runs: Path
) -> None:
    """One of a group learns, on the GPU; the others collect on the CPU."""
    by_gpus = runs / f"{exchange}-{count}-by-gpus"
    assert_same(by_gpus, runs / f"{exchange}-{count}-by-cores")
    assert devices(by_gpus) == expected


def test_asynchronous_workers_share_gpus_in_turn(runs: Path) -> None:
    """Each learns by itself, so there are no groups, and rank 0 counts. Each pass had the newest parameters."""
    assert devices(runs / "shared") == ["cpu", "cpu:1", "cpu:0", "cpu:1"]
    assert summary(runs / "shared")["exit"] == "finished"


@pytest.mark.parametrize("victim", [0, 1], ids=["the server", "a worker"])
@pytest.mark.parametrize("cell", CELLS)
def test_what_is_left_after_a_death_trains_with_the_present_parameters(
    cell: str, victim: int, launch: Launcher, tmp_path: Path
) -> None:
    """Also where a worker takes over the server's mirror: each pass looks whether its parameters are those."""
    given = (
        *VECTORS,
        *CELLS[cell][1],
        "--server.mirror-every",
        5,
        "--total-steps",
        4000,
        "--run-dir",
        tmp_path / "run",
    )
    job = launch.start(3, 2, *given, program="stand_in_gpus.py", survives=True, OMP_NUM_THREADS="1")
    job.until(lambda: count_lines(tmp_path / "run") > 10)
    os.kill(job.rank_pid(victim), 9)
    ended = job.wait(60)
    assert ended.code == 0, ended
    assert f"rank {victim} on" in ended.stderr, ended
    assert "of long ago" not in ended.stderr
    assert "on cpu:0 (Stand-in)" in ended.stdout
    assert summary(tmp_path / "run")["exit"] == "finished"


def test_a_run_that_asks_for_a_gpu_where_there_is_none_is_refused(launch: Launcher, tmp_path: Path) -> None:
    """By all ranks with code 2, before anything is written; a server alone would not need one."""
    for ranks in (None, 3):
        given = ("--env", "CartPole-v1", "--device", "cuda", "--run-dir", tmp_path / "run")
        ended = launch.run(ranks, *given, code=2, CUDA_VISIBLE_DEVICES="")
        (message,) = ended.messages
        assert "--device cuda: torch sees no GPU on " in message and "--device cpu" in message
        assert not (tmp_path / "run").exists()
