"""A job that is interrupted comes back, and its run has the numbers of one that was not: to the byte."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.run_directory import count_lines, first_difference, metric_lines, summary
from tests.slurm.emulation import ROOT, Batch, Cluster, Submit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]
ITERATIONS = 300
# its steps sleep, so that a run lasts some seconds and needs no core
RUN = (
    "--env", "dppo.envs.probes:dppo/ProbeSlow-v0", "--num-envs", 2, "--horizon", 16, "--ppo.epochs", 2,
    "--ppo.minibatches", 2, "--total-steps", ITERATIONS * 3 * 2 * 16, "--log.no-tensorboard", "--ppo.target-kl", 0,
)  # fmt: skip
TWO_BY_TWO = "--nodes=2 --ntasks-per-node=2"
BAD = ("--env", "odd_envs:odd/BadOnRankTwo-v0")
THERE = "--nodelist=n3,n4"
ASK = "scancel --signal=USR1 --batch"
INTERRUPTS = {"signal": ASK, "stuck": ASK, "requeue": "scontrol requeue"}


@pytest.fixture(scope="module")
def jobs(slurm: Cluster) -> Iterator[dict[str, Batch]]:
    """All at once, but for their starts, which need the cores: mostly they wait, for Slurm or for their environments.
    Slurm looks at advance signals twice a minute and sends them up to half a minute early: the scripts' own, two
    minutes before the end, reaches a job of three minutes 30 to 60 seconds after its start, when it trains.
    """
    submit = Submit(slurm)
    long, short = f"{TWO_BY_TWO} --time=10", f"{TWO_BY_TWO} --time=3"
    impatient, patient = slurm.folder / "impatient.sbatch", (ROOT / "jobs" / "train.sbatch").read_text()
    assert "exec python -m dppo.job " in patient
    impatient.write_text(patient.replace("-m dppo.job ", "-m dppo.job --kill-after-s 3 "))
    settings = slurm.folder / "settings.toml"
    settings.write_text("[ppo]\nepochs = 2\n")
    train, train_srun = "train.sbatch", "train-srun.sbatch"
    often = ("--checkpoint.every", 960)
    late = ("--env-kwargs", "step_s=0.007")  # still there when the signal comes, after a minute at the latest
    started: dict[str, Batch] = {}
    for name, options, script, flags in (
        ("limit", short, train, (*RUN, *late)),
        ("srun", short, train_srun, (*RUN, *late)),
        ("whole", long, train, RUN),
        ("requeue", long, train, (*RUN, *often)),
        ("signal", long, train, (settings, *RUN)),
        ("stuck", long, impatient, RUN),
        ("preempted", f"{long} {THERE}", train, (*RUN, *often)),
        ("preempted-srun", f"{long} {THERE}", train_srun, RUN),
    ):
        started[name] = job = submit(options, script, *flags, name=name)
        job.until(lambda job=job: count_lines(job.run_dir) > 12)  # type: ignore[misc]
        if name == "signal":
            settings.write_text("# of the next experiment\n[ppo]\nepochs = 7\n")
        if name == "stuck":
            slurm.on("n2", "kill", "-STOP", job.ranks("n2")[-1])
        if name in INTERRUPTS:
            slurm.on("head", *INTERRUPTS[name].split(), job.number)
    urgent = f"sbatch --partition=urgent {THERE} --nodes=2 --exclusive --time=1 --output=/dev/null --wrap=true"
    slurm.on("head", *urgent.split())
    fruitless = submit(long, "train.sbatch", "--env", "odd_envs:odd/Deadly-v0", name="fruitless")
    yield started | {"fruitless": fruitless}
    submit.close()


@pytest.fixture(scope="module")
def whole(jobs: dict[str, Batch]) -> list[dict[str, str]]:
    """The lines of a run that nobody interrupts."""
    jobs["whole"].wait("COMPLETED", 200)
    lines = metric_lines(jobs["whole"].run_dir)
    assert len(lines) == ITERATIONS
    return lines


@pytest.mark.parametrize("name", ["signal", "stuck", "requeue", "limit", "srun", "preempted", "preempted-srun"])
def test_a_job_that_comes_back_has_the_numbers_of_one_that_was_not_interrupted(
    name: str, jobs: dict[str, Batch], whole: list[dict[str, str]]
) -> None:
    job = jobs[name]
    output = job.wait("COMPLETED", 240)
    result = summary(job.run_dir)
    assert result["exit"] == "finished" and result["attempt"] > 1, output
    assert "done (finished)" in output
    if name not in ("stuck", "requeue", "preempted"):  # no, or a quarter of a second is left
        assert "was preempted" in output and "cut short" not in output
    ran_on = json.loads((job.run_dir / "versions.json").read_text())
    restarts = int(job.fact("Restarts"))
    assert (ran_on["job_id"], ran_on["restart_count"]) == (job.number, restarts)
    assert len(ran_on["attempts"]) == result["attempt"] <= 1 + restarts
    assert first_difference(metric_lines(job.run_dir), whole) == "", (ran_on["attempts"], output)
    starts = [json.loads(line) for line in (job.run_dir / "starts.jsonl").read_text().splitlines()]
    assert [start["restart_count"] for start in starts] == list(range(1 + restarts))
    assert [start["verdict"] for start in starts] == [75] * restarts + [0]


def test_a_job_whose_starts_bring_nothing_ends(jobs: dict[str, Batch]) -> None:
    job = jobs["fruitless"]
    output = job.wait("FAILED", 120)
    assert job.fact("ExitCode") == "1:0" and job.fact("Restarts") == "2"
    assert "no start of 3 has brought a new one: not started again" in output


def test_an_exception_is_not_tried_again(sbatch: Submit) -> None:
    job = sbatch(TWO_BY_TWO, "train.sbatch", *BAD, name="exception", FAULT="raise")
    output = job.wait("FAILED", 60)
    assert job.fact("ExitCode") == "1:0" and job.fact("Restarts") == "0"
    assert "failed: " in output.splitlines()[-1] and "not started again" in output.splitlines()[-1]


def test_two_jobs_do_not_get_one_run_directory(slurm: Cluster, sbatch: Submit) -> None:
    first = sbatch(TWO_BY_TWO, "train.sbatch", *RUN, name="mine")
    first.until(lambda: count_lines(first.run_dir) > 2)
    second = sbatch(TWO_BY_TWO, "train.sbatch", *RUN, name="yours", RUN_DIR=str(first.run_dir))
    output = second.wait("FAILED", 60)
    assert second.fact("ExitCode") == "2:0"
    assert f"job {first.number} has {first.run_dir}, and is still in the queue" in output
    assert first.state == "RUNNING"
