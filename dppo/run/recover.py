"""How those that are left go on when a rank has died. run/command.py's recovery loop calls `survive`.

The survivors shrink and tell each other how far they are; what the new server lacks, the others give it; then it has
the newest state that is left, and all take that over, as at the start of a run.
"""

from __future__ import annotations

import time
import zlib

from dppo.comm.collectives import from_rank, gather_all, gather_at_zero
from dppo.comm.mpi import Comm
from dppo.comm.ulfm import end_job, regroup
from dppo.console import say
from dppo.data import Report
from dppo.errors import Failure, JobFailure, RankFailure, SavingError
from dppo.run.members import ENDED_BY_STALL, Rank, assign_roles, leave_alone, replace_lost
from dppo.run.setup import say_failed
from dppo.run.takeover import Contribution, Status, drifted, givers, offered, serve
from dppo.training.coordinator import ABORT_MARGIN_S, GIVE_UP, LEAVE
from dppo.trajectories.writer import Sealed

FAILURE_NOTICE_S = 5.0
"""How long a failing rank waits for the others, so that all end in good order, before it ends the job by force."""


def recover(me: Rank, cause: RankFailure) -> None:
    """Collective over the survivors of `me.comm`, each of which has noticed a death. After it `me` is a member
    of a group that can go on; the state that counts is its rank 0's.

    Raises:
      RankFailure: another one has died meanwhile: call it again.
      JobFailure: a rank has failed in a way that ends the job; on all ranks alike.
    """
    since = time.monotonic()
    assert me.standby is not None
    updates_seen = _step_back(me)
    if me.tracker is not None and me.coordinator is not None:
        me.coordinator.settle()
        me.standby.totals = me.coordinator.totals
    state, standby = me.place.state, me.standby
    serving, all_step = me.tracker is not None, me.plan.config.exchange == "allreduce"
    mirror = standby.mirror
    packed = offered(state, mirror, is_server=serving)
    status = Status(
        me.member, serving, state.progress_of(packed), zlib.crc32(packed.tobytes()), updates_seen,
        None if mirror is None else (mirror.iteration, mirror.updates), me.failure or _ended_by_stall(me),
        me.synchronised,
    )  # fmt: skip

    def consult(comm: Comm) -> tuple[list[Status], int, list[Contribution], bool]:
        statuses = gather_all(comm, status)
        giver, mirror_giver = givers(statuses, all_step=all_step)
        if any(w.failure for w in statuses):
            return statuses, giver, [], True
        alike = True
        if all_step and (apart := drifted(statuses)):
            given = from_rank(comm, giver, packed)
            alike = all(gather_all(comm, status not in apart or state.differ_by_rounding(packed, given)))
        server_lives = any(w.is_server for w in statuses)
        iteration = statuses[giver].progress[0]
        contributions = Contribution(
            [*standby.reports, *_untold(me, iteration)], standby.heads, packed if comm.rank == giver else None,
            standby.totals, mirror if comm.rank == mirror_giver and not server_lives else None,
            None if serving else standby.replay, _discarded(me, iteration, comm.rank == 0),
        )  # fmt: skip
        return statuses, giver, gather_at_zero(comm, contributions), alike

    def meanwhile() -> None:
        me.watchdog.progress("recovery")
        _end_what_cannot_go_on(me, time.monotonic() - since)

    before = me.members
    me.comm, (statuses, giver, contributions, alike) = regroup(me.comm, me.others, consult, meanwhile)
    me.others = []
    failures = [w.failure for w in statuses if w.failure is not None]
    if failures:
        raise JobFailure(failures[0])
    apart = ", ".join(str(w.member) for w in drifted(statuses)) if all_step else ""
    if not alike:
        text = f"after a death, the states of {apart} differ: --resume goes on from the last checkpoint"
        raise JobFailure(Failure(text, stalled=True))
    me.members = assign_roles([w.member for w in statuses])
    present = {(w.member.host, w.member.pid) for w in statuses}
    lost = [member for member in before if (member.host, member.pid) not in present]
    me.fruitless = 0 if lost else me.fruitless + 1
    if me.fruitless > 5:
        text = f"{me.member}: MPI reports a death again and again, but nobody is missing: {cause}"
        raise JobFailure(Failure(text, stalled=True))
    if me.collector is not None:
        iteration = statuses[giver].progress[0]
        for report in _untold(me, iteration):
            standby.add_report(report)
            if me.dump is not None and me.collector.last is not None:
                me.dump.add(me.collector.last)
        me.collector.keep_last(keep=_is_unused(me, iteration), as_it_is=_was_told(me))
    settled: list[Sealed] = []
    if me.dump is not None and me.member.worker != me.place.worker:  # it is no worker any more
        settled = me.dump.settle(None)
        me.dump.close()
        me.dump = None
    if me.comm.rank == 0:
        serve(me, statuses, giver, contributions, lost, time.monotonic() - since)
        if apart:
            from_whom = statuses[giver].member
            me.console.warn(f"the states of {apart} differed by rounding: all go on with that of {from_whom}")
        if me.tracker is not None:
            for answer in settled:
                me.tracker.saver.on_sealed(answer)
    if me.plan.config.respawn:
        replace_lost(me)
    me.place.worker = me.member.worker
    if me.member.worker is None and me.collector is not None:  # a server steps nothing
        me.place.close()
        me.collector = None


def _end_what_cannot_go_on(me: Rank, waited_s: float) -> None:
    """While the slowest survivor is waited for: it may be stuck for ever, and this rank may be asked to leave."""
    stall_abort_s = me.plan.config.log.stall_abort_s
    failure = me.failure if waited_s > FAILURE_NOTICE_S else None
    if 0 < stall_abort_s < waited_s - ABORT_MARGIN_S:
        failure = Failure(f"after a death, a rank did not answer for {waited_s:.0f} s (--log.stall-abort-s)", True)
    if failure is not None:
        say(failure.text)
        say_failed(me.plan, failure)
        end_job(me.comm, 1)
    if me.tracker is not None and me.preemption.past(GIVE_UP) and not me.tracker.saver.has_ended:
        try:
            me.tracker.saver.finish("preempted")
        except SavingError as error:
            say(str(error))
            me.tracker.saver.fail(Failure(str(error)))
            end_job(me.comm, 1)
    if me.tracker is not None and me.tracker.saver.has_ended and me.preemption.past(LEAVE):
        leave_alone(me)


def _step_back(me: Rank) -> int:
    """sync/allreduce: to the last boundary. Returns the updates that this rank knew of."""
    state = me.place.state
    updates = state.updates
    assert me.standby is not None
    if me.plan.config.exchange == "allreduce":
        if me.standby.boundary is not None:
            state.unpack(me.standby.boundary)
        state.forget_unfinished()
    return updates


def _was_told(me: Rank) -> bool:
    """Whether rank 0 was sent a report of the last rollout."""
    assert me.collector is not None and me.standby is not None
    last, reports = me.collector.last, me.standby.reports
    return last is None or bool(reports and reports[-1].first_row == last.first_row)


def _is_unused(me: Rank, iteration: int) -> bool:
    """Whether the last rollout can still be learnt from, if the run goes on in `iteration`. In async one that was told
    of counts as used: its gradients may have been.
    """
    assert me.collector is not None
    if me.collector.last is None:
        return False
    if me.plan.config.mode == "sync":
        return me.collector.last_iteration == iteration
    return not _was_told(me)


def _untold(me: Rank, iteration: int) -> list[Report]:
    """Of a rollout that was cut short and comes too late for its iteration (`--server.drop`): its steps were made."""
    collector = me.collector
    if collector is None or collector.last is None or _was_told(me) or _is_unused(me, iteration):
        return []
    collector.discounted_returns(collector.last)
    return [collector.report(collector.last, 0.0, 0.0, 0.0)]


def _discarded(me: Rank, iteration: int, becomes_server: bool) -> int:
    """Transitions of the last rollout that nobody will learn from because of the death: of a worker that becomes the
    server, and of one that comes too late.
    """
    if me.collector is None or me.collector.last is None:
        return 0
    lost = becomes_server if _is_unused(me, iteration) else not _was_told(me)
    return me.collector.last.num_steps if lost else 0


def _ended_by_stall(me: Rank) -> Failure | None:
    try:
        return Failure((me.plan.run_dir / "stalls" / ENDED_BY_STALL).read_text().strip(), stalled=True)
    except OSError:
        return None
