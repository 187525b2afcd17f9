"""python -m dppo.run: flags, COMM_WORLD, recovery loop, exit code.

The top of the house: it puts the other modules together and is the only one that says COMM_WORLD. Ranks decide
together: what can go wrong before training is gathered and shown once, by rank 0, and all leave with the same code.
When a rank dies while training, `_train` goes through its recovery loop, the only place that knows of it.
"""

from __future__ import annotations

import signal
import time

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until it can be noted: no traceback from amid an import

from dppo import guard, processes, startup

STARTED = time.monotonic()
if startup.is_imported_by_child():
    startup.leave_job()
THREADS = startup.limit_threads()
startup.set_mpi_parameters()
if __name__ == "__main__":
    import sys

    if not {"-h", "--help", "--version"}.isdisjoint(sys.argv):
        from dppo.commandline import answer

        raise SystemExit(answer(sys.argv[1:], is_first=startup.is_first()))
    startup.note_early_signals(guard.leave_at_once)
    guard.stand()
    startup.rank_name()
    startup.let_children_start_afresh()

import contextlib  # noqa: E402
import os  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402
import traceback  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from dataclasses import replace  # noqa: E402
from typing import Any, TypeVar  # noqa: E402

try:
    import mpi4py

    if startup.survives_deaths():
        mpi4py.rc.finalize = False  # MPI_Finalize may hang once a rank has died
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is there, and no MPI
    startup.without_mpi(error, is_command=__name__ == "__main__")

if __name__ == "__main__":
    guard.started()
    startup.keep_children_out()

from dppo import crew, opening, survival  # noqa: E402
from dppo.commandline import HelpShown, UsageError, in_python, parse  # noqa: E402
from dppo.config import Config  # noqa: E402
from dppo.console import Console, end_output, say  # noqa: E402
from dppo.crew import Rank  # noqa: E402
from dppo.ending import WorkerError  # noqa: E402
from dppo.exchange import ports, recovery  # noqa: E402
from dppo.exchange.collectives import from_rank_zero  # noqa: E402
from dppo.exchange.link import MPILink  # noqa: E402
from dppo.exchange.memory import Memory  # noqa: E402
from dppo.exchange.recovery import RankFailure, deaths_noticed, survives_deaths  # noqa: E402
from dppo.exchange.server import Tag  # noqa: E402
from dppo.journal import Failure, Summary  # noqa: E402
from dppo.planning import Plan, check_launcher  # noqa: E402
from dppo.preemption import Preemption  # noqa: E402
from dppo.roles import work_together  # noqa: E402
from dppo.storage.runfiles import SavingError  # noqa: E402
from dppo.storage.trajectory import DumpError  # noqa: E402
from dppo.watchdog import Watchdog  # noqa: E402
from dppo.workplace import (  # noqa: E402
    CLOSE_AFTER_FAILURE_S,
    CLOSE_S,
    LAST_S,
    Workplace,
    build_workplace,
    make_collector,
)

if startup.is_first() and startup.on_one_node() and (_launcher := processes.launcher()) is not None:
    ports.keep_to_this_node(_launcher)

EXIT_FINISHED, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
T = TypeVar("T")
_SAID = "said_by_dppo"  # marks an exception that was shown already
LEAVE_TOGETHER_S, LEAVE_AFTER_RANK_ZERO_S, LEAVE_ALONE_S = 0.05, 0.5, 5.0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code, the same on every rank."""
    if recovery.is_spawned():
        return opening.EXIT_CODES[_take_a_dead_ones_place().exit]
    try:
        check_launcher(MPI.COMM_WORLD.size)
    except ValueError as error:
        return _wrong_use_by_all(str(error))
    parsed, comm = _from_a_start(MPI.COMM_WORLD, lambda comm: _parse(argv, comm))
    if isinstance(parsed, int):
        return parsed
    config, notes = parsed
    try:
        summary = train(config, comm, started=STARTED, notes=notes, is_command=True)
    except UsageError as error:
        if comm.rank == 0:
            _wrong_use(str(error))
        return EXIT_USAGE
    return opening.EXIT_CODES[summary.exit]


def _parse(argv: Sequence[str] | None, comm: MPI.Comm) -> tuple[Config, list[str]] | int:
    """Collective over `comm`. Settings and notes; an exit code where there is nothing to do."""
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
    """Collective over `comm`. What `begin` gives while nothing is on disk yet: if a rank dies meanwhile, those that are
    left begin again; with their communicator.
    """
    while True:
        try:
            with deaths_noticed():
                begun = begin(comm)
                recovery.wait_for_all(comm, lambda: None)  # nobody leaves a stage that somebody else begins again
                return begun, comm
        except RankFailure:
            comm, _ = recovery.regroup(comm, (), lambda comm: None, lambda: None)
            if comm.rank == 0:
                say(f"a rank has died at start-up; {comm.size} begin again")


def _wrong_use(message: str) -> int:
    say(message)
    return EXIT_USAGE


def _wrong_use_by_all(message: str) -> int:
    """Of processes that cannot talk with each other, the first says it. srun ends the others once one has left, and
    takes their codes: they all leave a little later, and with this one.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if startup.is_first():
        _wrong_use(message)
    time.sleep(LEAVE_ALONE_S)
    return EXIT_USAGE


def train(
    config: Config,
    comm: MPI.Comm | None = None,
    *,
    started: float | None = None,
    notes: Sequence[str] = (),
    quiet: bool = False,
    is_command: bool = False,
) -> Summary:
    """Trains as `config` says, on all ranks of `comm`; every rank of it must call this. Returns the summary, on every
    rank that is left.

    Args:
      config: need not be resolved. With `resume` everything is as the run in `run_dir` has it; what differs from the
        default is given anew, where it may be.
      comm: COMM_WORLD if None; a process without mpirun is a world of one.
      notes: shown before the run.
      quiet: rank 0 prints nothing but warnings.
      is_command: the process ends after it, so signals stay caught.

    Raises:
      UsageError: (a ValueError) for impossible settings, a missing environment, a run directory that holds a run; on
        every rank.
    """
    started = started or time.monotonic()
    world = MPI.COMM_WORLD if comm is None else comm
    # messages of one run never meet those of the next
    own, _ = _from_a_start(world, lambda comm: comm.Dup())
    try:
        prepared, own = _from_a_start(
            own, lambda comm: _prepare(config, comm, notes, quiet=quiet, is_complete=is_command)
        )
    except UsageError as error:
        own.Free()
        if is_command:
            raise
        raise _in_python(error, world.rank) from None
    if isinstance(prepared, Summary):
        own.Free()
        return prepared
    plan, place, seats, console, watchdog = prepared
    if startup.on_one_node() and not plan.config.respawn:
        ports.keep_to_this_node(os.getpid())  # of MPI's TCP, by which only replacements of dead ranks would join
    me = _rank(plan, own, seats, place, console, watchdog, started, own.size, own.rank)
    me.quiet = quiet
    try:
        return _train(me, is_command=is_command)
    except UsageError:
        with contextlib.suppress(MPI.Exception):
            me.comm.Barrier()  # by now no rank's watchdog has a file there
        if me.comm.rank == 0:
            opening.leave_no_trace(plan)
        if not survives_deaths():
            me.comm.Free()
        raise


def _prepare(
    config: Config, comm: MPI.Comm, notes: Sequence[str], *, quiet: bool, is_complete: bool
) -> tuple[Plan, Workplace, list[crew.Seat], Console, Watchdog] | Summary:
    """Collective over `comm`. Everything before training; writes nothing. A summary where there is nothing to do."""
    console = Console(config.log.interval_s, enabled=comm.rank == 0 and not quiet)
    plan = opening.plan(config, comm, console, is_complete=is_complete)
    if isinstance(plan, Summary):
        return plan
    with contextlib.ExitStack() as unless_it_trains:
        watchdog = crew.make_watchdog(plan, comm, comm.rank)
        unless_it_trains.callback(watchdog.stop)
        place = opening.build(plan.config, comm, watchdog.progress)
        unless_it_trains.callback(place.close)
        opening.check_saved(plan, place, comm)
        seats = crew.first_crew(comm)
        opening.introduce(plan, place, comm, console, notes, THREADS)
        if not plan.config.dry_run:
            unless_it_trains.pop_all()
            return plan, place, seats, console, watchdog
        console.line(f"  {opening.try_environments(place, comm)}")
        if is_complete:
            guard.announce(EXIT_FINISHED)  # whatever they do while they are closed
    console.line("dry run: everything is in order; nothing was trained, nothing was written")
    return Summary(exit="finished", world_size=comm.size, env=plan.config.env, run_dir=str(plan.run_dir))


def _in_python(error: UsageError, rank: int) -> UsageError:
    """The same in the words of who called `train`, on every rank. Where nobody catches it, rank 0 alone shows it."""
    said = UsageError(in_python(str(error)))
    show = sys.excepthook

    def leave_it_to_rank_zero(kind: Any, value: Any, trace: Any) -> None:
        if value is said:
            time.sleep(LEAVE_AFTER_RANK_ZERO_S)  # who leaves first with a code has the others killed
        else:
            show(kind, value, trace)

    if rank != 0:
        sys.excepthook = leave_it_to_rank_zero
    return said


def _rank(
    plan: Plan,
    comm: MPI.Comm,
    seats: list[crew.Seat],
    place: Workplace,
    console: Console,
    watchdog: Watchdog,
    started: float,
    num_ranks: int,
    number: int,
) -> Rank:
    config = plan.config
    preemption = Preemption(config.checkpoint.grace_s, config.time_limit_s, started, plan.ends_at, guard.leave_at_once)
    startup.let_children_start_afresh()
    preemption.install()
    if startup.early_signals:
        preemption.request("a signal at start-up")
    watchdog.write_to(plan.run_dir / "stalls")
    memory = Memory() if survives_deaths() and num_ranks > 1 else None
    return Rank(plan, comm, seats, place, console, preemption, watchdog, started, THREADS, num_ranks, memory=memory)


def _take_a_dead_ones_place() -> Summary:
    """A process that `spawn` has started: its life as a worker. Whatever goes wrong before is its death."""
    try:
        grown = recovery.joined(MPI.COMM_WORLD)
        start: crew.Start = grown.recv(source=0)
        mine = replace(start.seat, host=socket.gethostname(), pid=os.getpid())
        watchdog = crew.make_watchdog(start.plan, grown, mine.rank)
        watchdog.write_to(start.plan.run_dir / "stalls")
        place = build_workplace(start.plan.config, mine.worker)
        comm, seats = crew.take_seats(grown, mine)
        started = time.monotonic() - start.started_s
        console = Console(start.plan.config.log.interval_s, enabled=False)
        me = _rank(start.plan, comm, seats, place, console, watchdog, started, start.num_ranks, mine.rank)
        me.replaced, me.respawns = start.replaced, start.respawns
        me.collector = make_collector(start.plan.config, place, *start.states)
        if me.memory is not None:
            envs, row, _ = start.states
            me.memory.history.start_from(row, [envs[number] for number in sorted(envs)])
    except BaseException:
        traceback.print_exc()
        recovery.die()
    return _train(me, is_command=True)


# -- training --------------------


def _train(me: Rank, *, is_command: bool) -> Summary:
    """Trains, with whoever is left, until the run has ended. The recovery loop."""
    failure: RankFailure | None = None
    summary: Summary | None = None
    try:
        while summary is None:
            try:
                with deaths_noticed():
                    if failure is not None:
                        cause, failure = failure, None
                        survival.survive(me, cause)
                    elif me.place.envs is not None and me.collector is None:
                        crew.begin_collecting(me)
                    summary = work_together(me)
            except RankFailure as noticed:
                failure = noticed
            except UsageError:  # of all ranks alike
                raise
            except BaseException as error:  # also an environment that calls sys.exit
                failure = _own_failure(error, me)
    finally:
        me.watchdog.stop()
        if is_command:  # all is settled: an environment that does not close keeps nobody
            guard.announce(EXIT_FAILED if summary is None else opening.EXIT_CODES[summary.exit])
        me.place.close(CLOSE_AFTER_FAILURE_S if summary is None else CLOSE_S)
        if not is_command:  # the command's own last steps stay protected from a late signal
            me.preemption.uninstall()
    if me.comm.rank == 0:
        opening.conclude(summary, me.console)
    if not survives_deaths():
        for comm in (*me.others, me.comm):
            comm.Free()
    elif is_command:
        with contextlib.suppress(MPI.Exception):  # all leave at once, with the same code
            me.comm.Barrier()
    return summary


# -- the end --------------------


def _own_failure(error: BaseException, me: Rank) -> RankFailure:
    """This rank cannot go on. By default nobody can: the failing rank, its host and its traceback are named once, by
    rank 0, and the summary says failed. With --on-worker-error continue it dies, and the others go on.
    """
    state = me.place.state
    where = f"in iteration {state.iteration + 1}, after {state.env_steps:,} steps and {state.updates:,} updates"
    failure = Failure(f"{me.seat} failed {where}:\n{traceback.format_exc()}")
    if isinstance(error, WorkerError | crew.JobFailure):
        failure = error.failure
    if isinstance(error, DumpError):
        failure = Failure(f"{me.seat}: {error} (--trajectories.required)")
    if isinstance(error, SavingError):
        failure = Failure(f"{me.seat}: {error}")
    text = failure.text
    if me.memory is not None and me.comm.size > 1 and not isinstance(error, crew.JobFailure):
        # where rank 0 fails the next server would fail like it, and a dump that is required ends the run
        spares_others = me.comm.rank != 0 and not isinstance(error, DumpError)
        if me.plan.config.on_worker_error == "continue" and spares_others:
            say(text)
            recovery.die()
        me.failure = failure
        return RankFailure(text)  # the others hear of it as they would hear of a death
    try:
        if me.comm.rank == 0:
            say(text)
            if me.journal is not None:
                me.journal.fail(failure)
            else:
                opening.say_failed(me.plan, failure)
        elif not survives_deaths():
            guard.announce(EXIT_FAILED)  # whatever its environments do while they are closed
            # rank 0 says it, waits until they are closed, and ends the job; if it cannot, this rank does
            link = MPILink(me.comm, lambda: False)
            link.failure(text)
            _let_mpi_send(link, LEAVE_TOGETHER_S)
            me.place.close(CLOSE_AFTER_FAILURE_S)
            link.closed()
            _let_mpi_send(link, survival.FAILURE_NOTICE_S)
            say(text)
            opening.say_failed(me.plan, failure)
    except Exception:  # the first error has been said; whatever follows must not keep the job alive
        say(f"the summary could not be written:\n{traceback.format_exc()}")
    setattr(error, _SAID, True)
    if me.comm.size > 1 and not survives_deaths():
        guard.announce(EXIT_FAILED)
        me.place.close(CLOSE_AFTER_FAILURE_S)
        if isinstance(error, WorkerError) and error.worker is not None:
            _let_it_close(me.comm, rank=1 + error.worker)
        time.sleep(LEAVE_TOGETHER_S)  # the launcher passes on what was said before it adds its own
        me.comm.Abort(EXIT_FAILED)
    if me.comm.size > 1:
        _wait_for_the_last_word(me)
    raise error


def _let_mpi_send(link: MPILink, for_s: float) -> None:
    deadline = time.monotonic() + for_s
    while time.monotonic() < deadline:
        link.keep_moving()
        time.sleep(0.01)


def _let_it_close(comm: MPI.Comm, rank: int) -> None:
    """Rank 0: MPI_Abort would end the rank that has failed before its environments are closed."""
    deadline = time.monotonic() + CLOSE_AFTER_FAILURE_S + LAST_S
    while time.monotonic() < deadline and not comm.Iprobe(rank, Tag.BYE):
        time.sleep(0.01)


def _wait_for_the_last_word(me: Rank) -> None:
    """Collective over `me.comm`. Until the summary is written: whoever left earlier would have mpirun kill rank 0."""
    deadline = time.monotonic() + survival.FAILURE_NOTICE_S

    def meanwhile() -> None:
        if time.monotonic() > deadline:
            raise TimeoutError

    with contextlib.suppress(MPI.Exception, TimeoutError):
        recovery.wait_for_all(me.comm, meanwhile)


def _command() -> None:
    """The whole program, with the exit code made the same on all ranks."""
    try:
        code = main()
    except BaseException as error:
        if not getattr(error, _SAID, False):
            say(f"rank {MPI.COMM_WORLD.rank} failed:\n{traceback.format_exc()}")
            if MPI.COMM_WORLD.size > 1:
                recovery.end_job(MPI.COMM_WORLD, EXIT_FAILED)
        code = EXIT_FAILED
    end_output()
    if survives_deaths():
        time.sleep(LEAVE_TOGETHER_S)  # who exits with a code while others still talk would have them killed
    else:
        _wait_for_others(CLOSE_S + LAST_S)
    recovery.leave(code)


def _wait_for_others(limit_s: float) -> None:
    """Collective over all ranks, but for one whose environment has ended MPI, or never closes: all leave together."""
    deadline = time.monotonic() + limit_s

    def meanwhile() -> None:
        if time.monotonic() > deadline:
            raise TimeoutError

    with contextlib.suppress(TimeoutError):
        recovery.wait_asleep(MPI.COMM_WORLD, meanwhile)


if __name__ == "__main__":
    recovery.keep_running()
    _command()
