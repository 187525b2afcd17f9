"""What a rank begins in its role: a worker collects and writes trajectories, the server keeps track of the run."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

from dppo.cluster.startup import forks_end_here
from dppo.config import SOLVER, VERSION
from dppo.envs.cases import names_of
from dppo.envs.maker import EnvMaker
from dppo.errors import Failure, JobFailure
from dppo.run.rank import Rank
from dppo.run.setup import open_tracker, saved_replays, saved_states
from dppo.rundir.spaces import space_to_json, write_spaces
from dppo.seams import RunInfo
from dppo.training.build import build_envs, make_collector
from dppo.training.counters import Losses
from dppo.training.tracker import Tracker
from dppo.trajectories.writer import Labels, TrajectoryWriter


def begin_collecting(me: Rank) -> None:
    """Makes a worker's collector at the start of a run, with its environments where the checkpoint has them."""
    worker, config = me.group.member.worker, me.plan.config
    assert worker is not None
    fraction_done = 0.0 if me.plan.saved is None else min(1.0, me.plan.saved.env_steps / config.total_steps)
    since = time.monotonic()
    with forks_end_here():
        me.worker.start(make_collector(config, me.parts, *saved_states(me.plan, worker), fraction_done))
    if me.timeline is not None and me.plan.saved is not None:
        me.timeline.add("replay", since, time.monotonic())
    standby = me.recovery.standby
    standby.replay = saved_replays(me.plan.saved, [worker], config.num_envs).get(worker, standby.replay)


def build_envs_alone(me: Rank) -> None:
    """Makes environments for the only rank that is left: those of a dead worker, where its last report has them.

    Raises:
      JobFailure: no environment is possible without the ranks that have died.
    """
    worker, env_group = me.group.member.worker, me.parts.given.group
    assert worker is not None
    needs_group = me.plan.config.own_env_ranks > 1
    if me.plan.config.env == SOLVER or (needs_group and (env_group is None or not env_group.wake())):
        what = "group" if needs_group else "simulator"
        raise JobFailure(Failure(f"no {what} is left: --resume goes on from the last checkpoint", stalled=True))
    build_envs(me.parts, me.plan.config, worker)
    me.worker.start(make_collector(me.plan.config, me.parts, *me.server.tracker.hand_over(worker)))


def begin_dump(me: Rank) -> None:
    """Makes a worker's trajectory writer, once rank 0 has opened the run directory. It continues behind the segments
    that are visible there.
    """
    config, envs, worker = me.plan.config, me.parts.envs, me.group.member.worker
    settings = config.trajectories
    if not (settings.enabled and me.worker.collects) or me.worker.dump is not None:
        return
    assert envs is not None and worker is not None
    described = EnvMaker(config.env, config.env_kwargs, config.wrappers).to_json()
    labels = Labels(
        me.plan.run_dir, me.plan.run_id, me.plan.attempt, worker + me.plan.first_rank, me.group.comm.size,
        worker * config.num_envs, json.dumps(asdict(config)), described,
        space_to_json(envs.observation_space), space_to_json(envs.action_space), VERSION, envs.agents,
        names_of(config.cases, worker * config.num_envs, config.num_envs, max(1, len(envs.agents))),
    )  # fmt: skip
    is_clipped = me.parts.policy.distribution.log_std_size > 0
    share = None if settings.max_gb is None else settings.max_gb * 1e9 / max(1, me.plan.num_ranks - 1)
    me.worker.dump = TrajectoryWriter(
        labels, me.parts.seeds.of if envs.replayable else None, has_raw_actions=is_clipped,
        segment_bytes=int(settings.segment_mb * 2**20), every=settings.every, compression=settings.compression,
        max_bytes=share, required=settings.required,
        wait_s=min(10.0, 0.3 * config.checkpoint.grace_s),
    )  # fmt: skip


def begin_tracking(me: Rank) -> None:
    """Makes the run directory on rank 0, or continues in it, and makes the tracker."""
    services, hosts = me.services, [member.host for member in me.group.members]
    tracker = open_tracker(
        me.plan, me.parts.state, me.group.workers, hosts, services.preemption, services.console, services.started,
        services.threads,
    )  # fmt: skip
    keep_track(me, tracker, resumed=me.plan.saved is not None)
    write_spaces(me.plan.run_dir, *me.parts.spaces, me.parts.policy.mask_size)
    tracker.end_if_over()


def keep_track(me: Rank, tracker: Tracker, *, resumed: bool) -> None:
    """Makes this rank, the server, keep track of the run from now on, and starts the recorders."""
    tracker.saver.heartbeat = tracker.evaluations.heartbeat = me.services.watchdog.heartbeat
    tracker.saver.timeline = me.timeline
    recorders, plan = tracker.files.recorders, me.plan
    recorders.add(*me.services.recorders.make(me.services.console.warn))  # rank 0 has made them before
    size, env_steps = me.group.comm.size, me.parts.state.env_steps
    recorders.start(RunInfo(plan.run_dir, plan.run_id, asdict(plan.config), size, resumed, env_steps))
    me.server.open(tracker)


def count_ranks(me: Rank) -> None:
    """Counts the lost ranks from the ranks that are left, on rank 0 after a regrouping. So the number is right whatever
    a server that died meanwhile had counted.
    """
    saved, replaced, size = me.plan.saved, me.recovery.replaced, me.group.comm.size
    before = Losses(**({} if saved is None else saved.counters.get("losses", {})))
    losses = me.server.tracker.counters.losses
    losses.ranks_replaced = before.ranks_replaced + replaced
    losses.ranks_lost = before.ranks_lost + me.plan.num_ranks + replaced - size
    me.server.tracker.regroup(size, me.group.workers)
