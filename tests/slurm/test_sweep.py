"""jobs/sweep.sbatch: an array of runs, of which one fails and is repeated alone; the chain train, evaluate, export."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.run_directory import count_lines, summary
from tests.slurm.emulation import ROOT, Cluster, Submit, environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
SWEEP = """
[fixed]
env = "CartPole-v1"
total-steps = 4096
target-return = 1e6
log.tensorboard = false
ppo.epochs = 2

[grid]
seed = [1, 2]
optim.lr = [1e-3, 2e-3, 4e-3]
"""


def report(cluster: Cluster, folder: Path) -> str:
    command = [sys.executable, "-m", "dppo.report", str(folder)]
    return subprocess.run(
        command, cwd=cluster.folder, env=environment(), capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_of_six_tasks_one_fails_is_named_and_repeated_alone(slurm: Cluster, sbatch: Submit) -> None:
    sweep, folder = slurm.folder / "sweep.toml", slurm.folder / "runs" / "sweep"
    where = {"SWEEP": str(sweep), "SWEEP_DIR": str(folder)}
    sweep.write_text(SWEEP)
    folder.mkdir(parents=True)
    (folder / "task_004").write_text("in the way of its run directory")
    job = sbatch("--array=0-5%3 --ntasks-per-node=2", "sweep.sbatch", name="sweep", **where)
    job.until(lambda: not slurm.on("head", "squeue", "--noheader", "--jobs", job.number).strip(), 120)
    done = sorted(path.parent.name for path in folder.glob("*/summary.json"))
    assert done == ["task_000", "task_001", "task_002", "task_003", "task_005"]
    assert {summary(folder / name)["exit"] for name in done} == {"finished"}
    (output,) = slurm.folder.glob(f"*{job.number}_4.out")
    assert "task_004" in output.read_text()
    text = report(slurm, folder)
    assert re.findall(r"^- task (\d)", text, re.MULTILINE) == ["4"]
    line = f"SWEEP={folder}/sweep.toml SWEEP_DIR={folder} sbatch --array=4 jobs/sweep.sbatch"
    assert line in text

    (folder / "task_004").unlink()
    again = sbatch("--array=4 --ntasks-per-node=2", "sweep.sbatch", name="again", **where)
    again.wait("COMPLETED")
    assert summary(folder / "task_004")["exit"] == "finished"
    assert "- task" not in report(slurm, folder)
    names = {json.loads((folder / f"task_00{k}" / "versions.json").read_text())["job_id"] for k in (3, 4)}
    assert names == {f"{job.number}_3", f"{again.number}_4"}


def test_a_task_that_is_preempted_comes_back_alone(slurm: Cluster, sbatch: Submit) -> None:
    """Also where its number is that of the whole array, as one task's is."""
    sweep, folder = slurm.folder / "slow.toml", slurm.folder / "runs" / "slow"
    sweep.write_text(
        '[fixed]\nenv = "dppo.envs.probes:dppo/ProbeSlow-v0"\nnum-envs = 2\nhorizon = 16\ntotal-steps = 4096\n'
        "log.tensorboard = false\n[grid]\nseed = [1, 2]\n"
    )
    where = {"SWEEP": str(sweep), "SWEEP_DIR": str(folder)}
    job = sbatch("--array=0-1 --ntasks-per-node=2", "sweep.sbatch", name="slow", **where)
    tasks = {k: sbatch.adopt(f"{job.number}_{k}", folder / f"task_00{k}") for k in (0, 1)}
    for task in tasks.values():
        task.until(lambda task=task: count_lines(task.run_dir) > 5)  # type: ignore[misc]
    same = next(task for task in tasks.values() if task.fact("JobId") == job.number)
    slurm.on("head", "scancel", "--signal=USR1", "--batch", same.number)
    for task in tasks.values():
        task.wait("COMPLETED", 90)
        assert summary(task.run_dir)["exit"] == "finished"
        assert task.fact("Restarts") == ("1" if task is same else "0")


def test_train_evaluate_export_one_after_another(slurm: Cluster, sbatch: Submit) -> None:
    run_dir = slurm.folder / "runs" / "chain"
    chain = (ROOT / "jobs" / "chain", "--total-steps", 4096, "--target-return", 10**6)
    said = slurm.on("head", *chain, RUN_DIR=str(run_dir), TRAIN="--nodes=1 --ntasks-per-node=2")
    numbers = re.findall(r"\d+", said.split(":")[0])
    assert len(numbers) == 3, said
    *_, export = [sbatch.adopt(number, run_dir) for number in numbers]
    export.wait("COMPLETED", 120)
    assert summary(run_dir)["exit"] == "finished"
    assert json.loads((run_dir / "evaluation.json").read_text())["episodes"] == 100
    assert list((run_dir / "minari").rglob("*.hdf5"))
