"""What breaks under a job: ranks, nodes, cables. It goes on or comes back, and never hangs until its time limit."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from tests.run_directory import count_lines, metric_lines, summary
from tests.slurm.emulation import Batch, Cluster, Submit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]
RUN = (
    "--env", "dppo.envs.probes:dppo/ProbeSlow-v0", "--num-envs", 2, "--horizon", 16, "--ppo.epochs", 2,
    "--ppo.minibatches", 2, "--log.no-tensorboard", "--checkpoint.every", 800,
)  # fmt: skip
STALL_ABORT_S = 10
KEEPALIVE = {"time": 6, "intvl": 2, "probes": 2}
"""Seconds, seconds, number. cluster/openmpi.sh has 60, 10, 3: a silent node is noticed after 90 s, here after 10."""
BACK_S = 60
"""Until a job is in the queue again: Slurm gives a silent node up after SlurmdTimeout, 10 s here, and some more."""


def test_a_rank_killed_on_another_node_is_survived(slurm: Cluster, sbatch: Submit) -> None:
    flags = (*RUN, "--total-steps", 40 * 5 * 32)
    job = sbatch("--nodes=2 --ntasks-per-node=3 --time=10", "train.sbatch", *flags, name="kill")
    job.until(lambda: count_lines(job.run_dir) > 8)
    (idle_s,) = re.findall(r"prted.*keepalive,(\d+)sec", slurm.on("n2", "ss", "--tcp", "-nop", "--no-header"))
    assert 0 < int(idle_s) <= 60  # of the connection to mpirun; dppo/cluster/openmpi.sh
    slurm.on("n2", "kill", "-9", job.ranks("n2")[-1])
    output = job.wait("COMPLETED")
    result = summary(job.run_dir)
    assert (result["exit"], result["attempt"], result["world_size"]) == ("finished", 1, 5), output
    assert job.fact("Restarts") == "0"
    assert metric_lines(job.run_dir)[-1]["ranks_lost"] == "1"


def test_a_job_that_its_user_cancels_does_not_come_back(slurm: Cluster, sbatch: Submit) -> None:
    job = sbatch("--nodes=2 --ntasks-per-node=3 --time=10", "train.sbatch", *RUN, name="cancel")
    job.until(lambda: count_lines(job.run_dir) > 2)
    slurm.on("head", "scancel", job.number)
    job.wait("CANCELLED", 30)
    assert job.fact("Restarts") == "0"


@pytest.fixture(scope="module")
def jobs(slurm: Cluster) -> Iterator[dict[str, Batch]]:
    """Each runs on one or two nodes, of which it may come back on one; that with n3 alone then finds n4. Then n3
    crashes, n4 is cut off from all, and n1 from n2, of which Slurm sees nothing. When all are in the queue again, the
    cables are put back; n3 stays down.
    """
    submit = Submit(slurm)
    keepalive = {f"PRTE_MCA_oob_tcp_keepalive_{name}": str(value) for name, value in KEEPALIVE.items()}

    def start(name: str, others: str, *flags: object, script: str = "train.sbatch", **variables: str) -> Batch:
        options = f"--nodes=1-2 --ntasks-per-node=2 --time=15 --exclude={others}"
        return submit(options, script, *RUN, "--total-steps", 100 * 3 * 32, *flags, name=name, **variables)

    started = {
        "cable: launcher": start("cable-launcher", "n3,n4", **keepalive),
        "cable: watchdog": start("cable-watchdog", "n3,n4", "--log.stall-abort-s", STALL_ABORT_S),
        "cable: node": start("cable-node", "n2,n3"),
        "crash: first node": start("crash-first", "n1,n2,n4", "--total-steps", 100 * 1 * 32),
        "crash: second node": start("crash-second", "n2,n4"),
        "crash: srun": start("crash-srun", "n2,n4", script="train-srun.sbatch"),
        "killed: srun": start("killed-srun", "n1,n3,n4", script="train-srun.sbatch"),
    }
    for job in started.values():
        job.until(lambda job=job: count_lines(job.run_dir) > 8)  # type: ignore[misc]
    try:
        slurm.on("n2", "kill", "-9", started["killed: srun"].ranks("n2")[-1])
        slurm("cut", "n1", "n2")
        slurm("cut", "n4")
        slurm("crash", "n3")
        since = time.monotonic()
        waiting = dict(started)
        while waiting:
            for name, job in tuple(waiting.items()):
                if job.fact("Restarts") != "0":
                    print(f"{name}: back in the queue after {time.monotonic() - since:.0f} s")
                    del waiting[name]
            assert time.monotonic() - since < BACK_S, "\n".join(f"{name}:\n{waiting[name].output}" for name in waiting)
            time.sleep(0.2)
        slurm("heal", "n1", "n2")
        slurm("heal", "n4")
        slurm.on("head", "scontrol", "update", f"JobId={started['crash: first node'].number}", "ExcNodeList=n1,n2")
        yield started
    finally:
        submit.close()
        for verb, *where in (("heal", "n1", "n2"), ("heal", "n4"), ("start", "n3")):
            slurm(verb, *where)
        deadline = time.monotonic() + 60
        nodes = ("sinfo", "--noheader", "--Node", "--partition=all", "--format=%t")
        while slurm.on("head", *nodes).split() != 4 * ["idle"]:
            assert time.monotonic() < deadline, slurm.on("head", "sinfo", "--Node", "--long")
            time.sleep(0.2)


@pytest.mark.parametrize(
    "name, world_sizes",
    [
        ("cable: launcher", (2, 4)),
        ("cable: watchdog", (2, 4)),
        ("cable: node", (2, 4)),
        ("crash: first node", (2,)),
        ("crash: second node", (2,)),
        ("crash: srun", (2,)),
        ("killed: srun", (2,)),
    ],
)
def test_a_job_comes_back(name: str, world_sizes: tuple[int, ...], jobs: dict[str, Batch]) -> None:
    job = jobs[name]
    output = job.wait("COMPLETED", 150)
    result = summary(job.run_dir)
    assert result["exit"] == "finished" and result["attempt"] > 1 and result["world_size"] in world_sizes, output
    numbers = [int(line["iteration"]) for line in metric_lines(job.run_dir)]
    assert numbers == list(range(1, len(numbers) + 1)), "each iteration once"
