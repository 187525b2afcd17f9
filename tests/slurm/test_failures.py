"""What breaks under a job: ranks, nodes, cables. It goes on or comes back, and never hangs until its time limit."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.rundir import count_lines, metric_lines, summary
from tests.slurm.conftest import Batch, Cluster, Submit

pytestmark = pytest.mark.timeout(280)
RUN = (
    "--env", "dppo.envs.probes:dppo/ProbeSlow-v0", "--num-envs", 2, "--horizon", 16, "--ppo.epochs", 2,
    "--ppo.minibatches", 2, "--log.no-tensorboard", "--checkpoint.every", 800,
)  # fmt: skip
STALL_ABORT_S = 10
FAILED_NODE_S = 90
"""Slurm notices a silent node after SlurmdTimeout, 10 s here, and starts the job again after cred_expire, 10 s."""


@pytest.fixture
def two_pairs(slurm: Cluster, sbatch: Submit) -> Iterator[tuple[Batch, Batch]]:
    """A job on n1 and n2, one on n3 and n4, each of which may come back on one of its nodes; both are training."""
    jobs = []
    for name, others in (("first", "n3,n4"), ("second", "n1,n2")):
        options = f"--nodes=1-2 --ntasks-per-node=3 --time=15 --exclude={others}"
        flags = (*RUN, "--total-steps", 100 * 5 * 32, "--log.stall-abort-s", STALL_ABORT_S)
        jobs.append(sbatch(options, "train.sbatch", *flags, name=f"{name}-{time.monotonic_ns()}"))
    for job in jobs:
        job.until(lambda job=job: count_lines(job.run_dir) > 8)  # type: ignore[misc]
    yield jobs[0], jobs[1]


def comes_back(job: Batch, world_sizes: tuple[int, ...]) -> None:
    output = job.wait("COMPLETED", FAILED_NODE_S + 60)
    result = summary(job.run_dir)
    assert result["exit"] == "finished" and result["attempt"] > 1 and result["world_size"] in world_sizes, output
    numbers = [int(line["iteration"]) for line in metric_lines(job.run_dir)]
    assert numbers == list(range(1, len(numbers) + 1)), "each iteration once"


def ready(slurm: Cluster) -> None:
    """All nodes are there again."""
    deadline = time.monotonic() + 60
    while slurm.on("head", "sinfo", "--noheader", "--Node", "--format=%t").split() != 4 * ["idle"]:
        assert time.monotonic() < deadline, slurm.on("head", "sinfo", "--Node", "--long")
        time.sleep(0.2)


def test_a_rank_killed_on_another_node_is_survived(slurm: Cluster, sbatch: Submit) -> None:
    flags = (*RUN, "--total-steps", 80 * 5 * 32)
    job = sbatch("--nodes=2 --ntasks-per-node=3 --time=10", "train.sbatch", *flags, name="kill")
    job.until(lambda: count_lines(job.run_dir) > 8)
    slurm.on("n2", "bash", "-c", "kill -9 $(pgrep --full 'python -m dppo.run' | tail -1)")
    output = job.wait("COMPLETED")
    result = summary(job.run_dir)
    assert (result["exit"], result["attempt"], result["world_size"]) == ("finished", 1, 5), output
    assert job.fact("Restarts") == "0"
    assert metric_lines(job.run_dir)[-1]["ranks_lost"] == "1"


def test_a_crashed_node_brings_the_job_back_on_the_others(slurm: Cluster, two_pairs: tuple[Batch, Batch]) -> None:
    """n2 goes under mpirun's daemon, n3 with mpirun and the batch script."""
    for node in ("n2", "n3"):
        slurm("crash", node)
    try:
        for job in two_pairs:
            comes_back(job, (3, 6))
        assert summary(two_pairs[0].run_dir)["world_size"] == 3
    finally:
        for node in ("n2", "n3"):
            slurm("start", node)
        ready(slurm)


def test_a_cut_cable_never_makes_a_job_hang(slurm: Cluster, two_pairs: tuple[Batch, Batch]) -> None:
    """Between n1 and n2 Slurm sees nothing of it; n4 is gone for all."""
    slurm("cut", "n1", "n2")
    slurm("cut", "n4")
    try:
        since = time.monotonic()
        for job in two_pairs:
            job.until(lambda job=job: job.fact("Restarts") != "0", STALL_ABORT_S + FAILED_NODE_S)  # type: ignore[misc]
            print(f"{job.run_dir.name}: {time.monotonic() - since:.0f} s until it came back", job.output)
        slurm("heal", "n1", "n2")
        for job in two_pairs:
            comes_back(job, (3, 6))
    finally:
        slurm("heal", "n1", "n2")
        slurm("heal", "n4")
        ready(slurm)
