"""jobs/scaling.sbatch: runs on one node and on two, a table and a plot of them; a run that fails; wrong use."""

from __future__ import annotations

import json
import re

import pytest

from tests.run_directory import summary
from tests.slurm.emulation import ROOT, Batch, Cluster, Submit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
FLAGS = (
    "--env", "dppo.envs.probes:dppo/ProbeSlow-v0", "--num-envs", 2, "--horizon", 24, "--ppo.epochs", 1,
    "--ppo.minibatches", 2,
)  # fmt: skip


def submit(slurm: Cluster, sbatch: Submit, name: str, *flags: object) -> Batch:
    folder = slurm.folder / "runs" / name
    where = {"SCALING_DIR": str(folder), "BENCHMARKS": str(ROOT / "benchmarks"), "ITERATIONS": "5", "REPEATS": "1"}
    return sbatch("--nodes=2 --ntasks-per-node=2 --time=5", "scaling.sbatch", *FLAGS, *flags, name=name, **where)


def rows(job: Batch) -> dict[tuple[str, str], list[str]]:
    """The table's, by scaling and nodes; each from the number of ranks on."""
    lines = re.findall(
        r"^\| (weak|strong) \| (\d+) \| (.*) \|$", (job.run_dir / "scaling.md").read_text(), re.MULTILINE
    )
    return {(scaling, nodes): rest.split(" | ") for scaling, nodes, rest in lines}


def test_one_node_and_two_are_measured_and_drawn(slurm: Cluster, sbatch: Submit) -> None:
    job = submit(slurm, sbatch, "scaling")
    output = job.wait("COMPLETED")
    assert job.fact("Restarts") == "0"
    table = rows(job)
    # ranks, workers, steps per iteration
    assert {key: row[:3] for key, row in table.items()} == {
        ("weak", "1"): ["2", "1", "48"],
        ("weak", "2"): ["4", "3", "144"],
        ("strong", "1"): ["2", "1", "48"],
        ("strong", "2"): ["4", "3", "48"],
    }, output
    assert table["weak", "1"] == table["strong", "1"] and table["weak", "1"][5] == "100.0%"
    # a simulator that sleeps needs no core of the one machine below
    assert all(float(row[5].rstrip("%")) > 50 for row in table.values()), table
    for name, hosts in {"weak-1-1": 2 * ["n1"], "weak-2-1": ["n1", "n1", "n2", "n2"]}.items():
        assert json.loads((job.run_dir / name / "versions.json").read_text())["hosts"] == hosts
    assert summary(job.run_dir / "strong-2-1")["env_steps"] == 5 * 48
    assert "<svg" in (job.run_dir / "scaling.svg").read_text()
    assert "| weak | 2 | 4 |" in output


def test_a_run_that_fails_is_named_and_the_others_are_measured(slurm: Cluster, sbatch: Submit) -> None:
    folder = slurm.folder / "runs" / "hindered"
    folder.mkdir(parents=True)
    (folder / "weak-2-1").write_text("in the way of its run directory")
    job = submit(slurm, sbatch, "hindered")
    output = job.wait("FAILED")
    assert job.fact("ExitCode") == "1:0"
    assert set(rows(job)) == {("weak", "1"), ("strong", "1"), ("strong", "2")}
    assert output.splitlines()[-1] == "dppo: 1 of 3 runs are missing from the table: weak-2-1"
    assert "weak-2-1" in (folder / "weak-2-1.out").read_text()


def test_wrong_use_measures_nothing(slurm: Cluster, sbatch: Submit) -> None:
    job = submit(slurm, sbatch, "wrong", "--no-such-flag", 3)
    output = job.wait("FAILED")
    assert job.fact("ExitCode") == "2:0"
    assert [line for line in output.splitlines() if line.startswith("dppo: ")] == output.strip().splitlines()
    assert "no-such-flag" in output and not job.run_dir.exists()
