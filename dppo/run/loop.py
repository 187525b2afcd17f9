"""The recovery loop: trains with the ranks that are left, until the run has ended.

It catches every RankFailure except those of the start, which `_from_a_start` in run/command.py catches.
"""

from __future__ import annotations

import contextlib
import sys
import time
import traceback

from dppo.cluster import guard
from dppo.cluster.launcher import survives_deaths
from dppo.comm import leaving, ulfm
from dppo.comm.link import MPILink
from dppo.comm.mpi import MPI
from dppo.comm.ulfm import deaths_noticed
from dppo.console import say
from dppo.envs.group_link import Call
from dppo.errors import (
    EXIT_FAILED,
    DumpError,
    Failure,
    JobFailure,
    RankFailure,
    SavingError,
    UsageError,
    WorkerError,
)
from dppo.run import setup
from dppo.run.rank import Rank
from dppo.run.recover import FAILURE_NOTICE_S, recover
from dppo.run.roles import begin_collecting
from dppo.run.session import run_session
from dppo.run.timelines import begin_timeline, end_timeline
from dppo.rundir.summary import EXIT_CODES, Summary
from dppo.seams import Tag
from dppo.training.build import CLOSE_AFTER_FAILURE_S, CLOSE_S, LAST_S

SAID = "said_by_dppo"  # marks an exception that was shown already


LEAVE_TOGETHER_S, LEAVE_AFTER_RANK_ZERO_S, LEAVE_ALONE_S = 0.05, 0.5, 5.0


def train_on(me: Rank, *, is_command: bool) -> Summary:
    """Trains, with the ranks that are left, until the run has ended. This is the recovery loop."""
    failure: RankFailure | None = None
    summary: Summary | None = None
    begin_timeline(me)
    try:
        while summary is None:
            try:
                with deaths_noticed():
                    if failure is not None:
                        cause, failure, since = failure, None, time.monotonic()
                        recover(me, cause)
                        if me.timeline is not None:
                            me.timeline.add("recovery", since, time.monotonic())
                    elif me.parts.has_envs and not me.worker.collects:
                        begin_collecting(me)
                    summary = run_session(me)
            except RankFailure as noticed:
                failure = noticed
            except UsageError:  # raised on all ranks
                raise
            except BaseException as error:  # also an environment that calls sys.exit
                failure = _own_failure(error, me)
    finally:
        if me.server.is_open:
            me.server.tracker.evaluations.close()
        me.services.watchdog.stop()
        env_group, code = me.parts.given.group, EXIT_FAILED if summary is None else EXIT_CODES[summary.exit]
        if is_command:  # all is settled: an environment that does not close delays nobody
            guard.announce(code)
            if env_group is not None:
                env_group.tell(Call.RUN, arguments=(guard.announce, code))
        me.parts.close(CLOSE_AFTER_FAILURE_S if summary is None else CLOSE_S)
        if env_group is not None:
            env_group.dismiss(_outcome(sys.exception()) if summary is None else summary)
        if summary is not None:
            end_timeline(me)
        if not is_command:  # the command's own last steps stay protected from a late signal
            me.services.preemption.uninstall()
    if me.group.is_server:
        setup.conclude(summary, me.services.console, me.plan.config)
    if not survives_deaths():
        for comm in (*me.group.others, me.group.comm):
            comm.Free()
        if env_group is not None:
            env_group.free()
    elif is_command:
        with contextlib.suppress(MPI.Exception):  # all leave at once, with the same code
            me.group.comm.Barrier()
        if env_group is not None:
            env_group.dismiss(None)
    return summary


def _outcome(error: BaseException | None) -> UsageError | Failure:
    """Returns what the other ranks of an environment are told of the error that ends the run."""
    return error if isinstance(error, UsageError) else Failure(f"{type(error).__name__}: {error}")


def _own_failure(error: BaseException, me: Rank) -> RankFailure:
    """Handles an error after which this rank cannot continue. By default all ranks end: rank 0 names the failing rank,
    its host and its traceback once, and the summary says failed. With --on-worker-error continue this rank dies and
    the others continue.
    """
    state = me.parts.state
    where = f"in iteration {state.iteration + 1}, after {state.env_steps:,} steps and {state.updates:,} updates"
    failure = Failure(f"{me.group.member} failed {where}:\n{traceback.format_exc()}")
    if isinstance(error, WorkerError | JobFailure):
        failure = error.failure
    if isinstance(error, DumpError):
        failure = Failure(f"{me.group.member}: {error} (--trajectories.required)")
    if isinstance(error, SavingError):
        failure = Failure(f"{me.group.member}: {error}")
    end_timeline(me)
    text = failure.text
    if me.survives and not isinstance(error, JobFailure):
        # if rank 0 fails, the next server would fail, too; a required dump that fails ends the run
        spares_others = not me.group.is_server and not isinstance(error, DumpError)
        if me.plan.config.on_worker_error == "continue" and spares_others:
            say(text)
            leaving.die()
        me.recovery.failure = failure
        return RankFailure(text)  # the others notice it as they would notice a death
    try:
        if me.group.is_server:
            say(text)
            if me.server.is_open:
                me.server.tracker.saver.fail(failure)
            else:
                setup.say_failed(me.plan, failure)
        elif not survives_deaths():
            guard.announce(EXIT_FAILED)  # whatever its environments do while they are closed
            # rank 0 prints the error, waits until the environments are closed, and ends the job; else this rank does
            link = MPILink(me.group.comm, lambda: False)
            link.failure(text)
            _let_mpi_send(link, LEAVE_TOGETHER_S)
            me.parts.close(CLOSE_AFTER_FAILURE_S)
            link.closed()
            _let_mpi_send(link, FAILURE_NOTICE_S)
            say(text)
            setup.say_failed(me.plan, failure)
    except Exception:  # the first error has been shown; a further one must not keep the job alive
        say(f"the summary could not be written:\n{traceback.format_exc()}")
    setattr(error, SAID, True)
    if me.group.comm.size > 1 and not survives_deaths():
        guard.announce(EXIT_FAILED)
        me.parts.close(CLOSE_AFTER_FAILURE_S)
        if isinstance(error, WorkerError) and error.worker is not None:
            _let_it_close(me.group.comm, rank=1 + error.worker)
        time.sleep(LEAVE_TOGETHER_S)  # so that the launcher passes on the error before it adds its own lines
        me.group.comm.Abort(EXIT_FAILED)
    if me.group.comm.size > 1:
        _wait_for_the_last_word(me)
    raise error


def _let_mpi_send(link: MPILink, for_s: float) -> None:
    deadline = time.monotonic() + for_s
    while time.monotonic() < deadline:
        link.keep_moving()
        time.sleep(0.01)


def _let_it_close(comm: MPI.Comm, rank: int) -> None:
    """Waits on rank 0 until the failed rank has closed its environments: MPI_Abort would end the rank before."""
    deadline = time.monotonic() + CLOSE_AFTER_FAILURE_S + LAST_S
    while time.monotonic() < deadline and not comm.Iprobe(rank, Tag.BYE):
        time.sleep(0.01)


def _wait_for_the_last_word(me: Rank) -> None:
    """Collective over the group. Waits until the summary is written: mpirun would kill rank 0 if a rank left before."""
    deadline = time.monotonic() + FAILURE_NOTICE_S

    def meanwhile() -> None:
        if time.monotonic() > deadline:
            raise TimeoutError

    with contextlib.suppress(MPI.Exception, TimeoutError):
        ulfm.wait_for_all(me.group.comm, meanwhile)
