"""One session of training: rank 0 serves, the others work; one rank alone does both."""

from __future__ import annotations

import contextlib

import numpy as np

from dppo.comm.allreduce import Allreduce
from dppo.comm.collectives import assert_in_sync, from_rank_zero, gather_at_zero, total
from dppo.comm.learner_groups import Pool, make_pool
from dppo.comm.link import Link, LocalLink, MPILink
from dppo.comm.mpi import Comm
from dppo.comm.server import serve
from dppo.comm.ulfm import wait_for_all
from dppo.comm.waiting import ask_for_longer_turns
from dppo.comm.wakeup import make_doorbell
from dppo.errors import DumpError, UsageError
from dppo.run.members import ENDED_BY_STALL, Rank, begin_dump, begin_tracking, build_envs_alone, leave_alone
from dppo.rundir.summary import Summary
from dppo.seams import Exchange
from dppo.startup import forks_end_here
from dppo.training import async_loop, sync_loop
from dppo.training.coordinator import BaseCoordinator
from dppo.training.sync_allreduce import AllreduceCoordinator, AllreduceExchange
from dppo.training.sync_p2p import P2PCoordinator, P2PExchange
from dppo.training.sync_pooled import PooledExchange, pool_bytes


def run_session(me: Rank) -> Summary:
    """Collective over `me.comm`. Rank 0 serves, the others work; one rank alone does both, through a link that is a
    function call.

    Raises:
      UsageError: the run directory cannot be written; on all ranks alike, and nothing was left there.
    """
    place, comm, standby, config = me.place, me.comm, me.standby, me.plan.config
    alone = comm.size == 1
    wait_for_all(comm, lambda: me.watchdog.progress("start"))  # from here on nobody is at an earlier stage
    problem = _open_run(me)
    if alone and me.collector is None and me.ended is None and problem is None:
        build_envs_alone(me)
    tracker, collector = me.tracker, me.collector
    wait_for_all(comm, lambda: me.watchdog.progress("start"))
    if (problem := from_rank_zero(comm, problem)) is not None:
        raise UsageError(problem)
    if tracker is not None:
        tracker.saver.heartbeat = me.watchdog.progress
    if from_rank_zero(comm, me.ended is not None or (tracker is not None and tracker.saver.has_ended)):
        return _summary(me)
    if collector is not None and me.dump is None:
        begin_dump(me)
    _synchronise(me)
    workers = comm
    if config.mode == "sync":
        workers = comm.Split(color=0 if comm.rank == 0 and not alone else 1, key=comm.rank)
        me.others.append(workers)
        wait_for_all(comm, lambda: None)  # all have it, so that all can be freed from it
    with (
        contextlib.ExitStack() as at_end
    ):  # what the next session, or a caller that goes on after an error, must not inherit
        pool, computing = None, workers
        if config.mode == "sync" and not config.server.drop:  # whoever is pooled cannot be late by itself
            room = pool_bytes(place.learner, place.state, config)
            pool, computing = make_pool(workers, room, me.workers, me.others)
        if pool is not None and standby is not None:
            at_end.callback(pool.give_up)
        computes = collector is not None and (pool is None or pool.computes)
        num_computing = total(comm, int(computes))
        doorbell = make_doorbell(comm)
        if doorbell.crowded and collector is not None:
            ask_for_longer_turns()
        _remember(me, computes=computes)
        comm.Barrier()  # training time starts when every worker can step
        me.coordinator = coordinator = _coordinator(me, num_computing)
        if tracker is not None:
            tracker.start_training()
        if collector is not None:
            asked = me.preemption.asked
            progress = me.watchdog.progress
            link: Link = (
                MPILink(comm, asked, progress, doorbell=doorbell, standby=standby, dump=me.dump)
                if coordinator is None
                else LocalLink(coordinator, asked, progress, me.dump)
            )
            sums = Allreduce(computing, survives=standby is not None)
            me.retired.append(sums)
            with forks_end_here():
                _begin_moments(me, workers)
                _work(me, sums, pool, link)
            link.bye()
        elif coordinator is not None:
            serve(comm, coordinator, first_worker_rank=1, doorbell=doorbell, progress=me.watchdog.progress)
            if coordinator.abandoned:
                leave_alone(me)
    return _summary(me)


def _open_run(me: Rank) -> str | None:
    """Rank 0, where nobody has done it: opens the run. Why it cannot, where that is for the user to mend."""
    if me.comm.rank != 0 or me.tracker is not None or me.ended is not None:
        return None
    try:
        begin_tracking(me)
    except OSError as error:
        return f"--run-dir {me.plan.run_dir} cannot be written ({error}): make room there, or choose another --run-dir"
    with contextlib.suppress(OSError):
        (me.plan.run_dir / "stalls" / ENDED_BY_STALL).unlink()
    return None


def _coordinator(me: Rank, num_computing: int) -> BaseCoordinator | None:
    """Rank 0's part of the loop."""
    if me.tracker is None:
        return None
    config, state, learner = me.plan.config, me.place.state, me.place.learner
    survives = me.standby is not None and me.comm.size > 1
    names = [str(member) for member in me.members[1:]]
    if config.mode == "async":
        return async_loop.AsyncCoordinator(
            me.tracker, state, learner, config, me.workers, survives=survives, names=names
        )
    if config.exchange == "allreduce":
        return AllreduceCoordinator(me.tracker, state, config, me.workers, survives=survives, names=names)
    totals = None if me.standby is None else me.standby.totals
    return P2PCoordinator(
        me.tracker, state, learner, config, me.workers, num_computing, survives=survives, totals=totals, names=names
    )


def _remember(me: Rank, *, computes: bool) -> None:
    """sync/allreduce: where a worker that computes steps back to, should someone die in the first iteration."""
    standby, state = me.standby, me.place.state
    if standby is None:
        return
    standby.boundary = None
    if computes and me.plan.config.exchange == "allreduce":
        packed = np.empty(state.all_bytes, np.uint8)
        state.pack(packed)
        standby.pass_boundary(state.iteration, packed, state.head_bytes)


def _summary(me: Rank) -> Summary:
    """Collective over `me.comm`. The run has ended: what trajectories its last boundary has seen is written first."""
    if me.plan.config.trajectories.enabled:
        tracker, comm = me.tracker, me.comm
        limits = from_rank_zero(comm, None if tracker is None else tracker.saver.boundary.rows)
        worker, settled = me.member.worker, []
        if me.dump is not None and limits is not None and worker in limits:  # as a rule it is on disk since the goodbye
            settled = me.dump.settle(limits[worker])
        for answer in [answer for answers in gather_at_zero(comm, settled) for answer in answers]:
            if tracker is not None:
                tracker.saver.on_sealed(answer)
        if tracker is not None:
            tracker.saver.conclude()
            if tracker.saver.dumps is not None and tracker.saver.dumps.ends_the_run:
                raise DumpError(tracker.saver.dumps.problem)
    summary: Summary = from_rank_zero(
        me.comm, me.ended or (me.tracker.saver.summary if me.tracker is not None else None)
    )
    if me.dump is not None:  # not before: had rank 0 died, the others would go on, with what is not sealed yet
        me.dump.close()
        me.dump = None
    return summary


def _synchronise(me: Rank) -> None:
    """Collective over `me.comm`. Every rank takes over rank 0's state: fresh, from the checkpoint, or the newest that
    the survivors had.
    """
    state = me.place.state
    newest = from_rank_zero(me.comm, state.as_dict() if me.comm.rank == 0 else None)
    if me.comm.rank != 0:
        state.load(newest)
    state.normaliser.freeze()  # rank 0 may have taken over moments that its last rollout did not see
    assert_in_sync(me.comm, me.place.policy.flat.fingerprint())
    me.synchronised = True


def _begin_moments(me: Rank, workers: Comm) -> None:
    """Collective over `workers` in sync. Before the first moments: all take their sums about the same observation, that
    of the first environment. In async each takes its own, which it sends along.
    """
    normaliser, collector = me.place.learner.normaliser, me.collector
    assert collector is not None
    if normaliser.observations.count == 0:  # the same on all: they have the same state
        first = collector.first_observation()
        if me.plan.config.mode == "sync":
            wait_for_all(workers, lambda: me.watchdog.progress("collect"))
            first = from_rank_zero(workers, first)
        normaliser.start_from(first)


def _work(me: Rank, sums: Allreduce, pool: Pool | None, link: Link) -> None:
    config, place, collector = me.plan.config, me.place, me.collector
    assert collector is not None
    if config.mode == "async":
        async_loop.train_worker(collector, place.learner, place.state, link, config)
        return
    exchange: Exchange
    if config.exchange == "allreduce":
        exchange = AllreduceExchange(sums, place.state, link)
    else:
        exchange = P2PExchange(place.state, link, place.learner)
    if pool is not None:
        exchange = PooledExchange(exchange, pool, place.state, link)
    sync_loop.train_worker(collector, place.learner, place.state, exchange, link, config)
