"""Clusters of emulated nodes, with Slurm or without, and batch jobs on them; `tests/slurm/cluster` makes the nodes.

The tests of this folder and benchmarks/hosts.py use it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.run_directory import summary

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("cluster")
NODES = 4
SHARED_CORES = {
    # all nodes share this machine's cores, and do not know it: who waits must let others run
    "OMPI_MCA_mpi_yield_when_idle": "1",
}
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "")
ASK_EVERY_S = 0.5
"""Between two questions to Slurm: each starts four processes, and the cores are for the jobs."""
_OF_A_LAUNCHER = ("OMPI_", "PMIX_", "PRTE_", "SLURM_")


class Cluster:
    """Emulated nodes n1, n2, … that share one folder.

    Args:
      folder: the shared one; tests work in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.job_names: set[str] = set()

    def __call__(self, verb: str, *arguments: object, timeout: float = 60.0) -> str:
        """`tests/slurm/cluster VERB FOLDER ARGUMENTS`; its output."""
        command = [str(PROGRAM), verb, str(self.folder), *map(str, arguments)]
        return self._run(command, timeout)

    def on(self, node: str, *command: object, timeout: float = 60.0, **variables: str) -> str:
        """The output of a command there, which must succeed."""
        return self._run([str(PROGRAM), "exec", str(self.folder), node, *map(str, command)], timeout, **variables)

    def mpirun(self, hosts: str, ranks: int, *arguments: object, timeout: float = 120.0, **variables: str) -> str:
        """The output of `python ARGUMENTS` on ranks of the nodes, such as "n1:2,n2:1", where there is no Slurm."""
        command = [str(Path(sys.executable).with_name("mpirun")), "--with-ft", "ulfm", "--host", hosts, "-n", ranks]
        agent = f"{PROGRAM} ssh {self.folder}"
        return self.on(
            "head", *command, sys.executable, *arguments, timeout=timeout, PRTE_MCA_plm_ssh_agent=agent, **variables
        )

    def _run(self, command: list[str], timeout: float, **variables: str) -> str:
        ended = subprocess.run(
            command, cwd=self.folder, env=environment() | variables, stdin=subprocess.DEVNULL, timeout=timeout,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, f"{' '.join(command)} ended with {ended.returncode}\n{ended.stdout}"
        return ended.stdout


def environment() -> dict[str, str]:
    """This process's, without what a launcher or an import of dppo.run has put into it; the code beside these tests."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_OF_A_LAUNCHER) and not k.endswith("_NUM_THREADS")}
    return kept | SHARED_CORES | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'mpi' / 'programs'}", "VENV": str(Path(sys.prefix)), "TMPDIR": "/tmp",
    }  # fmt: skip


@contextmanager
def emulated(verb: str, nodes: int, folder: Path) -> Iterator[Cluster]:
    """A cluster in `folder`, until the end of the block or of this process.

    Args:
      verb: "up" with Slurm, "hosts" without.
    """
    cluster = Cluster(folder)
    try:
        cluster(verb, nodes, os.getpid())
        yield cluster
    finally:
        cluster("down")


class Batch:
    """A batch job on the cluster."""

    def __init__(self, cluster: Cluster, number: str, run_dir: Path) -> None:
        self.cluster, self.number, self.run_dir = cluster, number, run_dir

    @property
    def state(self) -> str:
        """PENDING, RUNNING, COMPLETED, FAILED, …"""
        return self.fact("JobState")

    def fact(self, name: str) -> str:
        """What scontrol says of the job."""
        text = self.cluster.on("head", "scontrol", "show", "job", "--oneliner", self.number)
        return dict(word.partition("=")[::2] for word in text.split()).get(name, "")

    @property
    def output(self) -> str:
        """All that the job, or all tasks of an array, have said."""
        mine = re.compile(rf".*-{self.number}(_\d+)?\.out")  # job 1's is not that of job 10
        files = sorted(path for path in self.cluster.folder.iterdir() if mine.fullmatch(path.name))
        return "".join(file.read_text() for file in files)

    def until(self, condition: Callable[[], bool], timeout: float = 90.0, every_s: float = 0.1) -> None:
        """Waits for something that the job brings about."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"{self.state} after {timeout} s\n{self.output}"
            time.sleep(every_s)

    def wait(self, state: str, timeout: float = 120.0) -> str:
        """The output of the job, which must end as `state`."""
        self.until(lambda: self.state in ENDED, timeout, ASK_EVERY_S)
        assert self.state == state, f"{self.state} is not {state}\n{self.output}"
        return self.output

    def ranks(self, node: str) -> list[str]:
        """Process ids of the run's ranks on a node, in their order."""
        return self.cluster.on(node, "pgrep", "--full", f"python -m dppo.run .*--run-dir {self.run_dir}( |$)").split()

    def how(self) -> str:
        """`exit` of the run's summary; empty where there is none yet."""
        return str(summary(self.run_dir)["exit"]) if (self.run_dir / "summary.json").exists() else ""


class Submit:
    """Submits scripts of jobs/ and, at its end, cancels what is left."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._jobs: list[Batch] = []

    def __call__(self, options: str, script: str | Path, *arguments: object, name: str, **variables: str) -> Batch:
        """`sbatch OPTIONS jobs/SCRIPT ARGUMENTS`; the run directory is runs/NAME on the cluster's shared folder.

        No two tests may give the same name.
        """
        run_dir = self._cluster.folder / "runs" / name
        assert name not in self._cluster.job_names, f"another job of this cluster has the name {name}"
        self._cluster.job_names.add(name)
        command = ["sbatch", "--parsable", f"--job-name={name}", *options.split(), str(ROOT / "jobs" / script)]
        number = self._cluster.on("head", *command, *arguments, **({"RUN_DIR": str(run_dir)} | variables)).strip()
        return self.adopt(number, run_dir)

    def adopt(self, number: str, run_dir: Path) -> Batch:
        """A job that somebody else has submitted."""
        self._jobs.append(Batch(self._cluster, number, run_dir))
        return self._jobs[-1]

    def close(self) -> None:
        for job in self._jobs:
            self._cluster.on("head", "scancel", "--quiet", job.number)
        for job in self._jobs:
            job.until(lambda job=job: job.state in ENDED, 30)  # type: ignore[misc]
