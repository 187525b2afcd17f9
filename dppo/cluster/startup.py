"""Settles threads, Open MPI's parameters, and what processes that environments start inherit, before torch, NumPy and
MPI are imported.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import re
import shlex
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from dppo.cluster import slurm
from dppo.cluster.launcher import (
    is_first,
    is_launched,
    leave_job,
    local_rank,
    local_ranks,
    num_programs,
    on_one_node,
    without_job,
)
from dppo.errors import EXIT_USAGE, NoMPIError

early_signals: list[int] = []
"""The signals (SIGUSR1, SIGTERM, Ctrl-C) that came while the program was still starting."""

SECOND_SIGNAL_S = 5.0
"""Seconds after the first signal from which another one counts: mpirun and Slurm send several."""
_CAUGHT = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGALRM)

MPI_PARAMETERS = Path(__file__).parent / "openmpi.sh"

_TORCH_POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def note_early_signals(leave: Callable[[int], object]) -> None:
    """Only notes signals that ask to save, until training can save. By default one would kill, or end an import with a
    traceback. A signal that comes much later than the first has the process `leave` with a code.
    """
    first_at: list[float] = []

    def note(number: int, frame: FrameType | None) -> None:
        early_signals.append(number)
        first_at.append(time.monotonic())
        if first_at[-1] - first_at[0] > SECOND_SIGNAL_S:
            leave(128 + number)

    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)


@functools.cache  # once in a process
def let_children_start_afresh() -> None:
    """Gives processes that an environment forks default handlers where this program has its own: nobody could end a
    simulator that ignores SIGTERM. Signals that come in between wait until the handlers are set.
    """
    os.register_at_fork(before=_hold_signals, after_in_parent=_release_signals, after_in_child=_default_handlers)


_held = threading.local()  # signals that this program handles, and those blocked before this thread forked


def _hold_signals() -> None:
    _held.ours = [number for number in _CAUGHT if _is_ours(number)]
    _held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _held.ours)


def _is_ours(number: int) -> bool:
    return str(getattr(signal.getsignal(number), "__module__", "")).partition(".")[0] == "dppo"


def _release_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _held.mask)


def _default_handlers() -> None:
    _held.is_fork = True
    for number in _held.ours:
        signal.signal(number, signal.SIG_DFL)
    _release_signals()
    if signal.SIGINT in _held.ours:  # only now: an exception cannot leave this hook
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def forks_end_here() -> Iterator[None]:
    """Surrounds an environment's code: an exception in a process that this code has forked must not reach what belongs
    to a rank, such as MPI and the memory that ranks share.
    """
    try:
        yield
    except BaseException as error:
        if not getattr(_held, "is_fork", False):
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)


def keep_children_out() -> None:
    """Keeps processes that environments start from becoming ranks. Once MPI has started, they do not inherit variables
    by which they would join the job as this very rank: a child that uses MPI is a world of its own. With spawn or
    forkserver of multiprocessing they would import this program again, as __mp_main__, which they do not need.
    """
    leave_job()
    main = sys.modules["__main__"]
    main.__spec__ = None
    main.__dict__.pop("__file__", None)


CORES = "DPPO_CORES"
"""The variable with the numbers of cores, separated by commas, as `taskset -c` and `numactl -C` take them."""


def child_environment() -> dict[str, str]:
    """Returns this process's environment variables without those of the job's MPI: a program that an environment starts
    with them is no rank of this job, and may be an mpirun of its own. DPPO_CORES has the cores of this rank's share.

        subprocess.run(["mpirun", "-n", "2", "./solver"], env=child_environment())
    """
    environ = without_job(os.environ)
    cores = share_of(sorted(own_cores()), local_rank(), local_ranks(), limit_threads())
    return environ | {CORES: ",".join(map(str, cores))}


def share_of(cores: list[int], rank: int, ranks: int, share: int) -> list[int]:
    """Returns the cores of one rank: `share` of them, which several ranks have in common where there are too few.

    Args:
      cores: the cores on which the rank may run: its own, or those of all ranks of its node.
      rank: its number among the `ranks` ranks of its node.
    """
    if share >= len(cores):
        return cores
    first = rank * share % len(cores)
    return cores[first : first + share]


def is_imported_by_child() -> bool:
    """Returns whether multiprocessing has this process import its parent's main module. A user's own environment has
    started such a process, by spawn or forkserver, from a program that imports dppo. It is no rank.
    """
    modules = sys.modules
    if "multiprocessing" not in modules:
        return False
    child = modules["multiprocessing"]
    return child.parent_process() is not None or getattr(child.current_process(), "_inheriting", False)


def own_cores() -> frozenset[int]:
    """Returns the numbers of the cores that this process may run on; all of them where the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


@functools.cache  # an environment may clear os.environ
def prepare() -> int:
    """Settles threads and Open MPI's parameters, in the environment, before NumPy, torch and MPI are imported. Where
    NumPy is imported already, limits its threads now. Returns this rank's threads.
    """
    if is_imported_by_child():
        leave_job()
    set_mpi_parameters()
    is_late = "numpy" in sys.modules and "OPENBLAS_NUM_THREADS" not in os.environ
    threads = limit_threads()
    if is_late:
        from threadpoolctl import threadpool_limits

        threadpool_limits(1, user_api="blas")
    return threads


def limit_threads() -> int:
    """Gives this rank's thread pools its share of the cores that it may run on. The user's own settings stay.

    torch gets the share. NumPy's BLAS gets one thread: at the closed-form network's sizes a second one brings nothing
    on an idle machine and costs a factor of ten on a busy one, where its partner spins without a core.

    Returns:
      The share.
    """
    cores, of_job = len(own_cores()), slurm.cores_on_this_node()
    # bound to its own part of the job's cores, as by srun; unknown where Slurm counts more cores than there are
    is_bound = of_job is not None and cores < min(of_job, os.cpu_count() or 1)
    share = max(1, cores if is_bound else cores // local_ranks())
    for name in _TORCH_POOLS:
        os.environ.setdefault(name, str(share))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # MKL, torch's BLAS, else sums a row in another order among 16 rows than among 8, on some types of CPU
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    return share


def set_mpi_parameters() -> None:
    """Sets Open MPI parameters that the user need not know. The user's own settings stay.

    In addition to those of `openmpi.sh`: on one node ob1 over shared memory starts twice as fast as the search for a
    network. TCP opens a port on every network; it is left out, except where it may have to join processes that replace
    dead ranks. A rank that no launcher has started needs no transport: its shared memory would stay in /dev/shm for
    ever. A simulator beside dppo chooses by itself: with several programs nothing is chosen here.
    """
    environ = os.environ
    for name, value in mpi_parameters().items():
        environ.setdefault(name, value)
    if not environ.get("HOME"):
        environ["HOME"] = _home()
    if on_one_node() and (num_programs() or 1) == 1:
        environ.setdefault("OMPI_MCA_pml", "ob1")
        transports = "self" if not is_launched() else "self,sm,tcp" if may_replace(sys.argv) else "self,sm"
        environ.setdefault("OMPI_MCA_btl", transports)


def mpi_parameters() -> dict[str, str]:
    """Returns the variables that `openmpi.sh` sets where they are not set."""
    return dict(re.findall(r'^export (\w+)="\$\{\1-(.*)\}"$', MPI_PARAMETERS.read_text(), re.MULTILINE))


def may_replace(argv: Sequence[str]) -> bool:
    """Returns whether --respawn may be asked for: by a flag, a settings file, the run that is resumed, or a program of
    the user's own.
    """
    is_command = bool(argv) and Path(argv[0]).parts[-3:] == ("dppo", "run", "__main__.py")
    return not is_command or any("respawn" in arg or arg.endswith(".toml") or arg == "--resume" for arg in argv[1:])


def this_python() -> str:
    """Returns the name of the running Python in a shell in this folder, for a command that can be pasted there."""
    path = Path(sys.executable or "python")
    with contextlib.suppress(OSError):  # a folder that somebody has removed
        if path.is_relative_to(Path.cwd()):
            return shlex.quote(str(path.relative_to(Path.cwd())))
    found = shutil.which("python")
    # the path is compared, not the file: the Pythons of virtual environments are links to one file
    return "python" if found is not None and Path(found) == path else shlex.quote(str(path))


def _home() -> str:
    """Returns the home folder that the system knows; Open MPI does not start without one. Never returns a folder that
    others may write to, because Open MPI reads its settings there.
    """
    try:
        return pwd.getpwuid(os.getuid()).pw_dir or "/"
    except KeyError:  # a user without a name, as in containers
        return "/"


def no_mpi(error: Exception) -> NoMPIError:
    """Returns the error that explains a failed import of mpi4py."""
    why = (str(error).splitlines() or [type(error).__name__])[0].rstrip(": ")
    return NoMPIError(
        f"MPI cannot be loaded ({why}): pip install 'dppo[mpi]' brings one; on a cluster load your site's MPI first,"
        " the one that mpi4py was built with"
    )


def say_no_mpi(error: NoMPIError) -> int:
    """Prints the error in the first process. Returns the exit code."""
    if is_first():
        print(f"dppo: {error}", file=sys.stderr, flush=True)
    return EXIT_USAGE
