"""What a rank begins in its role; a role that it does not have stays idle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from dppo.config import SOLVER, LogConfig, TrajectoriesConfig
from dppo.envs.given import Given
from dppo.errors import JobFailure
from dppo.run.members import Member
from dppo.run.rank import Group, Rank
from dppo.run.recorders import Chosen
from dppo.run.roles import begin_collecting, begin_dump, begin_tracking, build_envs_alone, count_ranks, keep_track
from dppo.run.session import run_session
from dppo.rundir.checkpoint import newest_valid
from dppo.rundir.spaces import read_mask_size, read_spaces
from dppo.seams import Recorder, RunInfo
from dppo.trajectories.export.selection import labels_of
from dppo.trajectories.reader import open_trajectories
from dppo.trajectories.validate import validate
from tests.envs import sims_of_others
from tests.ranks import make_plan, make_rank

WRITES = TrajectoriesConfig(enabled=True)


@pytest.fixture
def server(tmp_path: Path) -> Rank:
    """Of three ranks."""
    me = make_rank(make_plan(tmp_path, num_ranks=3))
    begin_tracking(me)
    return me


def test_the_server_makes_the_run_directory_with_what_a_reader_needs(server: Rank, tmp_path: Path) -> None:
    assert {"config.toml", "summary.json", "versions.json", "checkpoints"} <= {path.name for path in tmp_path.iterdir()}
    assert (read_spaces(tmp_path), read_mask_size(tmp_path)) == (server.parts.spaces, 0)
    assert server.server.tracker.workers == [0, 1]
    server.server.tracker.saver.heartbeat("checkpoint")  # the watchdog's


def test_a_worker_begins_at_the_start_of_its_environments(tmp_path: Path) -> None:
    me = make_rank(make_plan(tmp_path, num_ranks=3), rank=2)
    begin_collecting(me)
    collector = me.worker.collector
    assert (collector.worker, collector.first_env, collector.row) == (1, 2, 0)
    assert me.recovery.standby.replay.is_empty
    me.parts.close()


OURS = sims_of_others.__name__
MADE: dict[str, Any] = {"env": f"{OURS}:Tank", "env_kwargs": {"scale": 3.0}, "wrappers": (f"{OURS}:negated",)}


@pytest.mark.parametrize("settings", [{}, MADE], ids=["registered", "made"])
def test_a_worker_of_a_resumed_run_begins_where_the_checkpoint_has_its_environments(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    whole = make_rank(make_plan(tmp_path, total_steps=64, **settings))
    begin_collecting(whole)
    run_session(whole)
    me = make_rank(replace(make_plan(tmp_path, **settings), saved=newest_valid(tmp_path)[0], attempt=2))
    begin_collecting(me)
    np.testing.assert_array_equal(me.worker.collector.first_observation(), whole.worker.collector.first_observation())
    assert me.worker.collector.row == me.recovery.standby.replay.next_row == 32
    for rank in (whole, me):
        rank.parts.close()


@pytest.mark.parametrize(
    ("changes", "followers", "what"),
    [({"env_ranks": 2}, None, "group"), ({"env_ranks": 2}, False, "group"), ({"env": SOLVER}, None, "simulator")],
    ids=["no group", "dead followers", "simulator"],
)
def test_a_rank_that_is_left_without_the_others_of_an_environment_ends_the_run(
    server: Rank, changes: dict[str, Any], followers: bool | None, what: str
) -> None:
    server.plan = replace(server.plan, config=replace(server.plan.config, **changes))
    server.group = Group(make_rank(make_plan(server.plan.run_dir)).group.comm, (Member(0, "host", 1, 1),))
    if followers is not None:
        group: Any = SimpleNamespace(wake=lambda: followers)
        server.parts.given = Given(group=group)
    with pytest.raises(JobFailure, match=f"no {what} is left: --resume goes on from the last checkpoint"):
        build_envs_alone(server)


def test_a_rank_that_is_left_alone_goes_on_with_a_dead_workers_environments(server: Rank) -> None:
    alone = make_rank(make_plan(server.plan.run_dir)).group
    server.group = Group(alone.comm, (Member(0, "host", 1, 1),))
    assert not server.parts.has_envs
    build_envs_alone(server)
    assert server.parts.has_envs and server.parts.worker == 1
    assert (server.worker.collector.worker, server.worker.collector.first_env) == (1, 2)
    server.parts.close()


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("rank", [0, 1])
def test_trajectories_are_written_by_workers_and_where_that_is_asked_for(
    enabled: bool, rank: int, tmp_path: Path
) -> None:
    me = make_rank(make_plan(tmp_path, num_ranks=2, trajectories=replace(WRITES, enabled=enabled)), rank)
    if rank:
        begin_collecting(me)
    begin_dump(me)
    first = me.worker.dump
    assert (first is not None) is (enabled and rank == 1)
    begin_dump(me)
    assert me.worker.dump is first, "the next session goes on with it"
    if first is not None:
        first.close()
    me.parts.close()


def test_a_dump_says_how_its_environments_were_made(tmp_path: Path) -> None:
    me = make_rank(make_plan(tmp_path, trajectories=WRITES, **MADE))
    begin_tracking(me)
    begin_collecting(me)
    begin_dump(me)
    run_session(me)
    me.parts.close()
    labels = labels_of(open_trajectories(tmp_path))
    assert json.loads(labels["config_json"])["env_kwargs"] == {"scale": 3.0}
    spec = json.loads(labels["env_spec"])
    assert (spec["id"], spec["entry_point"], spec["kwargs"]) == (f"{OURS}:Tank", f"{OURS}:Tank", {"scale": 3.0})
    assert [wrapper["entry_point"] for wrapper in spec["additional_wrappers"]] == [f"{OURS}:negated"]
    env = gymnasium.make(EnvSpec.from_json(labels["env_spec"]))
    env.reset(seed=0)
    (first, *_) = open_trajectories(tmp_path).episodes()
    assert env.step(0)[1] == first.rewards[0] == -3.0
    assert validate(tmp_path) == []


def test_how_many_ranks_were_lost_follows_from_how_many_are_left(server: Rank) -> None:
    """However often it is asked, and whatever a server that died meanwhile had counted."""
    losses = server.server.tracker.counters.losses
    losses.ranks_lost = 17
    for size, replaced, lost in ((3, 0, 0), (2, 0, 1), (3, 1, 1), (3, 1, 1), (1, 1, 3)):
        server.group.comm.size = size  # type: ignore[misc]
        server.recovery.replaced = replaced
        count_ranks(server)
        assert (losses.ranks_lost, losses.ranks_replaced) == (lost, replaced)
    assert server.server.summary is not None and server.server.summary.world_size == 1


def test_ranks_that_earlier_attempts_have_lost_stay_lost(tmp_path: Path) -> None:
    before = make_rank(make_plan(tmp_path, total_steps=32))
    begin_collecting(before)
    run_session(before)
    before.parts.close()
    saved = newest_valid(tmp_path)[0]
    assert saved is not None
    saved.counters["losses"] |= {"ranks_lost": 2, "ranks_replaced": 1}
    me = make_rank(replace(make_plan(tmp_path, num_ranks=2), saved=saved, attempt=2))
    begin_tracking(me)
    count_ranks(me)
    losses = me.server.tracker.counters.losses
    assert (losses.ranks_lost, losses.ranks_replaced) == (2, 1)
    me.server.tracker.files.close()


class Starts(Recorder):
    def __init__(self) -> None:
        self.told: list[RunInfo] = []

    def start(self, run: RunInfo) -> None:
        self.told.append(run)


def with_recorders(me: Rank, chosen: Chosen) -> Rank:
    me.services = replace(me.services, recorders=chosen)
    return me


def test_recorders_start_with_the_run_and_anew_on_a_rank_that_takes_over(tmp_path: Path) -> None:
    recorder = Starts()
    me = with_recorders(make_rank(make_plan(tmp_path, num_ranks=3)), Chosen(LogConfig(), [recorder]))
    begin_tracking(me)
    keep_track(me, me.server.tracker, resumed=True)
    first, last = recorder.told[0], recorder.told[-1]
    assert [(told.resumed, told.env_steps, told.world_size) for told in (first, last)] == [(False, 0, 3), (True, 0, 3)]
    assert recorder.told[0].run_dir == tmp_path and recorder.told[0].config["total_steps"] == 96


def test_a_rank_that_takes_over_goes_on_without_recorders_that_it_cannot_make(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = Starts()
    chosen = Chosen(LogConfig(recorder=("nowhere:X",)), [given])
    begin_tracking(with_recorders(make_rank(make_plan(tmp_path)), chosen))
    assert len(given.told) == 1
    assert "dppo: log.recorder='nowhere:X' cannot be imported" in capsys.readouterr().err
