"""python -m dppo.run: flags, COMM_WORLD, recovery loop, exit code.

This top module puts the other modules together and is the only one that says COMM_WORLD. Ranks decide together: errors
before training are gathered and shown once, by rank 0, and all ranks leave with the same code. While nothing is on
disk, `_from_a_start` repeats the start after a death; `train_on` recovers from later deaths.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from dppo.cluster import guard, ports, processes, startup
from dppo.cluster.launcher import check_launcher, is_first, num_programs, on_one_node, rank_name, survives_deaths
from dppo.cluster.watchdog import Watchdog
from dppo.comm import leaving, mpi, ulfm
from dppo.comm.collectives import from_rank_zero
from dppo.comm.mpi import MPI
from dppo.comm.ulfm import deaths_noticed
from dppo.config import Config
from dppo.console import Console, end_output, say
from dppo.errors import EXIT_FAILED, EXIT_FINISHED, EXIT_USAGE, HelpShown, RankFailure, UsageError
from dppo.run import respawn, setup, solvers
from dppo.run.cases import agree_on_cases
from dppo.run.env_groups import end_broken_groups, make_groups, start_of
from dppo.run.folders import given_to_envs, leave_no_trace
from dppo.run.following import Following
from dppo.run.init_from import init_from
from dppo.run.leave import make_watchdog, wait_for_others
from dppo.run.loop import (
    LEAVE_AFTER_RANK_ZERO_S,
    LEAVE_ALONE_S,
    LEAVE_TOGETHER_S,
    SAID,
    train_on,
)
from dppo.run.members import Member, first_members
from dppo.run.preflight import Plan
from dppo.run.rank import Group, Rank, begin_services
from dppo.run.recorders import Chosen, check_recorders
from dppo.run.solvers import Simulators
from dppo.rundir.summary import EXIT_CODES, FINISHED, Summary
from dppo.seams import Recorder
from dppo.settings.flags import in_python, parse
from dppo.training.build import CLOSE_S, LAST_S, Parts

T = TypeVar("T")


def main(argv: Sequence[str] | None = None, started: float | None = None, simulators: Simulators | None = None) -> int:
    """Runs the command. Returns the exit code, the same on every rank.

    Args:
      started: time.monotonic() at the process's start; None: now.
      simulators: the other programs of this job; None: there is none.
    """
    if mpi.is_spawned():
        joined = respawn.join(MPI.COMM_WORLD, MPI.COMM_SELF)
        if isinstance(joined, Rank):
            return EXIT_CODES[train_on(joined, is_command=True).exit]
        return EXIT_CODES[Following(*joined, MPI.COMM_WORLD).to_the_end(is_command=True).exit]
    try:
        check_launcher(MPI.COMM_WORLD.size)
    except ValueError as error:
        return _wrong_use_by_all(str(error))
    simulators = simulators or Simulators(MPI.COMM_WORLD, MPI.COMM_WORLD)
    parsed, comm = _from_a_start(simulators.own, lambda comm: _parse(argv, comm))
    if isinstance(parsed, int):
        simulators.let_go()
        return parsed
    config, notes = parsed
    try:
        notes = [*notes, *simulators.meet(comm, MPI.COMM_SELF, config)]
        summary = train(config, comm, started=started, notes=notes, is_command=True)
    except UsageError as error:
        if comm.rank == 0:
            _wrong_use(str(error))
        return EXIT_USAGE
    finally:
        simulators.let_go()
    return EXIT_CODES[summary.exit]


def _parse(argv: Sequence[str] | None, comm: MPI.Comm) -> tuple[Config, list[str]] | int:
    """Collective over `comm`. Returns settings and notes, or an exit code if there is nothing to do."""
    parsed: tuple[Config, list[str]] | int | None = None
    if comm.rank == 0:
        try:
            parsed = parse(sys.argv[1:] if argv is None else argv)
        except (UsageError, OSError) as error:
            parsed = _wrong_use(str(error))
        except HelpShown:
            parsed = EXIT_FINISHED
    return from_rank_zero(comm, parsed)


def _from_a_start(comm: MPI.Comm, begin: Callable[[MPI.Comm], T]) -> tuple[T, MPI.Comm]:
    """Collective over `comm`. Returns what `begin` returns, and the communicator of the ranks that are left. If a rank
    dies meanwhile, the others begin again, because nothing is on disk yet.
    """
    while True:
        try:
            with deaths_noticed():
                begun = begin(comm)
                ulfm.wait_for_all(comm, lambda: None)  # no rank leaves a stage that another one begins again
                return begun, comm
        except RankFailure:
            comm, _ = ulfm.regroup(comm, (), lambda comm: None, lambda: None)
            if comm.rank == 0:
                say(f"a rank has died at start-up; {comm.size} begin again")


def _wrong_use(message: str) -> int:
    say(message)
    return EXIT_USAGE


def _wrong_use_by_all(message: str) -> int:
    """Prints the message on the first of the processes, which cannot talk with each other. Returns the exit code after
    a wait: srun ends the other processes once one has left, and takes their codes, so all leave late, with this code.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if is_first():
        _wrong_use(message)
    time.sleep(LEAVE_ALONE_S)
    return EXIT_USAGE


def train(
    config: Config,
    comm: MPI.Comm | None = None,
    *,
    started: float | None = None,
    notes: Sequence[str] = (),
    recorders: Sequence[Recorder] = (),
    quiet: bool = False,
    is_command: bool = False,
) -> Summary:
    """Trains as `config` says, on all ranks of `comm`; every rank of `comm` must call this. Returns the summary, on
    every rank that is left.

    Args:
      config: need not be resolved. With `resume`, all settings are those of the run in `run_dir`, except the settings
        given here that differ from the default and that a resume may change.
      comm: COMM_WORLD if None; a process without mpirun is a world of one.
      notes: lines to show before the run.
      recorders: those of rank 0 hear of the run; those of another rank if it becomes the server.
      quiet: rank 0 prints nothing but warnings.
      is_command: the process ends after the training, so signals stay caught.

    Raises:
      UsageError: (a ValueError) on every rank: impossible settings, a missing environment, or a run directory that
        holds a run.
    """
    started = started or time.monotonic()
    start_mpi()
    world = MPI.COMM_WORLD if comm is None else comm
    # messages of one run never meet those of the next
    own, _ = _from_a_start(world, lambda comm: comm.Dup())
    launched = MPI.COMM_WORLD if is_command else world
    try:
        prepared, own = _from_a_start(
            own, lambda comm: _prepare(config, comm, launched, notes, recorders, quiet=quiet, is_complete=is_command)
        )
    except UsageError as error:
        own.Free()
        if is_command:
            raise
        raise _in_python(error, world.rank) from None
    if isinstance(prepared, Summary):
        own.Free()
        return prepared
    if isinstance(prepared, Following):
        if on_one_node():
            ports.keep_to_this_node(os.getpid())
        return prepared.to_the_end(is_command=is_command)
    plan, parts, training, members, console, watchdog, chosen = prepared
    if on_one_node() and not plan.config.respawn:
        ports.keep_to_this_node(os.getpid())  # only replacements of dead ranks would join by MPI's TCP
    services = begin_services(plan, console, watchdog, started, recorders=chosen, quiet=quiet)
    me = Rank(plan, services, parts, Group(training, tuple(members)))
    try:
        summary = train_on(me, is_command=is_command)
        if parts.given.group is not None and not survives_deaths():
            own.Free()
        return summary
    except UsageError:
        with contextlib.suppress(MPI.Exception):
            me.group.comm.Barrier()  # by now no rank's watchdog has a file there
        leave_no_trace(plan, parts.given)
        if not survives_deaths():
            me.group.comm.Free()
        raise


class Prepared(NamedTuple):
    """What a rank that trains has prepared."""

    plan: Plan
    parts: Parts
    comm: MPI.Comm
    """Of the ranks that train."""
    members: list[Member]
    console: Console
    watchdog: Watchdog
    recorders: Chosen


def _prepare(
    config: Config,
    comm: MPI.Comm,
    launched: MPI.Comm,
    notes: Sequence[str],
    recorders: Sequence[Recorder],
    *,
    quiet: bool,
    is_complete: bool,
) -> Prepared | Following | Summary:
    """Collective over `comm`. Prepares everything before training; writes nothing. Returns a summary if there is
    nothing to do.
    """
    end_broken_groups(config.own_env_ranks, comm, launched)
    console = Console(config.log.interval_s, enabled=comm.rank == 0 and not quiet)
    plan = setup.plan(config, comm, console, is_complete=is_complete)
    if isinstance(plan, Summary):
        return plan
    world, (comm, env_group, placement) = comm, make_groups(plan.config, comm)
    if env_group is not None and not env_group.is_head:
        return Following(plan, env_group, world).through_the_start()
    notes = [*notes, *placement]
    with start_of(env_group), contextlib.ExitStack() as unless_it_trains:
        watchdog = make_watchdog(plan, comm, world.rank)
        unless_it_trains.callback(watchdog.stop)
        chosen = check_recorders(comm, plan.config.log, recorders)
        given = given_to_envs(plan, MPI.COMM_SELF, env_group)
        unless_it_trains.callback(leave_no_trace, plan, given)
        parts = setup.build(plan.config, comm, watchdog.heartbeat, given, plan.run_dir)
        unless_it_trains.callback(parts.close)
        notes = [*notes, *agree_on_cases(plan.config, comm, parts)]
        setup.check_saved(plan, parts, comm)
        if (line := init_from(plan, parts.state, comm)) is not None:
            notes = [*notes, line]
        members = first_members(comm, world.rank)
        setup.introduce(plan, parts, comm, console, notes, startup.prepare())
        if not plan.config.dry_run:
            unless_it_trains.pop_all()
            if env_group is not None:
                env_group.dismiss(None)
            return Prepared(plan, parts, comm, members, console, watchdog, chosen)
        console.line(f"  {setup.try_environments(parts, comm)}")
        if is_complete:
            guard.announce(EXIT_FINISHED)  # whatever the environments do while they are closed
    console.line("dry run: everything is in order; nothing was trained, nothing was written")
    summary = Summary(exit=FINISHED, world_size=comm.size, env=plan.config.env, run_dir=str(plan.run_dir))
    if env_group is not None:
        env_group.dismiss(summary)
    return summary


def _in_python(error: UsageError, rank: int) -> UsageError:
    """Returns the error in the words of a caller of `train`, on every rank. If nobody catches it, rank 0 alone shows
    it.
    """
    said = UsageError(in_python(str(error)))
    show = sys.excepthook

    def leave_it_to_rank_zero(kind: Any, value: Any, trace: Any) -> None:
        if value is said:
            time.sleep(LEAVE_AFTER_RANK_ZERO_S)  # the first rank that leaves with a code has the others killed
        else:
            show(kind, value, trace)

    if rank != 0:
        sys.excepthook = leave_it_to_rank_zero
    return said


# -- the end --------------------


def all_programs() -> Simulators:
    """Collective over all ranks of all programs. Finds dppo's ranks and those of simulators, for a command that is no
    run.
    """
    start_mpi()
    return _simulators()


def own_comm() -> MPI.Intracomm:
    """Returns the communicator of this process alone, for environments outside of a run."""
    start_mpi()
    return MPI.COMM_SELF


def start_mpi() -> None:
    """Starts MPI, before the program asks for a communicator; does nothing if MPI has started."""
    if MPI.Is_initialized():
        return
    mpi.start()
    if is_first() and on_one_node() and (launcher := processes.launcher()) is not None:
        ports.keep_to_this_node(launcher)


def run(started: float) -> None:
    """Runs the whole program, and leaves with the same exit code on all ranks."""
    rank_name()
    start_mpi()
    guard.started()
    startup.keep_children_out()
    leaving.keep_running()
    simulators = _simulators()
    try:
        code = main(started=started, simulators=simulators)
    except BaseException as error:
        if not getattr(error, SAID, False):
            say(f"rank {MPI.COMM_WORLD.rank} failed:\n{traceback.format_exc()}")
            if MPI.COMM_WORLD.size > 1:
                leaving.end_job(MPI.COMM_WORLD, EXIT_FAILED)
        code = EXIT_FAILED
    end_output()
    if survives_deaths():
        time.sleep(LEAVE_TOGETHER_S)  # a rank that exits with a code while others still talk would have them killed
        simulators.end_those_left()
    else:
        wait_for_others(simulators.own, CLOSE_S + LAST_S)
    leaving.leave(code)


def _simulators() -> Simulators:
    """Collective over all ranks of all programs. Finds those that are not dppo's. If a program does not answer, the job
    ends.
    """
    world = MPI.COMM_WORLD
    if world.size == 1 or mpi.is_spawned() or num_programs() == 1:
        return Simulators(world, world)
    try:
        return solvers.part(world)
    except (TimeoutError, UsageError) as error:
        if is_first():
            _wrong_use(str(error))
        time.sleep(LEAVE_AFTER_RANK_ZERO_S)
        leaving.end_job(world, EXIT_USAGE)
