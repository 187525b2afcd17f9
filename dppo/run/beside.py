"""Commands that are no run, in an mpirun that has started another program beside them. Importing this starts no MPI."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dppo.cluster.launcher import num_programs, survives_deaths
from dppo.errors import EXIT_FAILED

if TYPE_CHECKING:
    from dppo.run.solvers import Simulators

LEAVE_S, AFTER_RANK_ZERO_S = 20.0, 1.0
"""Seconds that simulators get to leave, together with this process, in a job that does not survive deaths; how much
later than rank 0, which says so, the others end.
"""


@contextlib.contextmanager
def other_programs() -> Iterator[Simulators | None]:
    """As `all_programs`, where the launcher says that there are several programs. Else None, and MPI is not started."""
    if (num_programs() or 1) == 1:
        yield None
        return
    with all_programs() as programs:
        yield programs


@contextlib.contextmanager
def all_programs() -> Iterator[Simulators]:
    """Surrounds a command. Collective over all ranks of all programs: finds the other programs of this job, and lets
    them leave however the command ends.
    """
    from dppo.run import command

    programs = command.all_programs()
    try:
        yield programs
    finally:
        programs.let_go()
        if survives_deaths():
            programs.end_those_left()
        elif programs.size:
            atexit.register(leave_together, is_first=programs.own.rank == 0)


def leave_together(*, is_first: bool) -> None:
    """Ends MPI, which waits for all programs of the job; if it waits for too long, ends this process, and so the job.

    Args:
      is_first: whether this rank says so.
    """
    from dppo.comm.mpi import MPI
    from dppo.console import say

    def give_up() -> None:
        if is_first:
            say(
                f"the job has not ended {LEAVE_S:g} s after the command, and is ended now: the simulator must call"
                " dppo_end once dppo_wait_reset returns DPPO_END"
            )
        else:
            time.sleep(AFTER_RANK_ZERO_S)
        os._exit(EXIT_FAILED)

    limit = threading.Timer(LEAVE_S, give_up)
    limit.daemon = True
    limit.start()
    ctypes.CDLL(MPI.__file__).MPI_Finalize()  # MPI.Finalize keeps Python's lock, and nobody could give up
    limit.cancel()
