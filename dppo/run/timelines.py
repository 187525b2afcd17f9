"""A rank's timeline (--log.trace): who notes what, whose clocks are compared, and when RUN/trace.json is written."""

from __future__ import annotations

import sys

from dppo.cluster.timeline import Timeline
from dppo.comm.allreduce import Allreduce
from dppo.comm.clocks import clock_offset
from dppo.comm.link import Link
from dppo.run.rank import Rank
from dppo.rundir.traces import part_writer, write_trace


def begin_timeline(me: Rank) -> None:
    """Makes this rank's timeline, if the run wants one and there is none yet."""
    plan, rank = me.plan, me.group.member.rank
    if plan.config.log.trace and me.timeline is None:
        me.timeline = Timeline(rank, part_writer(plan.run_dir, plan.attempt, rank), plan.attempt)


def compare_clocks(me: Rank) -> None:
    """Collective over the group, if the run wants timelines. Gives each timeline the job's time."""
    if me.timeline is not None:
        me.timeline.offset = clock_offset(me.group.comm, me.timeline.offset)


def note_all(me: Rank, link: Link, sums: Allreduce) -> None:
    """Has a worker's parts note what they do."""
    link.timeline = sums.timeline = me.worker.collector.timeline = me.timeline


def end_timeline(me: Rank) -> None:
    """Writes what this rank has noted and, on the server, what all ranks have. Never raises: the run has ended."""
    if me.timeline is None:
        return
    me.timeline.flush()
    if not me.group.is_server:
        return
    try:
        write_trace(me.plan.run_dir)
    except (OSError, ValueError) as error:
        print(f"dppo: the timeline could not be written: {error}", file=sys.stderr, flush=True)
