"""How a run opens and closes: what it builds and prints before training, the run directory, and the last lines."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dppo.cluster import guard
from dppo.cluster.launcher import survives_deaths
from dppo.cluster.signals import Preemption
from dppo.cluster.startup import forks_end_here, this_python
from dppo.comm.collectives import first_error, from_rank_zero, gather_at_zero, mpi_version
from dppo.comm.mpi import Comm
from dppo.comm.ulfm import HOW_TO_SURVIVE, wait_asleep
from dppo.config import Config
from dppo.console import Console
from dppo.data import EnvState
from dppo.envs.given import Given
from dppo.envs.leaves import described
from dppo.envs.reasons import reason
from dppo.errors import EXIT_USAGE, Failure, UsageError
from dppo.files import replace_atomically
from dppo.run.env_groups import share_spaces, unlike_agents
from dppo.run.evaluation import how_to_evaluate
from dppo.run.preflight import Plan, plan_run, versions
from dppo.rundir import paths
from dppo.rundir.checkpoint import Checkpoint, remove_leftovers
from dppo.rundir.contents import check_environments
from dppo.rundir.recorders import read_json, write_json
from dppo.rundir.runs import SIGNS
from dppo.rundir.states import remove_states
from dppo.rundir.summary import (
    EXIT_CODES,
    FAILED,
    FINISHED,
    PREEMPTED,
    TARGET,
    Summary,
    read_summary,
    write_summary,
)
from dppo.settings.commands import VERSION
from dppo.settings.resume import resumed
from dppo.settings.toml import to_toml
from dppo.training.build import Parts, build_parts
from dppo.training.episodes import WINDOW
from dppo.training.replay import Replay
from dppo.training.state import TrainingState
from dppo.training.tracker import Tracker
from dppo.trajectories.format import set_aside_orphans

PYTHON = this_python()  # before an environment changes the working directory


def plan(config: Config, comm: Comm, console: Console, *, is_complete: bool) -> Plan | Summary:
    """Collective over `comm`. Checks settings and run directory on rank 0; touches nothing on disk.

    Args:
      is_complete: whether `config` already contains a resumed run's settings, from the command line.
    """
    planned: Plan | Summary | None = None
    error: str | None = None
    if comm.rank == 0:
        try:
            given = config if is_complete or not config.resume else resumed(config)
            planned = plan_run(given, comm.size, console)
        except ValueError as problem:
            error = str(problem)
        except OSError as problem:
            error = str(problem)
            if problem.filename is not None:
                error = (
                    f"{problem.filename}: {problem.strerror}: this user must be able to read and write the run's files"
                )
    error = from_rank_zero(comm, error)
    if error is not None:
        raise UsageError(error)
    return from_rank_zero(comm, planned)


def build(config: Config, comm: Comm, heartbeat: Callable[[str], None], given: Given, run_dir: Path) -> Parts:
    """Collective over `comm`. Makes environments and networks. A failure on any rank is shown once and ends all ranks.

    Args:
      heartbeat: called with the phase that begins, because an environment may not come back.
      given, run_dir: what this rank's environments are given, and where they save their states, if they do.
    """
    parts, error = None, None
    needs_spaces = config.own_env_ranks > 1 and comm.size > 1
    worker = 0 if comm.size == 1 else comm.rank - 1 if comm.rank else None
    heartbeat("start: making environments")
    try:
        with forks_end_here():
            if worker is not None or not needs_spaces:
                parts = build_parts(config, worker, given, run_dir)
    except ValueError as problem:
        error = str(problem)
    except (Exception, SystemExit) as problem:  # whatever the user's environment raises while it is made
        error = f"{config.env} could not be made: {reason(problem)}"
    wait_asleep(comm, lambda: heartbeat("exchange"))
    error = first_error(comm, error, None if given.group is None else given.group.first) or unlike_agents(comm, parts)
    if error is None and needs_spaces:
        parts, error = share_spaces(config, comm, parts, given)
    if error is not None:
        guard.announce(EXIT_USAGE)  # whatever the environments do while they are closed
        if parts is not None:
            parts.close()
        raise UsageError(error)
    assert parts is not None
    return parts


def try_environments(parts: Parts, comm: Comm) -> str:
    """Collective over `comm`. Resets every worker's environments and steps them once, for a dry run.

    Returns:
      A text on what the first worker saw, on rank 0; elsewhere "".

    Raises:
      UsageError: on all ranks, if the environments of any rank failed.
    """
    seen = error = None
    try:
        if parts.has_envs:
            seen = _first_step(parts)
    except (Exception, SystemExit) as problem:
        error = f"an environment failed in its first steps: {reason(problem)}"
    error = first_error(comm, error, None if parts.given.group is None else parts.given.group.first)
    if error is not None:
        raise UsageError(error)
    told = [text for text in gather_at_zero(comm, seen) if text is not None]
    return told[0] if told else ""


def _first_step(parts: Parts) -> str:
    """Resets and steps the environments of this rank. Returns a text on what the first of them gave."""
    assert parts.envs is not None
    observations = parts.envs.reset()
    first = observations[:1].copy()
    actions = parts.policy.greedy(parts.policy.inputs(observations), parts.envs.masks)
    step = parts.envs.step(parts.policy.distribution.to_env(actions))
    ends = [name for name, flags in (("terminated", step.terminations), ("truncated", step.truncations)) if flags[0]]
    return (
        f"the first environment was reset and stepped once: observations"
        f" {described(np.concatenate((first, step.observations[:1])))},"
        f" reward {float(step.rewards[0]):.4g}{''.join(f', {end}' for end in ends)}"
    )


def check_saved(planned: Plan, parts: Parts, comm: Comm) -> None:
    """Collective over `comm`. Raises UsageError if the checkpoint is not of this network and these environments."""
    saved, error = planned.saved, None
    try:
        if saved is not None:
            parts.state.check(saved.state)
        if saved is not None and parts.envs is not None:
            first = (parts.worker or 0) * parts.envs.num_envs
            mine = range(first, first + parts.envs.num_envs)
            envs = [e for _, states in saved.ranks.values() for e in states if e.env in mine]
            check_environments(envs, *parts.spaces, parts.policy.state_size)
    except ValueError as problem:
        name = f"{planned.run_dir}/checkpoints/step_{0 if saved is None else saved.env_steps:09d}"
        error = f"{name} does not fit to this run: {problem}; move it away, and --resume takes the one before"
    error = first_error(comm, error)
    if error is not None:
        raise UsageError(error)


def introduce(planned: Plan, parts: Parts, comm: Comm, console: Console, notes: Sequence[str], threads: int) -> None:
    """Collective over `comm`. Prints the first lines of output."""
    description = gather_at_zero(comm, None if parts.envs is None else parts.envs.description)
    if comm.rank != 0:
        return
    config, workers = planned.config, max(1, comm.size - 1)
    described = next(d for d in description or [] if d is not None)
    role = "1 rank, server and worker at once" if comm.size == 1 else f"1 server, {workers} workers"
    if config.own_env_ranks > 1 and comm.size > 1:
        role += f", each the head of a group of {config.own_env_ranks} ranks"
    cell = f"{config.mode}/{config.exchange}, loss {config.loss}, seed {config.seed}"
    console.line(f"{VERSION}: {planned.environment}, {cell}; {role}")
    for note in notes:
        console.line(f"  {note}")
    console.line(f"  {described} per worker; {parts.policy.description}; {threads} thread(s) per rank")
    if config.time_limit_s is not None and config.time_limit_s <= config.checkpoint.grace_s:
        console.warn(
            f"--time-limit-s {config.time_limit_s:g} leaves nothing before --checkpoint.grace-s"
            f" {config.checkpoint.grace_s:g}: the run will save and leave after its first iteration"
        )
    until = f"{config.total_steps:,} steps"
    if config.target_return is not None:
        until = f"a mean return of {config.target_return:g} over 100 episodes, at most {until}"
    console.line(f"  until {until}; files in {planned.run_dir}")
    if comm.size > 1:
        console.line(f"  {'ranks may die: the others go on' if survives_deaths() else HOW_TO_SURVIVE}")
    if (config.respawn or config.on_worker_error == "continue") and not (comm.size > 1 and survives_deaths()):
        why = "there is only one" if comm.size == 1 else "without ULFM a dead rank ends the job"
        console.warn(f"--respawn and --on-worker-error continue have no effect here: {why}")
    if config.mode == "async" and comm.size <= 2:
        console.line(
            "  async with one worker: no gradient is ever older than its own successor; sync does the same with less"
        )


def open_tracker(
    planned: Plan,
    state: TrainingState,
    workers: Sequence[int],
    hosts: list[str],
    preemption: Preemption,
    console: Console,
    started: float,
    threads: int,
) -> Tracker:
    """Makes the run directory on rank 0, or continues in it, and saves step 0.

    Args:
      workers: the workers' numbers.
      hosts: the hosts of all ranks.

    Raises:
      OSError: the run directory cannot be written. Nothing is left of a new run then.
    """
    before = set(os.listdir(planned.run_dir)) if planned.run_dir.is_dir() else set()
    try:
        return _open_tracker(planned, state, workers, hosts, preemption, console, started, threads)
    except OSError:
        if planned.saved is None:
            _remove_all_but(planned.run_dir, before)
        raise


def _remove_all_but(run_dir: Path, kept: set[str]) -> None:
    """Removes what `open_tracker` writes, except the names in `kept`."""
    for name in {*SIGNS, paths.TENSORBOARD} - kept:
        shutil.rmtree(run_dir / name, ignore_errors=True)
        with contextlib.suppress(OSError):
            (run_dir / name).unlink()


def _open_tracker(
    planned: Plan,
    state: TrainingState,
    workers: Sequence[int],
    hosts: list[str],
    preemption: Preemption,
    console: Console,
    started: float,
    threads: int,
) -> Tracker:
    planned.run_dir.mkdir(parents=True, exist_ok=True)
    remove_leftovers(planned.run_dir)
    remove_states(planned.run_dir)
    saved = planned.saved
    if saved is not None:
        state.load(saved.state)
        console.line(f"  resumed at {saved.env_steps:,} steps, iteration {saved.iteration}, attempt {planned.attempt}")
        if len(saved.ranks) != len(workers):
            console.warn(
                f"the checkpoint is of {len(saved.ranks)} worker(s), this run has {len(workers)}: environments are"
                " dealt out by their global numbers, surplus ones are dropped, missing ones start new; the numbers"
                " will differ"
            )
    replace_atomically(planned.run_dir / paths.CONFIG, to_toml(planned.config).encode())
    before = read_json(planned.run_dir / paths.VERSIONS).get("attempts")
    newest = versions(hosts, threads, mpi_version(), planned.allocation, state.env_steps)
    attempts = {"run_id": planned.run_id, **newest, "attempts": [*(before if isinstance(before, list) else []), newest]}
    write_json(planned.run_dir / paths.VERSIONS, attempts)
    named = {} if saved is None else saved.next_segments
    if moved := set_aside_orphans(planned.run_dir, named, planned.attempt):
        console.line(f"  {moved} trajectory segment(s) newer than the checkpoint were moved to {paths.ORPHANED}")
    tracker = Tracker(
        planned.run_dir, planned.config, state, preemption, console,
        workers=workers, world_size=len(hosts), attempt=planned.attempt, started=started,
        wall_s=planned.wall_s,
        counters=None if saved is None else saved.counters,
        replays=saved_replays(saved, workers, planned.config.num_envs),
        first_rank=planned.first_rank, next_segments=named,
    )  # fmt: skip
    if saved is None:
        tracker.saver.write(tracker.saver.boundary)  # a job that is killed at any time can be resumed
    return tracker


def saved_replays(saved: Checkpoint | None, workers: Sequence[int], num_envs: int) -> dict[int, Replay]:
    """Returns the replays of a checkpoint's environments, by worker. A worker of which the checkpoint lacks some
    environments is left out: its replay begins with its first report.
    """
    out: dict[int, Replay] = {}
    if saved is None:
        return out
    envs = {e.env: e for _, states in saved.ranks.values() for e in states}
    for worker in workers:
        mine = [envs[g] for g in range(worker * num_envs, (worker + 1) * num_envs) if g in envs]
        if len(mine) == num_envs:
            out[worker] = Replay()
            out[worker].start_from(_next_row(saved, worker, num_envs), mine)
    return out


def saved_states(planned: Plan, worker: int) -> tuple[dict[int, EnvState] | None, int, int]:
    """Returns the last three arguments of `make_collector`, from the checkpoint; (None, 0, 0) if the run begins."""
    saved = planned.saved
    if saved is None or not saved.ranks:
        return None, 0, 0
    states = {e.env: e for _, listed in saved.ranks.values() for e in listed}
    return states, _next_row(saved, worker, planned.config.num_envs), saved.counters["next_episode"]


def _next_row(saved: Checkpoint, worker: int, num_envs: int) -> int:
    """Returns the row in which a worker continues: above every row that was counted, so that new rollouts count."""
    rows = [row for row, states in saved.ranks.values() if any(e.env // num_envs == worker for e in states)]
    return max((*rows, saved.counters.get("rows", {}).get(worker, 0)))


def say_failed(planned: Plan, failure: Failure) -> None:
    """Writes the summary of a run that fails while no rank keeps track of it."""
    with contextlib.suppress(OSError):
        said = read_summary(planned.run_dir)
        attempt = said.get("attempt")
        has_ended = attempt == planned.attempt and said.get("exit") in EXIT_CODES
        is_newer = isinstance(attempt, int) and attempt > planned.attempt
        if said and not has_ended and not is_newer:
            how = {"exit": FAILED, "error": failure.text, "stalled": failure.stalled, "attempt": planned.attempt}
            write_summary(planned.run_dir, said | how)


def conclude(summary: Summary, console: Console, config: Config) -> None:
    """Prints the last lines of output."""
    s = summary
    reached = (
        "no episode has ended"
        if s.return_mean_100 is None
        else f"mean return {s.return_mean_100:.2f} (last {min(s.episodes, WINDOW)} episodes)"
    )
    how = {
        TARGET: "target reached",
        FINISHED: "finished" if s.stopped_by is None else f"stopped by {s.stopped_by}",
        PREEMPTED: f"preempted by {s.preempted_by}, state saved; run again with --resume",
    }
    console.line(
        f"{how[s.exit]}: {reached} after {s.env_steps:,} steps, {s.updates:,} updates, {s.episodes:,} episodes"
    )
    speed = f"{s.steps_per_s:,.0f} steps/s on {max(1, s.world_size - 1)} worker(s)"
    console.line(f"  {s.train_s:.1f} s of training, {speed}; {s.wall_s:.1f} s in all")
    console.line(f"  files: {s.run_dir}   evaluate: {how_to_evaluate(config, s.run_dir, PYTHON)}")
