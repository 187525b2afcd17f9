"""How a rank leaves when it cannot leave together with the others."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from typing import NoReturn

from dppo.cluster import guard
from dppo.cluster.launcher import survives_deaths
from dppo.cluster.watchdog import Watchdog
from dppo.comm.leaving import die, end_job, left_mpi
from dppo.comm.mpi import Comm
from dppo.comm.ulfm import wait_asleep
from dppo.console import end_output
from dppo.errors import EXIT_FAILED, EXIT_STALLED, Failure, SavingError
from dppo.run.preflight import Plan
from dppo.run.rank import Rank
from dppo.run.setup import conclude
from dppo.rundir import paths
from dppo.rundir.summary import EXIT_CODES


def make_watchdog(plan: Plan, comm: Comm, number: int) -> Watchdog:
    """Returns the watchdog of rank `number`; it writes to stderr until the run directory is there."""
    log = plan.config.log
    watchdog = Watchdog(
        None, number, log.stall_after_s, log.stall_abort_s,
        end=lambda: _end_by_stall(plan, comm, number, is_starting=not watchdog.has_folder), is_lost=left_mpi,
        beat=guard.beat,
    )  # fmt: skip
    return watchdog


def _end_by_stall(plan: Plan, comm: Comm, number: int, *, is_starting: bool) -> None:
    """Ends a rank that made no progress for too long. The thread of the rank's watchdog calls this."""
    if not survives_deaths():
        guard.leave_at_once(EXIT_STALLED)
    if plan.config.on_worker_error == "abort":
        if is_starting:
            end_job(comm, EXIT_STALLED)
        with contextlib.suppress(OSError):
            (plan.run_dir / paths.ENDED_BY_STALL).write_text(
                f"rank {number} on {socket.gethostname()} made no progress for {plan.config.log.stall_abort_s:g} s"
                " (--log.stall-abort-s)"
            )
    if not plan.survives:  # this rank has been the only one, but a simulator beside it may not notice its death
        end_job(comm, EXIT_STALLED)
    die()


def leave_alone(me: Rank) -> NoReturn:
    """Ends the job without workers that are stuck in an environment, on rank 0, once everything is saved."""
    saver, console, group = me.server.tracker.saver, me.services.console, me.group
    try:
        saver.conclude()
    except SavingError as error:
        console.warn(str(error))
        saver.fail(Failure(str(error)))
    code = EXIT_CODES.get(saver.summary.exit, EXIT_FAILED)
    if saver.summary.exit in EXIT_CODES:
        conclude(saver.summary, console, me.plan.config)
    elif saver.dumps is not None and saver.dumps.ends_the_run:
        console.warn(f"{saver.dumps.problem} (--trajectories.required)")
    console.warn(f"some workers did not leave in time: the job ends without them, exit code {code}")
    end_output()
    guard.announce(code)
    if not survives_deaths():
        group.comm.Abort(code)
    for member in group.members:  # members on other nodes end with the launcher
        if member.host == group.member.host and member.pid != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(member.pid, signal.SIGKILL)
    time.sleep(0.1)
    os._exit(code)


def wait_for_others(world: Comm, limit_s: float) -> None:
    """Collective over `world`, except a rank whose environment has ended MPI or never closes. Waits for `limit_s` at
    most, so that all leave together.
    """
    deadline = time.monotonic() + limit_s

    def meanwhile() -> None:
        if time.monotonic() > deadline:
            raise TimeoutError

    with contextlib.suppress(TimeoutError):
        wait_asleep(world, meanwhile)
