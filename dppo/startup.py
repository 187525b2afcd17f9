"""What must be settled before torch, NumPy and MPI are imported: threads, Open MPI's parameters,
and what processes that environments start inherit.

`python -m dppo.startup` prints where the file of Open MPI's parameters is, for scripts that source it.
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
from dppo.cluster.launcher import is_first, is_launched, leave_job, local_ranks, on_one_node
from dppo.errors import EXIT_USAGE, NoMPIError

early_signals: list[int] = []
"""SIGUSR1, SIGTERM and Ctrl-C that came while the program was still starting."""

SECOND_SIGNAL_S = 5.0
"""mpirun and Slurm send several: one that comes so much later than the first is meant."""
_CAUGHT = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGALRM)

MPI_PARAMETERS = Path(__file__).parent / "cluster" / "openmpi.sh"

_TORCH_POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def note_early_signals(leave: Callable[[int], object]) -> None:
    """Until training can save, a signal that asks to is only noted; by default it would kill, or end an import with a
    traceback. One that comes much later than the first means it, and has the process `leave` with a code.
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
    """What an environment forks has default handlers where this program has its own: nobody could end a simulator that
    is deaf to SIGTERM. Signals that come in between wait until it has them.
    """
    os.register_at_fork(before=_hold_signals, after_in_parent=_release_signals, after_in_child=_default_handlers)


_held = threading.local()  # what was blocked before this thread forked


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
    if signal.SIGINT in _held.ours:  # not before: nothing can be raised from here
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def forks_end_here() -> Iterator[None]:
    """Around an environment's code: an exception in a process that it has forked must not come to what is a rank's, as
    MPI and the memory that ranks share.
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
    """Processes that environments start are no ranks. Once MPI has started, they do not get what they would join the
    job by, as this very rank: one that uses MPI is a world of its own. And by multiprocessing's spawn or forkserver
    they import the main module again, as __mp_main__: this program is nothing that they need.
    """
    leave_job()
    main = sys.modules["__main__"]
    main.__spec__ = None
    main.__dict__.pop("__file__", None)


def is_imported_by_child() -> bool:
    """Whether multiprocessing has this process import its parent's main module: one that a user's own environment has
    started, by spawn or forkserver, from a program that imports dppo. It is no rank.
    """
    modules = sys.modules
    if "multiprocessing" not in modules:
        return False
    child = modules["multiprocessing"]
    return child.parent_process() is not None or getattr(child.current_process(), "_inheriting", False)


def own_cores() -> frozenset[int]:
    """Numbers of the cores that this process may run on; all of them where the system does not say which."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


@functools.cache  # an environment may clear os.environ
def prepare() -> int:
    """Settles threads and Open MPI's parameters, in the environment, before NumPy, torch and MPI are imported; where
    NumPy is there already, its threads are limited now. Returns this rank's threads.
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
    """Gives this rank's thread pools its share of the cores that it may run on; a setting of the user's stays.

    torch gets the share. NumPy's BLAS gets one thread: at the closed-form network's sizes a second one brings nothing
    on an idle machine and costs a factor of ten on a busy one, where its partner spins without a core.

    Returns:
      The share.
    """
    cores, of_job = len(own_cores()), slurm.cores_on_this_node()
    # to a part of its own of the job's cores, as by srun; where Slurm counts more than there are, nothing can be told
    is_bound = of_job is not None and cores < min(of_job, os.cpu_count() or 1)
    share = max(1, cores if is_bound else cores // local_ranks())
    for name in _TORCH_POOLS:
        os.environ.setdefault(name, str(share))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    return share


def set_mpi_parameters() -> None:
    """Open MPI parameters that the user need not know; a setting of the user's stays.

    In addition to those of `openmpi.sh`: on one node ob1 over shared memory starts twice as fast as the search for a
    network. TCP, which opens a port on every network, is left out, except where it may have to join processes that
    replace dead ranks.
    A rank that no launcher has started needs no transport: its shared memory would stay in /dev/shm for ever.
    """
    environ = os.environ
    for name, value in re.findall(r'^export (\w+)="\$\{\1-(.*)\}"$', MPI_PARAMETERS.read_text(), re.MULTILINE):
        environ.setdefault(name, value)
    if not environ.get("HOME"):
        environ["HOME"] = _home()
    if on_one_node():
        environ.setdefault("OMPI_MCA_pml", "ob1")
        transports = "self" if not is_launched() else "self,sm,tcp" if may_replace(sys.argv) else "self,sm"
        environ.setdefault("OMPI_MCA_btl", transports)


def may_replace(argv: Sequence[str]) -> bool:
    """Whether --respawn may be asked for: by a flag, by a settings file, by the run that is resumed, or by a program of
    the user's own.
    """
    is_command = bool(argv) and Path(argv[0]).parts[-3:] == ("dppo", "run", "__main__.py")
    return not is_command or any("respawn" in arg or arg.endswith(".toml") or arg == "--resume" for arg in argv[1:])


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


def no_mpi(error: Exception) -> NoMPIError:
    """What an import of mpi4py that has failed means."""
    why = (str(error).splitlines() or [type(error).__name__])[0].rstrip(": ")
    return NoMPIError(
        f"MPI cannot be loaded ({why}): pip install 'dppo[mpi]' brings one; on a cluster load your site's MPI first,"
        " the one that mpi4py was built with"
    )


def say_no_mpi(error: NoMPIError) -> int:
    """The first process says it; the exit code."""
    if is_first():
        print(f"dppo: {error}", file=sys.stderr, flush=True)
    return EXIT_USAGE


if __name__ == "__main__":
    print(MPI_PARAMETERS)
