"""jobs/train.sbatch on an emulated cluster: it trains over nodes, and is started again when that helps."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.launch import PROGRAMS
from tests.run_directory import summary
from tests.slurm.emulation import ROOT, Cluster, Submit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
TWO_BY_THREE = "--nodes=2 --ntasks-per-node=3 --time=10"


@pytest.mark.parametrize("script", ["train.sbatch", "train-srun.sbatch"])
def test_two_nodes_of_three_ranks_learn_cartpole(script: str, sbatch: Submit) -> None:
    job = sbatch(TWO_BY_THREE, script, name=f"learn-{script}")
    output = job.wait("COMPLETED", 180)
    result = summary(job.run_dir)
    assert (result["exit"], result["world_size"]) == ("target", 6) and result["return_mean_100"] >= 475, output
    assert "1 server, 5 workers" in output and "done (target)" in output
    ran_on = json.loads((job.run_dir / "versions.json").read_text())
    assert (ran_on["job_id"], ran_on["nodes"], ran_on["restart_count"]) == (job.number, ["n1", "n2"], 0)
    assert ran_on["hosts"] == 3 * ["n1"] + 3 * ["n2"]


@pytest.mark.parametrize("script", ["train.sbatch", "train-srun.sbatch"])
def test_four_nodes_of_eight_ranks_run(script: str, slurm: Cluster, sbatch: Submit) -> None:
    """With a TMPDIR that only the login node has; and nothing is written where the job was submitted."""
    before = {path for path in slurm.folder.iterdir() if path.suffix != ".out"}
    flags, here = ("--total-steps", 31 * 1024), {"TMPDIR": "/tmp/of-the-login-node"}
    job = sbatch("--nodes=4 --ntasks-per-node=8 --time=10", script, *flags, name=f"many-{script}", **here)
    output = job.wait("COMPLETED", 180)
    result = summary(job.run_dir)
    assert (result["exit"], result["world_size"]) == ("finished", 32), output
    hosts = json.loads((job.run_dir / "versions.json").read_text())["hosts"]
    assert sorted(hosts) == sorted(8 * ["n1", "n2", "n3", "n4"])
    assert {path for path in slurm.folder.iterdir() if path.suffix != ".out"} <= {*before, slurm.folder / "runs"}


def test_ranks_by_srun_wait_in_mpi_init_for_those_of_a_late_node(slurm: Cluster) -> None:
    """A message to a rank that is still in it crashes it; Slurm's own default waits for no other node."""
    parameters = ROOT / "dppo" / "cluster" / "openmpi.sh"
    step = f"timeout 60 srun --mpi=pmix --ntasks-per-node=2 {sys.executable} {PROGRAMS / 'late_node.py'}"
    allocation = ("salloc", "--quiet", "--nodes=2", "--ntasks-per-node=2", "--time=5")
    said = slurm.on("head", *allocation, "bash", "-c", f"source {parameters} && {step}", timeout=120)
    pairs = re.findall(r"^([\d.]+) ([\d.]+)$", said, re.MULTILINE)
    began, had = zip(*pairs, strict=True)
    assert len(pairs) == 4 and float(min(had)) >= float(max(began)), said


@pytest.fixture(scope="module")
def mpich(slurm: Cluster) -> Path:
    """A virtual environment with another MPI, and all else from this one."""
    folder = slurm.folder / "mpich"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
    into = ("--python", folder / "bin" / "python")
    install = [sys.executable, "-m", "pip", *into, "install", "--quiet", "mpich==5.0.2"]
    installed = subprocess.run(install, capture_output=True, text=True, timeout=120, check=False)
    if installed.returncode:
        pytest.skip(f"no MPICH to be had: {installed.stderr.strip()[-200:]}")
    ours, theirs = (sysconfig.get_path("purelib", vars={"base": base}) for base in (sys.prefix, str(folder)))
    Path(theirs, "ours.pth").write_text(f"{ours}\n")
    return folder


def test_mpich_is_started_by_srun(mpich: Path, sbatch: Submit) -> None:
    where = {"VENV": str(mpich), "MPI": "pmi2"}
    job = sbatch(TWO_BY_THREE, "train-srun.sbatch", "--total-steps", 5 * 1024, name="mpich", **where)
    output = job.wait("COMPLETED")
    assert summary(job.run_dir)["world_size"] == 6, output
    ran_on = json.loads((job.run_dir / "versions.json").read_text())
    assert ran_on["mpi"].startswith("MPICH") and ran_on["hosts"] == 3 * ["n1"] + 3 * ["n2"]


def test_ranks_that_do_not_find_each_other_are_told_once(sbatch: Submit) -> None:
    job = sbatch(TWO_BY_THREE, "train-srun.sbatch", name="alone", MPI="none")
    output = job.wait("FAILED")
    assert job.fact("ExitCode") == "2:0" and job.fact("Restarts") == "0"
    said, verdict = [line for line in output.splitlines() if line.startswith("dppo: ")]
    assert "6 processes" in said and "--mpi=pmix" in said
    assert "wrong use" in verdict and "not started again" in verdict
    assert not job.run_dir.exists()


def test_wrong_use_is_said_and_not_started_again(sbatch: Submit) -> None:
    job = sbatch(TWO_BY_THREE, "train.sbatch", "--no-such-flag", 3, name="wrong-use")
    output = job.wait("FAILED")
    assert job.fact("ExitCode") == "2:0" and job.fact("Restarts") == "0"
    assert [line for line in output.splitlines() if line.startswith("dppo: ")] == output.strip().splitlines()
    assert "no-such-flag" in output
    assert not job.run_dir.exists()
