"""python -m dppo.run: flags, COMM_WORLD, roles, exit code.

The top of the house: it puts the other modules together and is the only one that says COMM_WORLD. Ranks decide
together: what can go wrong before training is gathered and shown once, by rank 0, and all leave with the same code.
"""

from __future__ import annotations

import time

from dppo import startup

STARTED = time.monotonic()
THREADS = startup.limit_threads()
startup.set_mpi_parameters()
if __name__ == "__main__":
    startup.note_early_signals()

import contextlib  # noqa: E402
import shlex  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402
import traceback  # noqa: E402
from collections.abc import Sequence  # noqa: E402

from mpi4py import MPI  # noqa: E402

from dppo import asynchronous, sync_exchange, synchronous  # noqa: E402
from dppo.commandline import HelpShown, UsageError, parse, to_toml  # noqa: E402
from dppo.config import Config  # noqa: E402
from dppo.console import Console  # noqa: E402
from dppo.ending import WorkerError  # noqa: E402
from dppo.exchange.allreduce import Allreduce  # noqa: E402
from dppo.exchange.collectives import assert_in_sync, first_error, from_rank_zero  # noqa: E402
from dppo.exchange.doorbell import Doorbell, Neighbours  # noqa: E402
from dppo.exchange.link import Link, LocalLink, MPILink  # noqa: E402
from dppo.exchange.pooling import Pool, make_pool  # noqa: E402
from dppo.exchange.server import serve  # noqa: E402
from dppo.exchange.waiting import ask_for_longer_turns  # noqa: E402
from dppo.journal import WINDOW, Journal, Summary  # noqa: E402
from dppo.planning import Plan, plan_run, version, versions  # noqa: E402
from dppo.preemption import Preemption  # noqa: E402
from dppo.rollout import Collector  # noqa: E402
from dppo.storage.checkpoint import remove_leftovers  # noqa: E402
from dppo.storage.files import replace_atomically  # noqa: E402
from dppo.storage.metrics import read_json, write_json  # noqa: E402
from dppo.watchdog import Watchdog  # noqa: E402
from dppo.workplace import Workplace, build_workplace, make_collector  # noqa: E402

EXIT_FINISHED, EXIT_FAILED, EXIT_USAGE, EXIT_PREEMPTED = 0, 1, 2, 75
EXIT_CODES = {"finished": EXIT_FINISHED, "target": EXIT_FINISHED, "preempted": EXIT_PREEMPTED}
_SAID = "said_by_dppo"  # marks an exception that was shown already
FAILURE_NOTICE_S = 5.0
"""How long a failing worker waits for rank 0 to end the job in good order before it ends the job itself."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code, the same on every rank."""
    comm = MPI.COMM_WORLD
    parsed: tuple[Config, list[str]] | int | None = None
    if comm.rank == 0:
        try:
            parsed = parse(sys.argv[1:] if argv is None else argv)
        except (UsageError, OSError) as error:
            parsed = _wrong_use(str(error))
        except HelpShown:
            parsed = EXIT_FINISHED
    parsed = from_rank_zero(comm, parsed)
    if isinstance(parsed, int):
        return parsed
    assert parsed is not None
    config, notes = parsed
    try:
        summary = train(config, comm, started=STARTED, notes=notes, is_command=True)
    except UsageError as error:
        if comm.rank == 0:
            _wrong_use(str(error))
        return EXIT_USAGE
    return EXIT_CODES[summary.exit]


def _wrong_use(message: str) -> int:
    print(f"dppo: {message}", file=sys.stderr, flush=True)
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
    rank.

    Args:
      config: need not be resolved.
      comm: COMM_WORLD if None; a process without mpirun is a world of one.
      notes: shown before the run.
      quiet: rank 0 prints nothing but warnings.
      is_command: the process ends after it, so signals stay caught.

    Raises:
      UsageError: for impossible settings, a missing environment, a run directory that holds a run; on every rank.
    """
    # messages of one run never meet those of the next
    own = (MPI.COMM_WORLD if comm is None else comm).Dup()
    try:
        summary = _train(config, own, started or time.monotonic(), notes, quiet=quiet, is_command=is_command)
    except UsageError:
        own.Free()
        raise
    own.Free()
    return summary


def _train(
    config: Config, comm: MPI.Comm, started: float, notes: Sequence[str], *, quiet: bool, is_command: bool
) -> Summary:
    """Collective over `comm`."""
    console = Console(config.log.interval_s, enabled=comm.rank == 0 and not quiet)
    plan = _plan(config, comm, console)
    if isinstance(plan, Summary):
        return plan
    place = _build(plan, comm)
    hosts = _introduce(plan, place, comm, console, notes)
    if plan.config.dry_run:
        console.line("dry run: everything is in order; nothing was trained, nothing was written")
        return Summary(exit="finished", world_size=comm.size, env=config.env, run_dir=str(plan.run_dir))
    limit_s = plan.config.time_limit_s if comm.rank == 0 else None
    preemption = Preemption(plan.config.checkpoint.grace_s, limit_s, started)
    preemption.install()
    if startup.early_signals:
        preemption.request("a signal at start-up")
    journal: Journal | None = None
    try:
        if comm.rank == 0:
            journal = _open_journal(plan, place, hosts, preemption, console, started)
        _synchronise(place, plan, comm)
        _run(plan, place, comm, journal, preemption)
    except BaseException as error:  # also an environment that calls sys.exit
        _fail(error, comm, place, journal)
        raise
    finally:
        if not is_command:  # the command's own last steps stay protected from a late signal
            preemption.uninstall()
    summary = from_rank_zero(comm, journal.summary if journal is not None else None)
    _conclude(summary, console, comm.size)
    return summary


# -- before training --------------------


def _plan(config: Config, comm: MPI.Comm, console: Console) -> Plan | Summary:
    """Collective over `comm`. Checks settings and run directory on rank 0; touches nothing on disk."""
    plan: Plan | Summary | None = None
    error: str | None = None
    if comm.rank == 0:
        try:
            plan = plan_run(config, comm.size, console)
        except (ValueError, OSError) as problem:
            error = str(problem)
    error = from_rank_zero(comm, error)
    if error is not None:
        raise UsageError(error)
    return from_rank_zero(comm, plan)


def _build(plan: Plan, comm: MPI.Comm) -> Workplace:
    """Collective over `comm`. Makes environments and networks; what fails on any rank is said once and ends all."""
    config = plan.config
    place, error = None, None
    try:
        place = build_workplace(config, comm.rank, comm.size)
    except ValueError as problem:
        error = str(problem)
    except (Exception, SystemExit) as problem:  # whatever the user's environment raises while it is made
        error = f"{config.env} could not be made: {type(problem).__name__}: {problem}"
    error = first_error(comm, error)
    if error is not None:
        raise UsageError(error)
    assert place is not None
    return place


def _introduce(plan: Plan, place: Workplace, comm: MPI.Comm, console: Console, notes: Sequence[str]) -> list[str]:
    """Collective over `comm`. The first lines of output; returns every rank's host, on rank 0."""
    hosts = comm.gather(socket.gethostname(), root=0)
    description = comm.gather(None if place.envs is None else place.envs.description, root=0)
    if comm.rank != 0:
        return []
    config, workers = plan.config, max(1, comm.size - 1)
    described = next(d for d in description or [] if d is not None)
    role = "1 rank, server and worker at once" if comm.size == 1 else f"1 server, {workers} workers"
    cell = f"{config.mode}/{config.exchange}, loss {config.loss}, seed {config.seed}"
    console.line(f"dppo {version()}: {config.env}, {cell}; {role}")
    for note in notes:
        console.line(f"  {note}")
    console.line(f"  {described} per worker; {place.policy.description}; {THREADS} thread(s) per rank")
    if config.time_limit_s is not None and config.time_limit_s <= config.checkpoint.grace_s:
        console.warn(
            f"--time-limit-s {config.time_limit_s:g} leaves nothing before --checkpoint.grace-s"
            f" {config.checkpoint.grace_s:g}: the run will save and leave after its first iteration"
        )
    until = f"{config.total_steps:,} steps"
    if config.target_return is not None:
        until = f"a mean return of {config.target_return:g} over 100 episodes, at most {until}"
    console.line(f"  until {until}; files in {plan.run_dir}")
    if config.mode == "async" and comm.size <= 2:
        console.line(
            "  async with one worker: no gradient is ever older than its own successor; sync does the same with less"
        )
    return hosts or []


def _open_journal(
    plan: Plan, place: Workplace, hosts: list[str], preemption: Preemption, console: Console, started: float
) -> Journal:
    """Rank 0: makes the run directory, or goes on in it, and saves step 0."""
    plan.run_dir.mkdir(parents=True, exist_ok=True)
    remove_leftovers(plan.run_dir)
    if plan.saved is not None:
        place.state.load(plan.saved.state)
        console.line(
            f"  resumed at {plan.saved.env_steps:,} steps, iteration {plan.saved.iteration}, attempt {plan.attempt}"
        )
        ranks = len(plan.saved.ranks)
        if ranks != max(1, len(hosts) - 1):
            console.warn(
                f"the checkpoint is of {ranks} worker(s), this run has {max(1, len(hosts) - 1)}: environments are"
                " dealt out by their global numbers, surplus ones are dropped, missing ones start new; the numbers"
                " will differ"
            )
    replace_atomically(plan.run_dir / "config.toml", to_toml(plan.config).encode())
    before = read_json(plan.run_dir / "versions.json").get("attempts", [])
    write_json(plan.run_dir / "versions.json", {"attempts": [*before, versions(hosts, THREADS, _mpi_version())]})
    journal = Journal(
        plan.run_dir, plan.config, place.state, preemption, console,
        num_workers=max(1, len(hosts) - 1), world_size=len(hosts), attempt=plan.attempt, started=started,
        wall_s=float(read_json(plan.run_dir / "summary.json").get("wall_s", 0.0)) if plan.saved else 0.0,
        saved=plan.saved,
    )  # fmt: skip
    if plan.saved is None:
        journal.save_start()
    return journal


def _mpi_version() -> str:
    return MPI.Get_library_version().split(",")[0].strip("\x00 \n")


# -- training --------------------


def _synchronise(place: Workplace, plan: Plan, comm: MPI.Comm) -> None:
    """Collective over `comm`. Every rank takes over rank 0's state, fresh or from the checkpoint."""
    state = from_rank_zero(comm, place.state.as_dict() if comm.rank == 0 else None)
    if comm.rank != 0:
        place.state.load(state)
    assert_in_sync(comm, place.policy.flat.fingerprint())


def _run(plan: Plan, place: Workplace, comm: MPI.Comm, journal: Journal | None, preemption: Preemption) -> None:
    """Rank 0 serves, the others work; one rank alone does both, through a link that is a function call."""
    config, num_workers = plan.config, max(1, comm.size - 1)
    alone = comm.size == 1
    collector = make_collector(config, place, plan.saved) if place.envs is not None else None
    workers = comm.Split(color=0 if comm.rank == 0 and not alone else 1, key=comm.rank)
    with contextlib.ExitStack() as at_end:  # what a caller that goes on after an error must not inherit
        pool, computing = None, workers
        if config.mode == "sync" and not config.server.drop:  # whoever is pooled cannot be late by itself
            pool, computing = make_pool(workers, sync_exchange.pool_bytes(place.learner, place.state, config))
        if pool is not None:
            at_end.callback(pool.close)
        num_computing = comm.allreduce(int(collector is not None and (pool is None or pool.computes)))
        doorbell = Doorbell(Neighbours(comm))
        at_end.callback(doorbell.close)
        if doorbell.crowded and collector is not None:
            ask_for_longer_turns()
        comm.Barrier()  # training time starts when every worker can step
        coordinator: synchronous.SyncCoordinator | asynchronous.AsyncCoordinator | None = None
        if journal is not None:
            books = journal, place.state, place.learner, config, num_workers
            coordinator = (
                synchronous.SyncCoordinator(*books, num_computing)
                if config.mode == "sync"
                else asynchronous.AsyncCoordinator(*books)
            )
            journal.start_training()
        if collector is not None:
            watchdog = Watchdog(plan.run_dir / "stalls", comm.rank, config.log.stall_after_s, config.log.stall_abort_s)
            at_end.callback(watchdog.stop)
            asked = lambda: preemption.requested_at is not None  # noqa: E731
            link: Link = (
                MPILink(comm, asked, watchdog.progress, doorbell=doorbell)
                if coordinator is None
                else LocalLink(coordinator, asked, watchdog.progress)
            )
            _work(config, place, collector, Allreduce(computing), pool, link)
            watchdog.stop()
            link.bye()
            collector.envs.close()
        elif coordinator is not None:
            serve(comm, coordinator, first_worker_rank=1, doorbell=doorbell)
            if coordinator.abandoned:
                assert journal is not None
                _leave_alone(journal, comm)
    if computing is not workers:
        computing.Free()
    workers.Free()


def _work(
    config: Config, place: Workplace, collector: Collector, sums: Allreduce, pool: Pool | None, link: Link
) -> None:
    if config.mode == "async":
        asynchronous.train_worker(collector, place.learner, place.state, link, config)
        return
    exchange: sync_exchange.Exchange
    if config.exchange == "allreduce":
        exchange = sync_exchange.AllreduceExchange(sums, place.state, link)
    else:
        exchange = sync_exchange.P2PExchange(place.state, link, place.learner)
    if pool is not None:
        exchange = sync_exchange.PooledExchange(exchange, pool, place.state, link)
    synchronous.train_worker(collector, place.learner, place.state, exchange, link, config)


# -- the end --------------------


def _leave_alone(journal: Journal, comm: MPI.Comm) -> None:
    """Everything is saved, but workers are stuck in an environment: the job ends without them."""
    code = EXIT_CODES[journal.summary.exit]
    _conclude(journal.summary, journal.console, comm.size)
    journal.console.warn(f"some workers did not leave in time: the job ends without them, exit code {code}")
    sys.stdout.flush()
    comm.Abort(code)


def _fail(error: BaseException, comm: MPI.Comm, place: Workplace, journal: Journal | None) -> None:
    """Ends the job: the failing rank, its host and its traceback are named once, by rank 0, and the summary says
    failed.
    """
    where = f"in iteration {place.state.iteration + 1}, after {place.state.env_steps:,} steps"
    text = f"rank {comm.rank} on {socket.gethostname()} failed {where}:\n{traceback.format_exc()}"
    if isinstance(error, WorkerError):
        text = str(error)
    try:
        if comm.rank == 0:
            print(f"dppo: {text}", file=sys.stderr, flush=True)
            if journal is not None:
                journal.fail()
        else:
            # rank 0 says it and ends the job; if it cannot, this rank does
            link = MPILink(comm, lambda: False)
            link.failure(text)
            deadline = time.monotonic() + FAILURE_NOTICE_S
            while time.monotonic() < deadline:
                link.stop_requested()  # lets MPI send
                time.sleep(0.01)
            print(f"dppo: {text}", file=sys.stderr, flush=True)
    except Exception:  # the first error has been said; whatever follows must not keep the job alive
        print(f"dppo: the summary could not be written:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
    setattr(error, _SAID, True)
    if comm.size > 1:
        comm.Abort(EXIT_FAILED)


def _conclude(summary: Summary, console: Console, world_size: int) -> None:
    s = summary
    reached = (
        "no episode has ended"
        if s.return_mean_100 is None
        else f"mean return {s.return_mean_100:.2f} (last {min(s.episodes, WINDOW)} episodes)"
    )
    how = {
        "target": "target reached",
        "finished": "finished",
        "preempted": "preempted, state saved; run again with --resume",
    }
    console.line(
        f"{how[s.exit]}: {reached} after {s.env_steps:,} steps, {s.updates:,} updates, {s.episodes:,} episodes"
    )
    speed = f"{s.steps_per_s:,.0f} steps/s on {max(1, world_size - 1)} worker(s)"
    console.line(f"  {s.train_s:.1f} s of training, {speed}; {s.wall_s:.1f} s in all")
    console.line(f"  files: {s.run_dir}   evaluate: python -m dppo.evaluate {shlex.quote(s.run_dir)}")


def _command() -> None:
    """The whole program, with the exit code made the same on all ranks."""
    try:
        code = main()
    except BaseException as error:
        if not getattr(error, _SAID, False):
            print(f"dppo: rank {MPI.COMM_WORLD.rank} failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        if MPI.COMM_WORLD.size > 1:
            MPI.COMM_WORLD.Abort(EXIT_FAILED)
        code = EXIT_FAILED
    sys.stdout.flush()
    MPI.COMM_WORLD.Barrier()
    sys.exit(code)


if __name__ == "__main__":
    _command()
