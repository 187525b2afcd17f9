"""How the survivors continue after a rank has died; the recovery loop in run/loop.py calls `recover`.

The survivors shrink and tell each other how far they are. They give the new server what it lacks, so that it has the
newest state that is left. All ranks then take over this state, as at the start of a run.
"""

from __future__ import annotations

import time
import zlib

from dppo.comm.collectives import from_rank, gather_all, gather_at_zero
from dppo.comm.leaving import end_job
from dppo.comm.mpi import Comm
from dppo.comm.ulfm import regroup
from dppo.console import say
from dppo.data import Report
from dppo.errors import EXIT_FAILED, Failure, JobFailure, RankFailure, SavingError
from dppo.run.leave import leave_alone
from dppo.run.members import assign_roles
from dppo.run.rank import Group, Rank
from dppo.run.respawn import replace_lost
from dppo.run.setup import say_failed
from dppo.run.takeover import Contribution, Status, drifted, givers, offered, take_over
from dppo.rundir import paths
from dppo.rundir.summary import PREEMPTED
from dppo.seams import Sealed
from dppo.training.coordinator import ABORT_MARGIN_S, GIVE_UP, LEAVE
from dppo.training.packing import moment_of

FAILURE_NOTICE_S = 5.0
"""Seconds that a failing rank waits for the others, so that all end in good order, before it ends the job by force."""
MOST_FRUITLESS = 5
"""The largest number of recoveries in a row in which nobody was missing."""


def recover(me: Rank, cause: RankFailure) -> None:
    """Collective over the survivors of the group, each of which has noticed a death. Gives `me` a new group that can
    continue; the state of its rank 0 is the valid one.

    Raises:
      RankFailure: another rank has died meanwhile: call `recover` again.
      JobFailure: a rank has failed in a way that ends the job; raised on all ranks.
    """
    since = time.monotonic()
    updates_seen = _step_back(me)
    state, standby, recovery, before = me.parts.state, me.recovery.standby, me.recovery, me.group.members
    serving, all_step = me.server.is_open, me.plan.config.exchange == "allreduce"
    if serving:
        standby.totals = me.server.settle()
    mirror = standby.mirror
    packed = offered(state, mirror, is_server=serving)
    status = Status(
        me.group.member, serving, moment_of(packed), zlib.crc32(packed.tobytes()), updates_seen,
        None if mirror is None else (mirror.iteration, mirror.updates), recovery.failure or _ended_by_stall(me),
        recovery.synchronised,
    )  # fmt: skip

    def consult(comm: Comm) -> tuple[list[Status], int, list[Contribution], bool]:
        statuses = gather_all(comm, status)
        giver, mirror_giver = givers(statuses, all_step=all_step)
        if any(w.failure for w in statuses):
            return statuses, giver, [], True
        alike = True
        if all_step and (apart := drifted(statuses)):
            given = from_rank(comm, giver, packed)
            alike = all(gather_all(comm, status not in apart or state.layout.differ_by_rounding(packed, given)))
        server_lives = any(w.is_server for w in statuses)
        iteration = statuses[giver].moment[0]
        contributions = Contribution(
            [*standby.reports, *_untold(me, iteration)], standby.boundary_heads, packed if comm.rank == giver else None,
            standby.totals, mirror if comm.rank == mirror_giver and not server_lives else None,
            None if serving else standby.replay, _discarded(me, iteration, comm.rank == 0 and comm.size > 1),
        )  # fmt: skip
        return statuses, giver, gather_at_zero(comm, contributions), alike

    def meanwhile() -> None:
        me.services.watchdog.heartbeat("recovery")
        _end_what_cannot_go_on(me, time.monotonic() - since)

    comm, (statuses, giver, contributions, alike) = regroup(me.group.comm, me.group.others, consult, meanwhile)
    me.group = Group(comm, tuple(assign_roles([w.member for w in statuses])))
    for failure in [w.failure for w in statuses if w.failure is not None]:
        raise JobFailure(failure)
    apart = ", ".join(str(w.member) for w in drifted(statuses)) if all_step else ""
    if not alike:
        text = f"after a death, the states of {apart} differ: --resume goes on from the last checkpoint"
        raise JobFailure(Failure(text, stalled=True))
    present = {(w.member.host, w.member.pid) for w in statuses}
    lost = [member for member in before if (member.host, member.pid) not in present]
    recovery.fruitless = 0 if lost else recovery.fruitless + 1
    if recovery.fruitless > MOST_FRUITLESS:
        text = f"{me.group.member}: MPI reports a death again and again, but nobody is missing: {cause}"
        raise JobFailure(Failure(text, stalled=True))
    settled = _keep_last_rollout(me, statuses[giver].moment[0])
    if me.group.is_server:
        take_over(me, statuses, giver, contributions, lost, time.monotonic() - since)
        if apart:
            from_whom = statuses[giver].member
            me.services.console.warn(f"the states of {apart} differed by rounding: all go on with that of {from_whom}")
        if me.server.is_open:
            for answer in settled:
                me.server.tracker.saver.on_sealed(answer)
    if me.plan.config.respawn:
        replace_lost(me)
    me.parts.worker = me.group.member.worker
    if not me.group.member.is_worker and me.worker.collects:  # a server steps nothing
        me.parts.close()
        me.worker.stop()
        if me.parts.given.group is not None:
            me.parts.given.group.rest()


def _keep_last_rollout(me: Rank, iteration: int) -> list[Sealed]:
    """Keeps what this rank has collected for `iteration`, in which the run continues. Returns what a rank that becomes
    the server has written of its trajectories.
    """
    worker = me.worker
    if worker.collects:
        for report in _untold(me, iteration):
            me.recovery.standby.add_report(report)
            if worker.dump is not None and worker.collector.last is not None:
                worker.dump.add(worker.collector.last)
        worker.collector.keep_last(keep=_is_unused(me, iteration), as_it_is=_was_told(me))
    if worker.dump is None or me.group.member.worker == me.parts.worker:
        return []
    settled = worker.dump.settle(None)
    worker.dump.close()
    worker.dump = None
    return settled


def _end_what_cannot_go_on(me: Rank, waited_s: float) -> None:
    """Ends the job where the slowest survivor seems stuck for ever, where this rank has failed or is asked to leave."""
    comm, server, preemption = me.group.comm, me.server, me.services.preemption
    stall_abort_s = me.plan.config.log.stall_abort_s
    failure = me.recovery.failure if waited_s > FAILURE_NOTICE_S else None
    if 0 < stall_abort_s < waited_s - ABORT_MARGIN_S:
        failure = Failure(f"after a death, a rank did not answer for {waited_s:.0f} s (--log.stall-abort-s)", True)
    if failure is not None:
        say(failure.text)
        say_failed(me.plan, failure)
        end_job(comm, EXIT_FAILED)
    if server.is_open and preemption.past(GIVE_UP) and not server.has_ended:
        try:
            server.tracker.saver.finish(PREEMPTED)
        except SavingError as error:
            say(str(error))
            server.tracker.saver.fail(Failure(str(error)))
            end_job(comm, EXIT_FAILED)
    if server.is_open and server.has_ended and preemption.past(LEAVE):
        leave_alone(me)


def _step_back(me: Rank) -> int:
    """Steps back to the last boundary, in sync/allreduce. Returns the number of updates that this rank knew of."""
    state = me.parts.state
    updates = state.updates
    if me.plan.config.exchange == "allreduce":
        if me.recovery.standby.boundary is not None:
            state.unpack(me.recovery.standby.boundary)
        state.forget_unfinished()
    return updates


def _was_told(me: Rank) -> bool:
    """Returns whether a report of the last rollout was sent to rank 0."""
    last, reports = me.worker.collector.last, me.recovery.standby.reports
    return last is None or bool(reports and reports[-1].first_row == last.first_row)


def _is_unused(me: Rank, iteration: int) -> bool:
    """Returns whether updates can still use the last rollout, if the run continues in `iteration`. In async, a rollout
    that was reported counts as used: its gradients may have been used.
    """
    if me.worker.collector.last is None:
        return False
    if me.plan.config.mode == "sync":
        return me.worker.collector.last_iteration == iteration
    return not _was_told(me)


def _untold(me: Rank, iteration: int) -> list[Report]:
    """Returns the report of a rollout that was cut short and is too late for its iteration (`--server.drop`), because
    its steps were made.
    """
    if not me.worker.num_last_steps or _was_told(me) or _is_unused(me, iteration):
        return []
    collector = me.worker.collector
    assert collector.last is not None
    collector.discounted_returns(collector.last)
    return [collector.report(collector.last, 0.0, 0.0, 0.0)]


def _discarded(me: Rank, iteration: int, becomes_server: bool) -> int:
    """Returns how many transitions of the last rollout no update will use because of the death: those of a worker that
    becomes the server, and those of a rollout that comes too late.
    """
    if not me.worker.num_last_steps:
        return 0
    lost = becomes_server if _is_unused(me, iteration) else not _was_told(me)
    return me.worker.num_last_steps if lost else 0


def _ended_by_stall(me: Rank) -> Failure | None:
    try:
        return Failure((me.plan.run_dir / paths.ENDED_BY_STALL).read_text().strip(), stalled=True)
    except OSError:
        return None
