"""A job that is interrupted comes back, and its run has the numbers of one that was not: to the byte."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.rundir import count_lines, metric_lines, summary
from tests.slurm.emulation import Batch, Cluster, Submit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]
ITERATIONS = 150
# its steps sleep, so that a run lasts some seconds and needs no core
RUN = (
    "--env", "dppo.envs.probes:dppo/ProbeSlow-v0", "--num-envs", 2, "--horizon", 16, "--ppo.epochs", 2,
    "--ppo.minibatches", 2, "--total-steps", ITERATIONS * 5 * 2 * 16, "--log.no-tensorboard", "--ppo.target-kl", 0,
)  # fmt: skip
TWO_BY_THREE = "--nodes=2 --ntasks-per-node=3"
THERE = "--nodelist=n3,n4"
INTERRUPTS = {"signal": "scancel --signal=USR1 --batch", "requeue": "scontrol requeue"}


@pytest.fixture(scope="module")
def jobs(slurm: Cluster) -> Iterator[dict[str, Batch]]:
    """All at once: mostly they wait, for Slurm or for their environments. Slurm looks at time limits and advance
    signals twice a minute; of the short jobs the signal is due from the start.
    """
    submit = Submit(slurm)
    long, short = f"{TWO_BY_THREE} --time=10", f"{TWO_BY_THREE} --time=2"
    started = {
        "requeue": submit(long, "train.sbatch", *RUN, "--checkpoint.every", 1600, name="requeue"),
        "signal": submit(long, "train.sbatch", *RUN, name="signal"),
        "limit": submit(short, "train.sbatch", *RUN, name="limit"),
        "srun": submit(short, "train-srun.sbatch", *RUN, name="srun"),
        "preempted": submit(f"{long} {THERE}", "train.sbatch", *RUN, "--checkpoint.every", 1600, name="preempted"),
        "preempted-srun": submit(f"{long} {THERE}", "train-srun.sbatch", *RUN, name="preempted-srun"),
        "whole": submit(long, "train.sbatch", *RUN, name="whole"),
    }
    for job in started.values():
        job.until(lambda job=job: count_lines(job.run_dir) > 12)  # type: ignore[misc]
    for name, command in INTERRUPTS.items():
        slurm.on("head", *command.split(), started[name].number)
    urgent = f"sbatch --partition=urgent {THERE} --nodes=2 --exclusive --time=1 --output=/dev/null --wrap=true"
    slurm.on("head", *urgent.split())
    yield started
    submit.close()


@pytest.fixture(scope="module")
def whole(jobs: dict[str, Batch]) -> list[dict[str, str]]:
    """The lines of a run that nobody interrupts."""
    jobs["whole"].wait("COMPLETED", 200)
    lines = metric_lines(jobs["whole"].run_dir)
    assert len(lines) == ITERATIONS
    return lines


@pytest.mark.parametrize("name", ["signal", "requeue", "limit", "srun", "preempted", "preempted-srun"])
def test_a_job_that_comes_back_has_the_numbers_of_one_that_was_not_interrupted(
    name: str, jobs: dict[str, Batch], whole: list[dict[str, str]]
) -> None:
    job = jobs[name]
    output = job.wait("COMPLETED", 240)
    result = summary(job.run_dir)
    assert result["exit"] == "finished" and result["attempt"] > 1, output
    assert "done (finished)" in output
    if name not in ("requeue", "preempted"):  # they leave a quarter of a second
        assert "was preempted" in output and "cut short" not in output
    ran_on = json.loads((job.run_dir / "versions.json").read_text())
    assert ran_on["job_id"] == job.number and ran_on["restart_count"] == result["attempt"] - 1
    assert [attempt["restart_count"] for attempt in ran_on["attempts"]] == list(range(result["attempt"]))
    assert metric_lines(job.run_dir) == whole, output
