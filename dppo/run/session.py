"""One session of training: rank 0 serves, the others work; a single rank does both."""

from __future__ import annotations

import contextlib

from dppo.cluster.startup import forks_end_here
from dppo.comm.allreduce import Allreduce
from dppo.comm.collectives import assert_in_sync, from_rank_zero, gather_at_zero, total
from dppo.comm.learner_groups import Pool, make_pool
from dppo.comm.link import Link, LocalLink, MPILink
from dppo.comm.mpi import Comm
from dppo.comm.server import serve
from dppo.comm.ulfm import wait_for_all
from dppo.comm.waiting import ask_for_longer_turns
from dppo.comm.wakeup import Doorbell, make_doorbell
from dppo.errors import DumpError, UsageError
from dppo.run.leave import leave_alone
from dppo.run.placement import place_network
from dppo.run.rank import Rank
from dppo.run.roles import begin_dump, begin_tracking, build_envs_alone
from dppo.run.timelines import compare_clocks, note_all
from dppo.rundir import paths
from dppo.rundir.states import remove_states
from dppo.rundir.summary import Summary
from dppo.seams import Exchange
from dppo.training import async_loop, sync_loop
from dppo.training.coordinator import BaseCoordinator
from dppo.training.sync_allreduce import AllreduceCoordinator, AllreduceExchange
from dppo.training.sync_p2p import P2PCoordinator, P2PExchange
from dppo.training.sync_pooled import PooledExchange, pool_bytes


def run_session(me: Rank) -> Summary:
    """Collective over the group. Runs one session: rank 0 serves, the others work; a single rank does both, through a
    link that is a function call. Returns the run's summary.

    Raises:
      UsageError: on all ranks: the run directory cannot be written, and nothing was left there.
    """
    group, comm, heartbeat = me.group, me.group.comm, me.services.watchdog.heartbeat
    wait_for_all(comm, lambda: heartbeat("start"))  # from here on no rank is at an earlier stage
    problem = _open_run(me)
    if group.is_alone and me.server.is_open and not me.worker.collects:
        build_envs_alone(me)
    wait_for_all(comm, lambda: heartbeat("start"))
    if (problem := from_rank_zero(comm, problem)) is not None:
        raise UsageError(problem)
    if from_rank_zero(comm, me.server.has_ended):
        return _summary(me)
    begin_dump(me)
    synchronise(me)
    compare_clocks(me)
    workers = _workers(me)
    with contextlib.ExitStack() as at_end:  # the next session, or a caller after an error, must not inherit this
        pool, computing = _make_pool(me, workers, at_end)
        computes = me.worker.collects and (pool is None or pool.computes)
        place_network(me, computing, computes=computes)
        num_computing = total(comm, int(computes))
        doorbell = make_doorbell(comm)
        if doorbell.crowded and me.worker.collects:
            ask_for_longer_turns()
        _keep_first_boundary(me, computes=computes)
        comm.Barrier()  # training time starts when every worker can step
        if group.is_server:
            me.server.begin_session(_make_coordinator(me, num_computing))
        if me.worker.collects:
            link = _make_link(me, doorbell)
            sums = Allreduce(computing, survives=me.plan.survives)
            me.recovery.retired.append(sums)
            note_all(me, link, sums)
            with forks_end_here():
                _begin_moments(me, workers)
                _train(me, sums, pool, link)
            if me.timeline is not None:
                me.timeline.flush()  # before the server joins all of them
            link.bye()
        else:
            serve(comm, me.server.coordinator, 1, doorbell, heartbeat, me.timeline)
            if me.server.coordinator.abandoned:
                leave_alone(me)
    return _summary(me)


def _open_run(me: Rank) -> str | None:
    """Opens the run on the server, if no server has opened it. Returns why it cannot, if the user can repair that."""
    if not me.group.is_server or me.server.is_open or me.server.has_ended:
        return None
    try:
        begin_tracking(me)
    except OSError as error:
        return f"--run-dir {me.plan.run_dir} cannot be written ({error}): make room there, or choose another --run-dir"
    with contextlib.suppress(OSError):
        (me.plan.run_dir / paths.ENDED_BY_STALL).unlink()
    return None


def _workers(me: Rank) -> Comm:
    """Collective over the group. Returns the communicator of the ranks that exchange directly."""
    group, comm = me.group, me.group.comm
    if me.plan.config.mode != "sync":
        return comm
    workers = comm.Split(color=0 if group.is_server and not group.is_alone else 1, key=comm.rank)
    group.others.append(workers)
    wait_for_all(comm, lambda: None)  # all have it now, so that all can revoke it
    return workers


def _make_pool(me: Rank, workers: Comm, at_end: contextlib.ExitStack) -> tuple[Pool | None, Comm]:
    """Collective over `workers`. Returns this worker's pool, if there is one, and the communicator of the workers that
    compute.
    """
    config = me.plan.config
    if config.mode != "sync" or config.server.drop:  # a pooled worker cannot be late by itself
        return None, workers
    room = pool_bytes(me.parts.learner, me.parts.state, config)
    gpus = [gpu.identity for gpu in me.parts.gpus]
    pool, computing = make_pool(workers, room, me.group.workers, me.group.others, gpus)
    if pool is not None and me.plan.survives:
        at_end.callback(pool.give_up)
    return pool, computing


def _make_coordinator(me: Rank, num_computing: int) -> BaseCoordinator:
    """Makes rank 0's part of the loop."""
    config, parts, group, tracker = me.plan.config, me.parts, me.group, me.server.tracker
    names = [str(member) for member in group.members[1:]]
    if config.mode == "async":
        return async_loop.AsyncCoordinator(
            tracker, parts.state, parts.learner, config, group.workers, survives=me.survives, names=names
        )
    if config.exchange == "allreduce":
        return AllreduceCoordinator(tracker, parts.state, config, group.workers, survives=me.survives, names=names)
    return P2PCoordinator(
        tracker, parts.state, parts.learner, config, group.workers, num_computing, survives=me.survives,
        totals=me.recovery.standby.totals, names=names,
    )  # fmt: skip


def _make_link(me: Rank, doorbell: Doorbell) -> Link:
    """Makes a worker's link to rank 0."""
    asked, heartbeat, dump = me.services.preemption.asked, me.services.watchdog.heartbeat, me.worker.dump
    if me.group.is_server:
        return LocalLink(me.server.coordinator, asked, heartbeat, dump)
    standby = me.recovery.standby if me.plan.survives else None
    return MPILink(me.group.comm, asked, heartbeat, doorbell=doorbell, standby=standby, dump=dump)


def _keep_first_boundary(me: Rank, *, computes: bool) -> None:
    """Keeps the boundary to which a worker that computes steps back if a rank dies in the first iteration
    (sync/allreduce).
    """
    standby, state = me.recovery.standby, me.parts.state
    standby.boundary = None
    if me.plan.survives and computes and me.plan.config.exchange == "allreduce":
        packed = state.packed()
        standby.pass_boundary(state.iteration, packed, state.layout.head_bytes)


def _summary(me: Rank) -> Summary:
    """Collective over the group. Returns the summary of a run that has ended, once the trajectories that its last
    boundary has seen are written.
    """
    comm, server, dump = me.group.comm, me.server, me.worker.dump
    if me.plan.config.trajectories.enabled:
        rows = from_rank_zero(comm, server.tracker.saver.boundary.rows if server.is_open else {})
        worker, settled = me.group.member.worker, []
        if dump is not None and worker in rows:  # as a rule all is on disk since the goodbye
            settled = dump.settle(rows[worker])
        answers = gather_at_zero(comm, settled)
        if server.is_open:
            saver = server.tracker.saver
            for answer in [answer for of_rank in answers for answer in of_rank]:
                saver.on_sealed(answer)
            saver.conclude()
            if saver.dumps is not None and saver.dumps.ends_the_run:
                raise DumpError(saver.dumps.problem)
    summary: Summary = from_rank_zero(comm, server.summary)
    if server.is_open:  # by now no worker saves further states, and the last checkpoint has its own
        remove_states(me.plan.run_dir)
    if dump is not None:  # not before: if rank 0 died, the others would continue and need what is not sealed yet
        dump.close()
        me.worker.dump = None
    return summary


def synchronise(me: Rank) -> None:
    """Collective over the group. Gives every rank rank 0's state: a fresh one, that of the checkpoint, or the newest
    that the survivors had.
    """
    state, comm = me.parts.state, me.group.comm
    given = (state.packed(), state.flat.constants) if me.group.is_server else None
    newest, constants = from_rank_zero(comm, given)
    if not me.group.is_server:
        state.unpack(newest)  # with the metrics: after a death, states of one boundary are compared as a whole
        state.flat.set_constants(constants)
    state.begin_iteration()  # rank 0 may have taken over moments that its last rollout did not see
    assert_in_sync(comm, me.parts.policy.flat.fingerprint())
    me.recovery.synchronised = True


def _begin_moments(me: Rank, workers: Comm) -> None:
    """Collective over `workers` in sync. Sets the observation about which the sums for the first moments are taken: in
    sync that of the first environment, for all; in async each worker's own, which travels with its sums.
    """
    inputs = me.parts.policy.inputs
    if inputs.now.count == 0:  # the same on all: they have the same state
        first = inputs.numbers(me.worker.collector.first_observation()[None])[0]
        if me.plan.config.mode == "sync":
            wait_for_all(workers, lambda: me.services.watchdog.heartbeat("collect"))
            first = from_rank_zero(workers, first)
        inputs.start_from(first)


def _train(me: Rank, sums: Allreduce, pool: Pool | None, link: Link) -> None:
    """Runs a worker's loop until the run has ended."""
    config, collector, learner, state = me.plan.config, me.worker.collector, me.parts.learner, me.parts.state
    if config.mode == "async":
        async_loop.train_worker(collector, learner, state, link, config)
        return
    exchange: Exchange
    if config.exchange == "allreduce":
        exchange = AllreduceExchange(sums, state, link)
    else:
        exchange = P2PExchange(state, link)
    if pool is not None:
        exchange = PooledExchange(exchange, pool, state, link)
    sync_loop.train_worker(collector, learner, state, exchange, link, config)
