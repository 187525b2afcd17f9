"""Workers that outnumber the cores: one per core computes for its neighbours, and nobody can tell from the numbers.

Six ranks on two cores, whatever the machine has: five workers, in groups of two and three.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.launch import Job, Launcher, flags
from tests.run_directory import checkpoint, count_lines, differences, metric_lines, parameters, summary

RANKS, WORKERS = 6, 5
GROUPS = {1: [[0, 1, 2, 3, 4]], 2: [[0, 1], [2, 3, 4]]}[min(2, len(os.sched_getaffinity(0)))]
LIMIT_S = 10.0

KL: dict[str, Any] = {"objective": "kl", "kl-target": 1e-7, "kl-hinge": 1000.0, "epochs": 3, "target-kl": 0.0}
"""A target so small that the hinge, of the mean KL over all workers, decides every update but the first."""

CELLS: dict[str, dict[str, Any]] = {
    "CartPole": {"env": "CartPole-v1"},
    "Pendulum": {"env": "Pendulum-v1"},
    "bits": {"env": "dppo.envs.probes:dppo/ProbeBits-v0"},
    "a3c": {"env": "CartPole-v1", "loss": "a3c"},
    "kl": {"env": "CartPole-v1", "ppo": KL, "optim": {"lr": 3e-3}},
    # stops after the first updates: all workers must leave the same ones out
    "kl-stop": {"env": "CartPole-v1", "ppo": {"epochs": 4, "target-kl": 1e-4}, "optim": {"lr": 3e-3}},
}
CELLS |= {f"p2p-{name}": CELLS[name] | {"exchange": "p2p"} for name in ("CartPole", "a3c", "kl", "kl-stop")}
ITERATIONS, LONG = 4, 120
LONGS = {"long": "CartPole", "p2p-long": "p2p-CartPole"}
COUNTS = ("iteration", "env_steps", "updates", "episodes", "episodes_ended", "minibatches", "kl_stops", "samples")


def settings(cell: dict[str, Any], run_dir: Path, iterations: int, num_envs: int = 2) -> dict[str, Any]:
    """Ten environments in all with five workers, or with `num_envs` 10 and one."""
    return {
        "seed": 5, "horizon": 32, "num-envs": num_envs, "total-steps": 320 * iterations, "run-dir": str(run_dir),
        "log": {"tensorboard": False}, **cell, "ppo": {"epochs": 2, "minibatches": 2} | cell.get("ppo", {}),
    }  # fmt: skip


def whole_rollouts(cell: dict[str, Any]) -> dict[str, Any]:
    """The same with one minibatch an epoch, so that the layout does not decide who is in it."""
    return {**cell, "ppo": cell.get("ppo", {}) | {"minibatches": 1}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs that end by themselves, in one start, because starts are what takes the time."""
    folder = tmp_path_factory.mktemp("runs")
    jobs = []

    def job(name: str, cell: dict[str, Any], iterations: int, *, pooled: bool, num_envs: int = 2) -> None:
        given = flags(settings(cell, folder / name, iterations, num_envs))
        jobs.append({"ranks": RANKS if num_envs == 2 else 1, "pooled": pooled, "flags": given})

    for name, cell in CELLS.items():
        job(f"{name}-pooled", cell, ITERATIONS, pooled=True)
        job(f"{name}-each", cell, ITERATIONS, pooled=False)
        job(f"{name}-whole-pooled", whole_rollouts(cell), 1, pooled=True)
        job(f"{name}-whole-one", whole_rollouts(cell), 1, pooled=False, num_envs=10)
    for name, cell_name in LONGS.items():
        job(name, CELLS[cell_name], LONG, pooled=True)
        job(f"{name}-again", CELLS[cell_name], LONG, pooled=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    launcher = Launcher(folder)
    launcher.run(RANKS, "pooled_or_not", folder / "jobs.json", program="on_two_cores.py", timeout=200)
    launcher.close()
    return folder


def assert_close(run_dir: Path, other: Path, tolerance: float) -> None:
    """Counts exactly, other figures and the parameters within `tolerance`."""
    lines, other_lines = metric_lines(run_dir), metric_lines(other)
    assert len(lines) == len(other_lines) > 0
    for line, other_line in zip(lines, other_lines, strict=True):
        assert line.keys() == other_line.keys()
        for key in line.keys() - {"workers"}:
            if key in COUNTS or line[key] is None:
                assert line[key] == other_line[key], key
            else:
                mine, others = (np.array(of[key], float) for of in (line, other_line))  # numbers, or a list: returns
                assert mine == pytest.approx(others, rel=tolerance, abs=tolerance), key
    np.testing.assert_allclose(parameters(run_dir), parameters(other), rtol=0, atol=tolerance)


def assert_same(run_dir: Path, other: Path) -> None:
    """The same lines to the byte, apart from clock figures, and the same last checkpoint to the bit."""
    assert metric_lines(run_dir) == metric_lines(other)
    assert differences(checkpoint(run_dir), checkpoint(other)) == []


@pytest.mark.parametrize("cell", CELLS)
def test_pooled_workers_learn_what_they_learn_each_by_itself(cell: str, runs: Path) -> None:
    assert count_lines(runs / f"{cell}-pooled") == ITERATIONS
    assert_close(runs / f"{cell}-pooled", runs / f"{cell}-each", 1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_pooled_workers_give_what_one_rank_gives_with_all_environments(cell: str, runs: Path) -> None:
    assert_close(runs / f"{cell}-whole-pooled", runs / f"{cell}-whole-one", 1e-5)


def test_the_objective_kl_and_the_kl_stop_were_put_to_the_test(runs: Path) -> None:
    (line,) = metric_lines(runs / "kl-whole-pooled")
    assert 2 * KL["kl-hinge"] * (float(line["approx_kl"]) - 2 * KL["kl-target"]) > 0.3, "the hinge was to matter"
    assert any(
        float(line["kl_stops"]) and float(line["minibatches"]) < 8 for line in metric_lines(runs / "kl-stop-pooled")
    )


@pytest.mark.parametrize("long", LONGS)
def test_a_pooled_run_repeats_to_the_byte(long: str, runs: Path) -> None:
    assert count_lines(runs / long) == LONG
    assert_same(runs / long, runs / f"{long}-again")


def pool_files(job: Job) -> set[Path]:
    """Of the shared memory that the workers have mapped, under the names that it had."""

    def mapped(rank: int) -> set[str]:
        lines = Path(f"/proc/{job.rank_pid(rank)}/maps").read_text().splitlines()
        return {line.partition("/dev/shm/dppo-")[2] for line in lines if "/dev/shm/dppo-" in line}

    bells, names = mapped(0), set()  # those all ranks of a node share
    for rank in range(1, RANKS):
        mine = mapped(rank) - bells
        assert len(mine) == 1 and mine.copy().pop().endswith(" (deleted)"), f"rank {rank} is not pooled: {mine}"
        names |= mine
    assert len(names) == len(GROUPS)
    return {Path("/dev/shm", "dppo-" + name.removesuffix(" (deleted)")) for name in names}


@pytest.mark.parametrize(("rank", "long"), [(None, "long"), (2, "long"), (None, "p2p-long"), (2, "p2p-long")])
def test_a_pooled_run_that_was_preempted_ends_as_one_never_stopped(
    rank: int | None, long: str, runs: Path, launch: Launcher, tmp_path: Path
) -> None:
    """SIGUSR1 to mpirun, or to a worker that does not compute."""
    run_dir = tmp_path / "run"
    given = flags(settings(CELLS[LONGS[long]], run_dir, LONG))
    job = launch.start(RANKS, "dppo.run", *given, program="on_two_cores.py")
    job.until(lambda: count_lines(run_dir) >= 10)
    files = pool_files(job)
    job.send(signal.SIGUSR1, rank)
    ended = job.wait(LIMIT_S)
    assert ended.code == 75, ended
    assert ended.messages == [], ended
    assert summary(run_dir)["exit"] == "preempted"
    lines = metric_lines(run_dir)
    assert 10 <= len(lines) < LONG
    assert lines == metric_lines(runs / long)[: len(lines)]

    launch.run(RANKS, "dppo.run", "--resume", "--run-dir", run_dir, program="on_two_cores.py")
    assert_same(runs / long, run_dir)
    assert not any(file.exists() for file in files)


@pytest.mark.parametrize("victim", [1, 2], ids=["computes", "waits"])
def test_a_killed_rank_ends_a_pooled_job_and_nothing_is_left_in_shared_memory(
    victim: int, launch: Launcher, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    given = flags(settings(CELLS["CartPole"], run_dir, 10**6))
    job = launch.start(RANKS, "dppo.run", *given, program="on_two_cores.py")
    job.until(lambda: count_lines(run_dir) > 2)
    files = pool_files(job)
    job.send(signal.SIGKILL, victim)
    ended = job.wait(LIMIT_S)
    assert ended.code not in (0, 2, 75), ended
    assert "Traceback" not in ended.stderr, ended  # of a neighbour that cannot reach it: only mpirun names a rank
    assert summary(run_dir)["exit"] in ("running", "preempted")
    assert not any(file.exists() for file in files)


# -- where the shared memory is not to be had --------------------


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What make_pool gave each worker, by what failed."""
    folder = tmp_path_factory.mktemp("pools")
    launcher = Launcher(folder)
    launcher.run(WORKERS, "pools_that_fail", folder / "out.json", program="on_two_cores.py", timeout=30)
    launcher.close()
    out: dict[str, list[dict[str, Any]]] = json.loads((folder / "out.json").read_text())
    return out


def test_the_first_of_each_group_computes_for_the_others(pools: dict[str, list[dict[str, Any]]]) -> None:
    ranks = pools["nothing"]
    for first, *others in GROUPS:
        assert ranks[first]["computing"] == len(GROUPS)
        assert ranks[first]["rounds"] == [[[w, 10 * number + w] for w in others] for number in (1, 2)]
        for other in others:
            assert ranks[other]["rounds"] == [[number] * first for number in (1, 2)]


@pytest.mark.parametrize(
    "case",
    ["no file", "no file for the first", "no room", "not opened", "not mapped", "not mapped where it was made"],
)
def test_where_one_group_cannot_have_its_memory_every_worker_computes(
    case: str, pools: dict[str, list[dict[str, Any]]]
) -> None:
    """And no file is left."""
    for rank in pools[case]:
        assert rank == {"computing": WORKERS, "rounds": None, "left": []}
