"""What must be settled before torch, NumPy and MPI are imported: threads, and Open MPI's parameters.

Uses the standard library only; run.py calls it first. `python -m dppo.startup` prints where the file of Open MPI's
parameters is, for scripts that source it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path
from typing import NoReturn

early_signals: list[int] = []
"""SIGUSR1 and SIGTERM that came while the program was still starting."""

MPI_PARAMETERS = Path(__file__).with_name("openmpi.sh")

_LOCAL_RANKS = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE")
_LAUNCHED = ("OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK")
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")
_LAUNCHERS = ("mpirun", "mpiexec", "prterun", "prted")
_PR_SET_PDEATHSIG = 1
LOOPBACK = {"OMPI_MCA_btl_tcp_if_include": "lo"} | {
    f"OMPI_MCA_btl_tcp_port_{name}": value  # any port, as exchange/ports.py needs it
    for name, value in (("min_v4", "0"), ("range_v4", "1"), ("min_v6", "0"), ("range_v6", "1"))
}
_TORCH_POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def note_early_signals() -> None:
    """Until training can save, a signal that asks to is only noted; by default it would kill."""
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda number, frame: early_signals.append(number))


def is_launched() -> bool:
    """Whether mpirun or srun has started this process."""
    return any(name in os.environ for name in _LAUNCHED)


def is_first() -> bool:
    """Whether the launcher calls this process the first one, be it a rank 0 of MPI or not; so without a launcher."""
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)


def die_with_launcher() -> None:
    """A rank that is stuck for ever must not outlive its job: when the launcher has ended, the kernel kills it."""
    if is_launched() and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def survives_deaths() -> bool:
    """Whether this job was started so that ranks may die: `mpirun --with-ft ulfm`."""
    return os.environ.get("OMPI_MCA_mpi_ft_enable", "").lower() in ("1", "true")  # noqa: SIM112


class StartGuard:
    """While MPI starts, under ULFM: if a rank of this node dies before it has begun, nobody would ever notice, and
    MPI_Init would wait for it for ever. A child process, which is not stopped by that wait, counts the launcher's
    children and ends the job if some stay missing.
    """

    PERIOD_S, PATIENCE = 0.5, 6

    def __init__(self) -> None:
        self._pid = 0
        # behind a wrapper script the launcher's children are others, and nothing can be told from them
        if survives_deaths() and launcher() == os.getppid() and local_ranks() > 1:
            self._pid = os.fork()
            if self._pid == 0:
                self._watch()

    def _watch(self) -> NoReturn:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        rank = os.getppid()
        parent, expected, missing = int(_stat(rank)[1]), local_ranks(), 0
        while os.getppid() == rank:
            time.sleep(self.PERIOD_S)
            missing = missing + 1 if len(_children(parent)) < expected else 0
            if missing == self.PATIENCE:
                text = (
                    f"dppo: a rank on {socket.gethostname()} died while MPI was starting: the job ends, start it again"
                )
                os.write(2, f"{text}\n".encode())
                os.kill(parent, signal.SIGTERM)
        os._exit(0)

    def end(self) -> None:
        """MPI has started."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0


def launcher() -> int | None:
    """Open MPI's process that has started this one, perhaps through a wrapper script; None where there is none."""
    pid = os.getppid()
    while pid > 1:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/comm") as file:
            if file.read().strip() in _LAUNCHERS:
                return pid
        pid = int((_stat(pid) or ["", "0"])[1])
    return None


def _stat(pid: int) -> list[str]:
    """State, parent, …, as in proc(5) from the third field on; [] where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def _children(pid: int) -> list[int]:
    """The living ones."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += [child for child in map(int, file.read().split()) if _stat(child)[:1] not in (["Z"], [])]
    return found


def local_ranks() -> int:
    """Ranks on this node, as the launcher says; 1 where there is none."""
    for name in _LOCAL_RANKS:
        if os.environ.get(name, "").isdigit():
            return max(1, int(os.environ[name]))
    nodes = tasks_per_node(os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    number = os.environ.get("SLURM_NODEID", "0")
    return nodes[int(number)] if number.isdigit() and int(number) < len(nodes) else 1


def tasks_per_node(text: str) -> list[int]:
    """Slurm's way to write it: `4(x2),3` is [4, 4, 3]."""
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, nodes in parts for _ in range(int(nodes or 1))]


def limit_threads() -> int:
    """Gives this rank's thread pools its share of the cores that it may run on; a setting of the user's stays.

    torch gets the share. NumPy's BLAS gets one thread: at the closed-form network's sizes a second one brings nothing
    on an idle machine and costs a factor of ten on a busy one, where its partner spins without a core.

    Returns:
      The share.
    """
    cores, of_job = len(os.sched_getaffinity(0)), os.environ.get("SLURM_CPUS_ON_NODE", "")
    # to a part of its own of the job's cores, as by srun; where Slurm counts more than there are, nothing can be told
    is_bound = of_job.isdigit() and cores < min(int(of_job), os.cpu_count() or 1)
    share = max(1, cores if is_bound else cores // local_ranks())
    for name in _TORCH_POOLS:
        os.environ.setdefault(name, str(share))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    return share


def set_mpi_parameters() -> None:
    """Open MPI parameters that the user need not know; a setting of the user's stays.

    Besides those of `openmpi.sh`: on one node ob1 over shared memory starts twice as fast as the search for a network,
    and TCP, which joins processes that replace dead ranks, is for this node only.
    A rank that no launcher has started needs no transport: its shared memory would stay in /dev/shm for ever.
    """
    environ = os.environ
    for name, value in re.findall(r'^export (\w+)="\$\{\1-(.*)\}"$', MPI_PARAMETERS.read_text(), re.MULTILINE):
        environ.setdefault(name, value)
    if on_one_node():
        environ.setdefault("OMPI_MCA_pml", "ob1")
        environ.setdefault("OMPI_MCA_btl", "self,sm,tcp" if is_launched() else "self")
        if is_launched() and not _may_spread():
            for name, value in LOOPBACK.items():
                environ.setdefault(name, value)


def is_kept_to_this_node() -> bool:
    """Whether TCP ports of MPI are for this node only."""
    return LOOPBACK.items() <= os.environ.items()


def _may_spread() -> bool:
    """Whether replacements may come to another node, or this is one: what holds for the others holds for it."""
    number = os.environ.get("PMIX_NAMESPACE", "").rpartition("@")[2]
    return number not in ("", "1") or os.environ.get("SLURM_JOB_NUM_NODES", "1") != "1"


def on_one_node() -> bool:
    """Whether no rank of this job is on another node, as the launcher says."""
    size = os.environ.get("OMPI_COMM_WORLD_SIZE")
    if size is not None:
        return size == os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE")
    return len(tasks_per_node(os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))) <= 1


if __name__ == "__main__":
    print(MPI_PARAMETERS)
