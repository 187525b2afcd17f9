"""What the survivors of a death tell each other, who gives what, and how rank 0 takes it over.

Rank 0 takes over the newest state and, if the server has died, the server's counters.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dppo.data import Report
from dppo.errors import DisplacedError, Failure, SavingError
from dppo.run.members import Member
from dppo.run.rank import Rank
from dppo.run.roles import begin_tracking, count_ranks, keep_track
from dppo.run.setup import saved_replays
from dppo.rundir import paths
from dppo.rundir.checkpoint import newest_valid, remove_leftovers
from dppo.rundir.summary import EXIT_CODES, Summary, read_summary
from dppo.training.packing import is_boundary, moment_of
from dppo.training.replay import Replay
from dppo.training.standby import Mirror
from dppo.training.state import TrainingState
from dppo.training.tracker import Tracker
from dppo.trajectories.format import next_segments

MAX_MIRROR_AGE = 10
"""The largest age of a mirror that is still used, in copies that should have come since."""


@dataclass(frozen=True)
class Status:
    """A survivor's message to all others: who it is, and how far."""

    member: Member
    is_server: bool
    moment: tuple[int, int]
    """(iteration, version) of the state that the survivor can give."""
    checksum: int
    """CRC-32 of this state."""
    updates_seen: int
    mirror: tuple[int, int] | None
    """(iteration, updates) of the mirror that the survivor holds."""
    failure: Failure | None
    synchronised: bool


@dataclass(frozen=True)
class Contribution:
    """A survivor's contribution to the new server: reports, heads, a state, a mirror."""

    reports: list[Report]
    boundary_heads: dict[int, np.ndarray]
    """iteration -> head of the packed state at the iteration's end, as `Standby` keeps it."""
    state: np.ndarray | None
    totals: np.ndarray | None
    mirror: Mirror | None
    replay: Replay | None
    discarded: int
    """Transitions that this rank will not use."""


def givers(statuses: Sequence[Status], *, all_step: bool) -> tuple[int, int]:
    """Returns who gives the state, and who gives the mirror of a dead server's counters, as indices of `statuses`.

    Where only the server makes steps (p2p, async), the server's own state is the newest. If the server has died, or
    every worker makes steps (allreduce), the newest state is that of the rank that is furthest.
    """
    places = range(len(statuses))
    state = max(
        places, key=lambda i: (not all_step and statuses[i].is_server, statuses[i].moment, statuses[i].is_server)
    )
    return state, max(places, key=lambda i: statuses[i].mirror or (-1, -1))


def drifted(statuses: Sequence[Status]) -> list[Status]:
    """Returns the workers that are furthest, if their states differ, else [] (sync/allreduce). A sum that a death has
    spoilt on one of them would show here.
    """
    workers = [w for w in statuses if not w.is_server]
    furthest = max((w.moment for w in workers), default=None)
    there = [w for w in workers if w.moment == furthest]
    return there if len({w.checksum for w in there}) > 1 else []


def offered(state: TrainingState, mirror: Mirror | None, *, is_server: bool) -> np.ndarray:
    """Returns the newest state that a rank can give, packed: its own, or that of a mirror whose reply to the workers
    was never sent.
    """
    own = state.packed()
    if is_server or mirror is None or not len(mirror.state):
        return own
    own_at, copy_at = moment_of(own), moment_of(mirror.state)
    same_round = copy_at[0] == own_at[0] and state.round > 0  # else the statistics are of the iteration before
    return mirror.state if copy_at > own_at and (same_round or is_boundary(mirror.state)) else own


def take_over(
    me: Rank, statuses: list[Status], giver: int, contributions: list[Contribution], lost: list[Member], took_s: float
) -> None:
    """Gives rank 0 the newest state and the counters."""
    state, all_step = me.parts.state, me.plan.config.exchange == "allreduce"
    packed = contributions[giver].state
    assert packed is not None
    told = [report for g in contributions for report in g.reports]
    took_over, console = not me.server.is_open, me.services.console
    if not me.services.quiet:
        console.enable()
    if took_over:
        said = read_summary(me.plan.run_dir)
        if said.get("exit") in EXIT_CODES and said.get("attempt") == me.plan.attempt:
            me.server.ended = Summary(**said)  # the server died just after it had ended the run: all is on disk
            return
        attempt = said.get("attempt")
        if isinstance(attempt, int) and attempt > me.plan.attempt:
            raise DisplacedError(f"another start of this run has begun in {me.plan.run_dir}: this one ends")
        try:
            if not any(w.synchronised for w in statuses):  # the server died before anyone had the run's state
                _begin_anew(me, lost)
                return
            known_updates, closed = _open_with_what_is_left(me, statuses, packed, contributions, told)
        except OSError as error:
            raise SavingError(f"after the server's death, {me.plan.run_dir} cannot be taken over: {error}") from error
    else:
        told += me.server.unclosed
        closed, known_updates = state.iteration, state.updates
    tracker = me.server.tracker
    if tracker.saver.has_ended:
        state.unpack(packed)
    elif all_step:
        _close_passed(tracker, state, closed, packed, [g.boundary_heads for g in contributions], told)
        known_updates = state.updates
    else:
        for report in told:
            if tracker.add(report) and report.moment_sums is not None and report.moment_means and not took_over:
                state.merge(report.moment_sums, report.moment_means)
        me.recovery.standby.totals = contributions[giver].totals
    _count_losses(me, statuses, contributions, lost, known_updates)
    me.server.end_session()
    me.recovery.standby.boundary = None  # from here on this rank has the newest state
    for member in lost:
        console.warn(f"{member} has died in iteration {state.iteration + 1}")
    server = f"; {me.group.member} is the server now" if took_over else ""
    console.warn(f"{me.group.comm.size} rank(s) go on after {took_s:.2f} s{server}")


def _begin_anew(me: Rank, lost: list[Member]) -> None:
    begin_tracking(me)
    count_ranks(me)
    for member in lost:
        me.services.console.warn(f"{member} has died at the start")


def _count_losses(
    me: Rank, statuses: list[Status], contributions: list[Contribution], lost: list[Member], known_updates: int
) -> None:
    config = me.plan.config
    assert config.horizon is not None, "an unresolved configuration reached the loop"
    losses = me.server.tracker.counters.losses
    losses.updates_lost += max(0, max(w.updates_seen for w in statuses) - known_updates)
    losses.env_steps_lost += sum(g.discarded for g in contributions)
    losses.env_steps_lost += config.horizon * config.num_envs * sum(member.is_worker for member in lost)
    count_ranks(me)


def _open_with_what_is_left(
    me: Rank, statuses: list[Status], packed: np.ndarray, contributions: list[Contribution], told: list[Report]
) -> tuple[int, int]:
    """Makes the tracker. Returns the number of updates that the optimiser's statistics contain, and the iteration of
    the last line of metrics.
    """
    config, state, plan = me.plan.config, me.parts.state, me.plan
    state.forget_unfinished()
    state.unpack(packed)
    mirror = next((g.mirror for g in contributions if g.mirror is not None), None)
    if mirror is not None and _is_old(mirror, me):
        mirror = None  # from a rank that was a standby long ago: the last checkpoint is newer
    saved = newest_valid(plan.run_dir)[0] or plan.saved if mirror is None else None
    if mirror is None and saved is None:  # the server died before it had opened the run
        begin_tracking(me)
        return state.updates, 0
    remove_leftovers(plan.run_dir)
    updates = state.updates
    replays: dict[int, Replay] = {}
    if mirror is not None:
        counters, counted_until = mirror.counters, mirror.iteration
        if len(mirror.state):
            state.unpack_optimizer(mirror.state)
            updates = mirror.updates
    else:
        assert saved is not None
        counters, counted_until = saved.counters, saved.iteration
        replays = saved_replays(saved, range(max(1, me.plan.num_ranks - 1)), config.num_envs)
        if config.exchange != "allreduce":
            state.optimizer.steps, state.optimizer.state[:] = saved.state["optimizer_steps"], saved.state["optimizer"]
            updates = saved.state["numbers"]["updates"]
    for w, g in zip(statuses, contributions, strict=True):
        if w.member.worker is not None and g.replay is not None and not g.replay.is_empty:
            replays[w.member.worker] = g.replay
    line = last_line(plan.run_dir / paths.METRICS, state.iteration)
    tracker = Tracker(
        plan.run_dir, config, state, me.services.preemption, me.services.console,
        workers=me.group.workers, world_size=me.group.comm.size, attempt=plan.attempt, started=me.services.started,
        wall_s=plan.wall_s, counters=counters, replays=replays, first_rank=plan.first_rank,
        next_segments=next_segments(plan.run_dir),
    )  # fmt: skip
    keep_track(me, tracker, resumed=True)
    tracker.start_clock()
    if line.get("iteration", 0) > counted_until:
        for report in told:
            if report.iteration < line["iteration"]:
                tracker.add(report)
        tracker.catch_up(line)
    return updates, int(line.get("iteration", 0))


def _is_old(mirror: Mirror, me: Rank) -> bool:
    state = me.parts.state
    if me.plan.config.exchange == "allreduce":
        return state.iteration - mirror.iteration > MAX_MIRROR_AGE
    return state.updates - mirror.updates > MAX_MIRROR_AGE * max(1, me.plan.config.server.mirror_every)


def last_line(path: Path, iteration: int) -> dict[str, Any]:
    """Returns the last line of metrics.jsonl up to this iteration; {} if there is none."""
    last: dict[str, Any] = {}
    for text in path.read_bytes().splitlines(keepends=True)[::-1] if path.exists() else ():
        try:
            last = json.loads(text) if text.endswith(b"\n") else {}
        except ValueError:
            continue
        if last and last["iteration"] <= iteration:
            return last
    return {}


def _close_passed(
    tracker: Tracker,
    state: TrainingState,
    closed: int,
    packed: np.ndarray,
    heads: list[dict[int, np.ndarray]],
    told: list[Report],
) -> None:
    """Closes the iterations by which the workers were ahead of the tracker (sync/allreduce)."""
    state.unpack(packed)
    newest = state.iteration
    for iteration in range(closed + 1, newest + 1):
        for report in told:
            if report.iteration == iteration - 1:
                tracker.add(report)
        head = next((h[iteration] for h in heads if iteration in h), None)
        if head is not None and iteration < newest:
            state.unpack_head(head)
        elif iteration == newest:
            state.unpack(packed)
        if iteration < newest:
            tracker.close_passed()
        else:
            tracker.close({})
