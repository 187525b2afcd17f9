"""Commands that are no run, in an mpirun that has started another program beside them. Importing this starts no MPI."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dppo.cluster.launcher import num_programs, survives_deaths

if TYPE_CHECKING:
    from dppo.run.solvers import Simulators

LEAVE_S = 60
"""Seconds that simulators get to leave, together with this process, in a job that does not survive deaths."""


@contextlib.contextmanager
def other_programs() -> Iterator[Simulators | None]:
    """Surrounds a command: finds the other programs of this job, and lets them leave however the command ends. None if
    there are none; then MPI is not started.
    """
    if (num_programs() or 1) == 1:
        yield None
        return
    from dppo.run.command import all_programs

    programs = all_programs()
    try:
        yield programs
    finally:
        programs.let_go()
        if survives_deaths():
            programs.end_those_left()
        else:  # MPI_Finalize waits for them
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(LEAVE_S)
