"""How dead workers are replaced by new processes, and how such a process begins. A worker that is the head of a group
of ranks is replaced with its group.
"""

from __future__ import annotations

import os
import socket
import time
import traceback
from dataclasses import dataclass, replace
from typing import Any

from dppo.comm import leaving, ulfm
from dppo.comm.collectives import from_rank_zero
from dppo.comm.mpi import MPI
from dppo.comm.ulfm import spawn
from dppo.console import Console
from dppo.data import EnvState
from dppo.run.env_group import EnvGroup, look_around
from dppo.run.env_groups import refuse_to_span
from dppo.run.folders import given_to_envs
from dppo.run.leave import make_watchdog
from dppo.run.members import Member, free_ranks, reorder, to_replace
from dppo.run.preflight import Plan
from dppo.run.rank import Group, Rank, begin_services
from dppo.run.roles import count_ranks
from dppo.rundir import paths
from dppo.training.build import build_parts, make_collector


@dataclass(frozen=True)
class Start:
    """The first message to a process that replaces a dead worker: everything that it needs to know."""

    plan: Plan
    member: Member
    started_s: float
    """Seconds since the job's start."""
    replaced: int
    respawns: dict[int, int]
    """The times that each worker was replaced, as in `Recovery`."""
    states: tuple[dict[int, EnvState], int, int]
    """The last three arguments of `make_collector`."""


def replace_lost(me: Rank) -> None:
    """Collective over the group. Starts new processes for the missing workers; they join a new group."""
    group, recovery, console, is_server = me.group, me.recovery, me.services.console, me.group.is_server
    missing = _to_replace(me) if is_server and me.server.is_open and not me.server.has_ended else []
    missing = from_rank_zero(group.comm, missing)
    if not missing:
        return
    recovery.fruitless = 0  # processes that die before they are members do not count as missing
    ranks_each = me.plan.config.own_env_ranks
    grown = spawn(group.comm, len(missing), ranks_each, lambda: me.services.watchdog.heartbeat("recovery"))
    if isinstance(grown, str):
        recovery.may_respawn = False
        if is_server:
            console.warn(
                f"a dead rank could not be replaced ({grown}): is there a free slot? mpirun --oversubscribe allows it"
            )
        return
    group.others[:] = [grown]
    for worker in missing:
        recovery.respawns[worker] = recovery.respawns.get(worker, 0) + 1
    replaced = recovery.replaced + len(missing)
    if is_server:
        free = free_ranks(missing, group.members, me.plan.num_ranks, ranks_each)
        for dest, (worker, rank) in enumerate(free, group.comm.size):
            states, started_s = me.server.tracker.hand_over(worker), time.monotonic() - me.services.started
            new = Member(rank, "", 0, worker)
            grown.send(Start(me.plan, new, started_s, replaced, recovery.respawns, states), dest=dest)
    comm, members = reorder(grown, replace(group.member, worker=None) if is_server else group.member)
    me.group, recovery.replaced = Group(comm, tuple(members)), replaced
    if is_server:
        count_ranks(me)
        all_ranks = 1 + (comm.size - 1) * ranks_each
        console.warn(f"{len(missing) * ranks_each} rank(s) were replaced: {all_ranks} again")


def _to_replace(me: Rank) -> list[int]:
    recovery, members, console = me.recovery, me.group.members, me.services.console
    wanted, given_up = to_replace(members, me.plan.num_ranks, recovery.respawns)
    if new := sorted(set(given_up) - recovery.given_up):
        recovery.given_up.update(new)
        console.warn(f"workers {new} have died too often to be replaced again")
    if not recovery.may_respawn:
        return []
    if wanted and recovery.respawns and len({member.host for member in members}) > 1:
        recovery.may_respawn = False
        console.warn("on several hosts Open MPI replaces dead ranks only once: from here on, the others go on")
        return []
    return wanted


def join(world: MPI.Intracomm, own_comm: Any = None) -> Rank | tuple[Plan, EnvGroup]:
    """Takes the first steps of a process that `spawn` has started, until it is a worker like the others, or until it
    can follow the head of its group. Any error meanwhile ends the process.

    Args:
      world: contains the processes that were started with this one.
      own_comm: the communicator that its environments are given.
    """
    try:
        grown, ranks = ulfm.joined(world)
        told: Any = None if grown == MPI.COMM_NULL else grown.recv(source=0)
        start: Start = told if ranks is None else from_rank_zero(ranks, told)
        plan, env_group = start.plan, None if ranks is None else _group(start, ranks)
        if env_group is not None and not env_group.is_head:
            return plan, env_group
        mine = replace(start.member, host=socket.gethostname(), pid=os.getpid())
        watchdog = make_watchdog(plan, grown, mine.rank)
        watchdog.write_to(plan.run_dir / paths.STALLS)
        parts = build_parts(plan.config, mine.worker, given_to_envs(plan, own_comm, env_group), plan.run_dir)
        comm, members = reorder(grown, mine)
        console = Console(plan.config.log.interval_s, enabled=False)
        services = begin_services(plan, console, watchdog, time.monotonic() - start.started_s)
        me = Rank(plan, services, parts, Group(comm, tuple(members)))
        me.recovery.replaced, me.recovery.respawns = start.replaced, start.respawns
        me.worker.start(make_collector(plan.config, parts, *start.states))
        envs, row, _ = start.states
        me.recovery.standby.replay.start_from(row, [envs[number] for number in sorted(envs)])
    except BaseException:
        traceback.print_exc()
        leaving.die()
    return me


def _group(start: Start, ranks: MPI.Comm) -> EnvGroup:
    """Collective over `ranks`, which are one environment. Returns their group.

    Raises:
      UsageError: they are on several nodes.
    """
    seats, first = look_around(ranks), start.member.rank
    if not start.plan.config.env_ranks_span_nodes:
        hosts, repair = [seat.host for seat in seats], "let each node have room for a whole group"
        refuse_to_span("a new group", [range(ranks.size)], hosts, repair)
    assert start.member.worker is not None
    return EnvGroup(ranks, start.member.worker, first, seats, crowded=True)  # how many ranks are here is not known
