"""Who takes part in a run: members, what a rank holds, and how the dead are replaced."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NoReturn

from gymnasium.spaces import Box

from dppo.cluster import guard
from dppo.cluster.signals import Preemption
from dppo.cluster.watchdog import Watchdog
from dppo.comm.collectives import from_rank_zero, gather_all
from dppo.comm.mpi import Comm
from dppo.comm.ulfm import die, end_job, left_mpi, sort, spawn, survives_deaths
from dppo.config import VERSION
from dppo.console import Console, end_output
from dppo.errors import EXIT_STALLED, Failure, SavingError
from dppo.run.preflight import Plan
from dppo.run.setup import conclude, open_tracker, saved_replays, saved_states
from dppo.rundir.spaces import space_to_json, spec_to_json, write_spaces
from dppo.rundir.summary import EXIT_CODES, Summary
from dppo.startup import forks_end_here
from dppo.training.build import Parts, build_envs, make_collector
from dppo.training.collector import Collector
from dppo.training.counters import Losses
from dppo.training.standby import Standby
from dppo.training.tracker import Tracker
from dppo.trajectories.writer import Labels, TrajectoryWriter

MAX_RESPAWNS = 3
"""Of one worker: what dies again and again is not an accident."""
ENDED_BY_STALL = "ended.txt"
"""In RUN/stalls: written by a rank that ended itself because it made no progress."""


@dataclass(frozen=True)
class Member:
    """A rank, by what stays the same when others die."""

    rank: int
    """Its number at the start; a replacement has a dead one's."""
    host: str
    pid: int
    worker: int | None
    """None: the server."""

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}"


@dataclass(slots=True)
class Rank:
    """This process: what it has, and with whom it works."""

    plan: Plan
    comm: Comm
    members: list[Member]
    """Of `comm`'s ranks, in order; the first is the server."""
    place: Parts
    console: Console
    preemption: Preemption
    watchdog: Watchdog
    started: float
    threads: int
    num_ranks: int
    """At the start of the run."""
    quiet: bool = False
    collector: Collector | None = None
    dump: TrajectoryWriter | None = None
    """A worker's, where trajectories are written."""
    standby: Standby | None = None
    """Where deaths can be survived."""
    tracker: Tracker | None = None
    coordinator: Any = None
    others: list[Comm] = field(default_factory=list)
    """The present members' other communicators."""
    retired: list[object] = field(default_factory=list)
    """Buffers that messages of earlier members might still reach."""
    respawns: dict[int, int] = field(default_factory=dict)
    """Times that each worker was replaced; known to all, because any of them may become the server."""
    given_up: set[int] = field(default_factory=set)
    """Workers that have died too often, as far as this server has said."""
    replaced: int = 0
    """Ranks, since the start of the run."""
    failure: Failure | None = None
    """Why this rank cannot go on."""
    fruitless: int = 0
    """Regroupings in a row in which nobody was missing."""
    synchronised: bool = False
    """It has had rank 0's state: before, the state is a fresh one, whatever the run goes on from."""
    ended: Summary | None = None
    """What a server that died has left on disk as the run's end."""
    may_respawn: bool = True
    """Until this MPI has refused to."""

    @property
    def member(self) -> Member:
        return self.members[self.comm.rank]

    @property
    def workers(self) -> list[int]:
        """Their numbers, in the order of their ranks."""
        return [member.worker for member in self.members if member.worker is not None]

    @property
    def first_rank(self) -> int:
        """Of worker 0, at the start."""
        return int(self.num_ranks > 1)


def first_members(comm: Comm) -> list[Member]:
    """Collective over `comm`."""
    worker = 0 if comm.size == 1 else comm.rank - 1 if comm.rank else None
    return gather_all(comm, Member(comm.rank, socket.gethostname(), os.getpid(), worker))


def begin_collecting(me: Rank) -> None:
    """A worker, at the start of a run: its environments stand where the checkpoint has them."""
    worker, config = me.member.worker, me.plan.config
    assert worker is not None
    with forks_end_here():
        me.collector = make_collector(config, me.place, *saved_states(me.plan, worker))
    if me.standby is not None:
        replays = saved_replays(me.plan.saved, [worker], config.num_envs)
        me.standby.replay = replays.get(worker, me.standby.replay)


def begin_tracking(me: Rank) -> None:
    """Rank 0: makes the run directory, or goes on in it."""
    hosts = [member.host for member in me.members]
    me.tracker = open_tracker(
        me.plan, me.place.state, me.workers, hosts, me.preemption, me.console, me.started, me.threads,
        first_rank=me.first_rank,
    )  # fmt: skip
    write_spaces(me.plan.run_dir, *me.place.spaces)


def begin_dump(me: Rank) -> None:
    """A worker, once rank 0 has opened the run directory: its trajectories go on behind what is visible there."""
    config, envs, worker = me.plan.config, me.place.envs, me.member.worker
    settings = config.trajectories
    if not settings.enabled:
        return
    assert envs is not None and worker is not None
    labels = Labels(
        me.plan.run_dir, me.plan.run_id, me.plan.attempt, worker + me.first_rank, me.comm.size,
        worker * config.num_envs, json.dumps(asdict(config)), spec_to_json(config.env),
        space_to_json(envs.observation_space), space_to_json(envs.action_space), VERSION,
    )  # fmt: skip
    share = None if settings.max_gb is None else settings.max_gb * 1e9 / max(1, me.num_ranks - 1)
    me.dump = TrajectoryWriter(
        labels, me.place.seeds.of if envs.replayable else None, has_raw_actions=isinstance(envs.action_space, Box),
        segment_bytes=int(settings.segment_mb * 2**20), every=settings.every, compression=settings.compression,
        max_bytes=share, required=settings.required,
        wait_s=min(10.0, 0.3 * config.checkpoint.grace_s),
    )  # fmt: skip


def count_ranks(me: Rank) -> None:
    """Rank 0, after a regrouping: how many have been lost follows from how many are left. So it holds whatever a server
    that died meanwhile had counted.
    """
    assert me.tracker is not None
    before = Losses() if me.plan.saved is None else Losses(**me.plan.saved.counters.get("losses", {}))
    losses = me.tracker.counters.losses
    losses.ranks_replaced = before.ranks_replaced + me.replaced
    losses.ranks_lost = before.ranks_lost + me.num_ranks + me.replaced - me.comm.size
    me.tracker.regroup(me.comm.size, me.workers)


def assign_roles(members: list[Member]) -> list[Member]:
    """The lowest rank is the server; one that is left alone is a worker, too."""
    first, *rest = members
    if rest:
        return [replace(first, worker=None), *rest]
    return [first if first.worker is not None else replace(first, worker=0)]


# -- leaving --------------------


def make_watchdog(plan: Plan, comm: Comm, number: int) -> Watchdog:
    """Of rank `number`; until the run directory is there, it writes to stderr."""
    log = plan.config.log
    watchdog = Watchdog(
        None, number, log.stall_after_s, log.stall_abort_s,
        end=lambda: _end_by_stall(plan, comm, number, is_starting=not watchdog.has_folder), is_lost=left_mpi,
        beat=guard.beat,
    )  # fmt: skip
    return watchdog


def _end_by_stall(plan: Plan, comm: Comm, number: int, *, is_starting: bool) -> None:
    """This rank made no progress for too long, says its watchdog, whose thread calls this."""
    if not survives_deaths():
        guard.leave_at_once(EXIT_STALLED)
    if plan.config.on_worker_error == "abort":
        if is_starting:
            end_job(comm, EXIT_STALLED)
        with contextlib.suppress(OSError):
            (plan.run_dir / "stalls" / ENDED_BY_STALL).write_text(
                f"rank {number} on {socket.gethostname()} made no progress for {plan.config.log.stall_abort_s:g} s"
                " (--log.stall-abort-s)"
            )
    die()


def leave_alone(me: Rank) -> NoReturn:
    """Rank 0: everything is saved, but workers are stuck in an environment: the job ends without them."""
    assert me.tracker is not None
    try:
        me.tracker.saver.conclude()
    except SavingError as error:
        me.console.warn(str(error))
        me.tracker.saver.fail(Failure(str(error)))
    code = EXIT_CODES.get(me.tracker.saver.summary.exit, 1)
    if me.tracker.saver.summary.exit in EXIT_CODES:
        conclude(me.tracker.saver.summary, me.console)
    elif me.tracker.saver.dumps is not None and me.tracker.saver.dumps.ends_the_run:
        me.console.warn(f"{me.tracker.saver.dumps.problem} (--trajectories.required)")
    me.console.warn(f"some workers did not leave in time: the job ends without them, exit code {code}")
    end_output()
    guard.announce(code)
    if not survives_deaths():
        me.comm.Abort(code)
    for member in me.members:  # those on other nodes end with the launcher
        if member.host == me.member.host and member.pid != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(member.pid, signal.SIGKILL)
    time.sleep(0.1)
    os._exit(code)


# -- replacements --------------------


@dataclass(frozen=True)
class Start:
    """What a replacement needs to know."""

    plan: Plan
    member: Member
    num_ranks: int
    started_s: float
    """Seconds since the job's start."""
    replaced: int
    respawns: dict[int, int]
    """As `Rank` has them."""
    states: Any
    """As `make_collector` takes them."""


def replace_lost(me: Rank) -> None:
    """Collective over `me.comm`. New processes for the workers that are missing."""
    missing: list[int] = []
    if me.comm.rank == 0:
        missing = [] if me.tracker is None or me.tracker.saver.has_ended else _to_replace(me)
    missing = from_rank_zero(me.comm, missing)
    if not missing:
        return
    me.fruitless = 0  # those that die before they have a member are missed by nobody
    grown = spawn(me.comm, len(missing), lambda: me.watchdog.progress("recovery"))
    if isinstance(grown, str):
        me.may_respawn = False
        if me.comm.rank == 0:
            me.console.warn(
                f"a dead rank could not be replaced ({grown}): is there a free slot? mpirun --oversubscribe allows it"
            )
        return
    me.others = [grown]
    count = me.comm.size
    for worker in missing:
        me.respawns[worker] = me.respawns.get(worker, 0) + 1
    if me.comm.rank == 0:
        assert me.tracker is not None
        for i, (worker, rank) in enumerate(free_ranks(missing, me.members, me.num_ranks)):
            member = Member(rank, "", 0, worker)
            states = me.tracker.hand_over(worker)
            replaced = me.replaced + len(missing)
            started_s = time.monotonic() - me.started
            start = Start(me.plan, member, me.num_ranks, started_s, replaced, me.respawns, states)
            grown.send(start, dest=count + i)
    mine = replace(me.member, worker=None) if me.comm.rank == 0 else me.member
    me.comm, me.members = reorder(grown, mine)
    me.others = []
    me.replaced += len(missing)
    if me.comm.rank == 0:
        count_ranks(me)
        me.console.warn(f"{len(missing)} rank(s) were replaced: {me.comm.size} again")


def reorder(grown: Comm, mine: Member) -> tuple[Comm, list[Member]]:
    """Collective over `grown`. Its ranks in the order of their workers, the server first."""
    return sort(grown, 0 if mine.worker is None else 1 + mine.worker, mine)


def _to_replace(me: Rank) -> list[int]:
    wanted, given_up = to_replace(me.members, me.num_ranks, me.respawns)
    if new := sorted(set(given_up) - me.given_up):
        me.given_up.update(new)
        me.console.warn(f"workers {new} have died too often to be replaced again")
    if not me.may_respawn:
        return []
    if wanted and me.respawns and len({member.host for member in me.members}) > 1:
        me.may_respawn = False
        me.console.warn("on several hosts Open MPI replaces dead ranks only once: from here on, the others go on")
        return []
    return wanted


def to_replace(members: Sequence[Member], num_ranks: int, respawns: Mapping[int, int]) -> tuple[list[int], list[int]]:
    """Workers that are missing: those to replace, and those that have died too often. A rank that is left alone becomes
    a pure server again as soon as somebody works for it: its own worker is missing as well.

    Args:
      members: of the ranks that are left, the server's first.
      num_ranks: at the start of the run.
      respawns: times that each worker was replaced.
    """
    present = {member.worker for member in members} if len(members) > 1 else set()
    missing = [w for w in range(num_ranks - 1) if w not in present]
    wanted = [w for w in missing if respawns.get(w, 0) < MAX_RESPAWNS]
    return wanted, [w for w in missing if w not in wanted]


def free_ranks(workers: Sequence[int], members: Sequence[Member], num_ranks: int) -> list[tuple[int, int]]:
    """(worker, rank) of each replacement: the rank that the worker had at the start where it is free, else that of a
    server that has died. Ranks of workers that stay dead stay free while there are others.
    """
    free = set(range(num_ranks)) - {member.rank for member in members}
    given = {worker: worker + 1 for worker in workers if worker + 1 in free}
    rest = sorted(free - set(given.values()))
    given |= dict(zip((w for w in workers if w not in given), rest, strict=False))
    return [(worker, given[worker]) for worker in workers]


def build_envs_alone(me: Rank) -> None:
    """The only rank left needs environments: those of a worker that has died, where they stood when it last told."""
    assert me.tracker is not None
    worker = me.members[0].worker
    assert worker is not None
    build_envs(me.place, me.plan.config, worker)
    me.collector = make_collector(me.plan.config, me.place, *me.tracker.hand_over(worker))
