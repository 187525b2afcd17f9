"""What must be settled before torch, NumPy and MPI are imported: threads, and Open MPI's parameters.

Uses the standard library only; run.py calls it first. `python -m dppo.startup` prints where the file of Open MPI's
parameters is, for scripts that source it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import NoReturn

from dppo.bounds import digits

early_signals: list[int] = []
"""SIGUSR1 and SIGTERM that came while the program was still starting."""

MPI_PARAMETERS = Path(__file__).with_name("openmpi.sh")

MOST_RANKS = 10**6
"""A launcher's variable that says more is taken for nonsense, and counts as not set."""
_LOCAL_RANKS = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE")
_LAUNCHED = ("OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK")
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")
_LAUNCHERS = ("mpirun", "mpiexec", "prterun", "prted")
_PR_SET_PDEATHSIG = 1
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
        if (ranks := digits(os.environ.get(name, ""), MOST_RANKS)) is not None:
            return max(1, ranks)
    nodes = tasks_per_node(os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    number = digits(os.environ.get("SLURM_NODEID", "0"), MOST_RANKS)
    return nodes[number] if number is not None and number < len(nodes) else 1


def tasks_per_node(text: str) -> list[int]:
    """Slurm's way to write it: `4(x2),3` is [4, 4, 3]. What cannot be is [], as if nothing were said."""
    counted: list[int] = []
    for part in text.split(",") if text else []:
        found = re.fullmatch(r"([0-9]+)(?:\(x([0-9]+)\))?", part)
        tasks, nodes = (digits(number or "1", MOST_RANKS) for number in found.groups()) if found else (None, None)
        if tasks is None or nodes is None or len(counted) + nodes > MOST_RANKS:
            return []
        counted += [tasks] * nodes
    return counted


def limit_threads() -> int:
    """Gives this rank's thread pools its share of the cores that it may run on; a setting of the user's stays.

    torch gets the share. NumPy's BLAS gets one thread: at the closed-form network's sizes a second one brings nothing
    on an idle machine and costs a factor of ten on a busy one, where its partner spins without a core.

    Returns:
      The share.
    """
    cores, of_job = len(os.sched_getaffinity(0)), digits(os.environ.get("SLURM_CPUS_ON_NODE", ""), MOST_RANKS)
    # to a part of its own of the job's cores, as by srun; where Slurm counts more than there are, nothing can be told
    is_bound = of_job is not None and cores < min(of_job, os.cpu_count() or 1)
    share = max(1, cores if is_bound else cores // local_ranks())
    for name in _TORCH_POOLS:
        os.environ.setdefault(name, str(share))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    return share


def set_mpi_parameters() -> None:
    """Open MPI parameters that the user need not know; a setting of the user's stays.

    Besides those of `openmpi.sh`: on one node ob1 over shared memory starts twice as fast as the search for a network.
    A rank that no launcher has started needs no transport: its shared memory would stay in /dev/shm for ever.
    """
    environ = os.environ
    for name, value in re.findall(r'^export (\w+)="\$\{\1-(.*)\}"$', MPI_PARAMETERS.read_text(), re.MULTILINE):
        environ.setdefault(name, value)
    if not environ.get("HOME"):
        environ["HOME"] = _home()
    if on_one_node():
        environ.setdefault("OMPI_MCA_pml", "ob1")
        environ.setdefault("OMPI_MCA_btl", "self,sm,tcp" if is_launched() else "self")


def this_python() -> str:
    """What a shell in this folder calls the Python that runs: a part of a command that can be pasted there."""
    path = Path(sys.executable or "python")
    with contextlib.suppress(OSError):  # a folder that somebody has removed
        if path.is_relative_to(Path.cwd()):
            return shlex.quote(str(path.relative_to(Path.cwd())))
    found = shutil.which("python")
    # not by the file alone: the Pythons of virtual environments are links to one
    return "python" if found is not None and Path(found) == path else shlex.quote(str(path))


def _home() -> str:
    """As the system knows it; Open MPI does not start without one. Never a folder that others may write to, for its
    settings are read from there.
    """
    try:
        return pwd.getpwuid(os.getuid()).pw_dir or "/"
    except KeyError:  # a user without a name, as in containers
        return "/"


def without_mpi(error: Exception, *, is_command: bool) -> NoReturn:
    """MPI could not be imported: said once, with what to install; a command ends with code 2."""
    why = (str(error).splitlines() or [type(error).__name__])[0].rstrip(": ")
    message = (
        f"MPI cannot be loaded ({why}): pip install 'dppo[mpi]' brings one; on a cluster load your site's MPI first,"
        " the one that mpi4py was built with"
    )
    if not is_command:
        raise ImportError(message) from None  # two tracebacks would hide it
    if is_first():
        print(f"dppo: {message}", file=sys.stderr, flush=True)
    raise SystemExit(2)


def on_one_node() -> bool:
    """Whether no rank of this job is on another node, as the launcher says."""
    size = os.environ.get("OMPI_COMM_WORLD_SIZE")
    if size is not None:
        return size == os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE")
    return len(tasks_per_node(os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))) <= 1


if __name__ == "__main__":
    print(MPI_PARAMETERS)
