"""jobs/simulator.sbatch: where groups are placed, how they go on without those of a node, and that they come back."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.launch import PROGRAMS
from tests.run_directory import count_lines, metric_lines
from tests.slurm.emulation import ROOT, Batch, Cluster, Submit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]
RUN = (
    "--horizon", 4, "--ppo.epochs", 1, "--ppo.minibatches", 1, "--log.no-tensorboard", "--checkpoint.every", 80,
    "--total-steps", 10**9,
)  # fmt: skip
PYTHON = ("--env", "group_envs:Ring", "--env-kwargs", "sleep_s=0.01", "--num-envs", 1, *RUN)
SIMULATOR = "[s]imulators slow"
"""A pattern of its processes, and not of the shell that looks for them."""
ROOM = {"python": "--ntasks-per-node=3", "program": "--ntasks-per-node=4", "srun": "--ntasks-per-node=4"}
"""Of two nodes: for a group of two ranks on each, and the server on the first. A simulator has a worker as well. A task
of one node stays idle; with it, a group would lie on both. Four tasks are room for one group beside the server, or two.
"""


def ranks_on(cluster: Cluster, node: str, job: Batch, pattern: str) -> dict[int, int]:
    """Process ids of the ranks of a job's program on a node, by their numbers."""
    variables = 'tr "\\0" "\\n" </proc/$pid/environ | grep -E "^(OMPI_COMM_WORLD_RANK|SLURM_JOB_ID)="'
    script = f"for pid in $(pgrep -f '{pattern}'); do echo $pid $({variables}); done 2>/dev/null; true"
    found = {}
    for pid, *said in map(str.split, cluster.on(node, "bash", "-c", script).splitlines()):
        told = dict(word.split("=", 1) for word in said)
        if told.get("SLURM_JOB_ID") == job.number and "OMPI_COMM_WORLD_RANK" in told:  # mpirun has none
            found[int(told["OMPI_COMM_WORLD_RANK"])] = int(pid)
    return found


class Seen(NamedTuple):
    """What the fixture has seen of a job."""

    job: Batch
    before: dict[str, list[int]]
    """The simulator's ranks on n1 and n2 in the first start."""
    after: dict[str, list[int]]
    """In the second start."""


@pytest.fixture(scope="module")
def simulator(slurm: Cluster) -> str:
    """The command of a simulator whose steps sleep."""
    mpicc = Path(sys.executable).with_name("mpicc")
    if not mpicc.exists() or shutil.which("cc") is None:
        pytest.skip("there is no C compiler, or no mpicc")
    program = slurm.folder / "simulators"
    include = f"-I{ROOT / 'dppo' / 'envs' / 'include'}"
    subprocess.run([mpicc, include, PROGRAMS / "simulators.c", "-o", program], check=True, timeout=60)
    return f"{program} slow"


@pytest.fixture(scope="module")
def seen(slurm: Cluster, simulator: str) -> Iterator[dict[str, Seen]]:
    """Two jobs lose all their ranks on n2, go on, and are asked to save. One loses the node n4. Of the one that srun
    has started a rank is killed. All come back, and train on.
    """
    submit = Submit(slurm)
    there, beside = "--nodelist=n1,n2 --nodes=2 --time=10", {"ENV_RANKS": "2", "SIMULATOR": simulator}

    def start(name: str, options: str, *flags: object, **variables: str) -> Batch:
        return submit(f"{options} --time=10", "simulator.sbatch", *flags, name=f"groups-{name}", **variables)

    def where(job: Batch) -> dict[str, list[int]]:
        return {node: sorted(ranks_on(slurm, node, job, SIMULATOR)) for node in ("n1", "n2")}

    jobs = {
        "crash": start("crash", f"--nodes=1-2 --exclude=n1,n2 {ROOM['program']}", *RUN, **beside),
        "program": start("program", f"{there} {ROOM['program']}", *RUN, **beside),
        "python": start("python", f"{there} {ROOM['python']}", *PYTHON, ENV_RANKS="2"),
        "srun": start("srun", f"{there} {ROOM['srun']}", *PYTHON, ENV_RANKS="2", MPI="pmix"),
    }
    before: dict[str, dict[str, list[int]]] = {}

    def train(name: str, iterations: int) -> None:
        lines = count_lines(jobs[name].run_dir)
        jobs[name].until(lambda: count_lines(jobs[name].run_dir) >= lines + iterations, 120)

    try:
        for name, job in jobs.items():
            train(name, 30)
            before[name] = where(job)
            if name == "crash":
                slurm("crash", "n4")
            elif name == "srun":
                slurm.on("n2", "kill", "-9", job.ranks("n2")[-1])
            else:
                slurm.on("n2", "kill", "-9", *ranks_on(slurm, "n2", job, f"{SIMULATOR}|python -m [d]ppo.run").values())
                train(name, 30)
                slurm.on("head", "scancel", "--signal=USR1", "--batch", job.number)
        for job in jobs.values():
            job.until(lambda job=job: "resumed at" in job.output, 120)  # type: ignore[misc]
        for name in jobs:
            train(name, 10)
        yield {name: Seen(job, before[name], where(job)) for name, job in jobs.items()}
    finally:
        submit.close()
        slurm("start", "n4")
        deadline = time.monotonic() + 60
        nodes = ("sinfo", "--noheader", "--Node", "--partition=all", "--format=%t")
        while slurm.on("head", *nodes).split() != 4 * ["idle"]:
            assert time.monotonic() < deadline, slurm.on("head", "sinfo", "--Node", "--long")
            time.sleep(0.2)


def went_on(job: Batch) -> None:
    assert job.fact("Restarts") == "1" and job.output.count("resumed at") == 1, job.output
    numbers = [int(line["iteration"]) for line in metric_lines(job.run_dir)]
    assert numbers == list(range(1, len(numbers) + 1)), "each iteration once"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("python", ["ranks 1-2 on n1", "ranks 3-4 on n2"]),
        ("srun", ["ranks 1-2 on n1", "ranks 3-4 on n2", "ranks 5-6 on n2"]),
    ],
)
def test_groups_in_python_come_back_to_their_nodes(name: str, expected: list[str], seen: dict[str, Seen]) -> None:
    job = seen[name].job
    went_on(job)
    assert job.output.count(f"groups of 2 ranks, each on one node: 1 on n1, {len(expected) - 1} on n2") == 2
    assert re.findall(r"^ +group \d: (ranks \S+ on \w+),", job.output, re.MULTILINE) == 2 * expected


def test_simulators_come_back_to_the_nodes_of_their_workers(seen: dict[str, Seen]) -> None:
    job, before, after = seen["program"]
    went_on(job)
    assert job.output.count("groups of 3 ranks, each on one node: 1 on n1, 1 on n2") == 2
    assert before == after == {"n1": [3, 4], "n2": [5, 6]}
    told = re.findall(r"^ +simulator \d: (ranks \S+) on (\w+)$", job.output, re.MULTILINE)
    assert told == 2 * [("ranks 3-4", "n1"), ("ranks 5-6", "n2")]


@pytest.mark.parametrize("name", ["python", "program"])
def test_the_group_of_the_other_node_goes_on(name: str, seen: dict[str, Seen]) -> None:
    """Before the job is asked to save."""
    job = seen[name].job
    first, _ = job.output.split("resumed at")
    assert "2 rank(s) go on" in first and "was preempted" in first
    assert {line["ranks_lost"] for line in metric_lines(job.run_dir)} == {"0", "1"}


def test_after_the_crash_of_a_node_there_are_the_groups_of_the_other(seen: dict[str, Seen]) -> None:
    job = seen["crash"].job
    went_on(job)
    first, second = re.findall("groups of 3 ranks, each on one node: (.*)", job.output)
    assert first == "1 on n3, 1 on n4" and second in ("1 on n3", "1 on n4")
