"""How those that are left go on when a rank has died: here one is left, of two or three."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest

from dppo.errors import EXIT_FAILED, Failure, JobFailure, RankFailure
from dppo.run import recover as module
from dppo.run.rank import Rank
from dppo.run.recover import FAILURE_NOTICE_S, MOST_FRUITLESS, recover
from dppo.run.roles import begin_collecting, begin_tracking, build_envs_alone
from dppo.run.session import run_session
from dppo.rundir import paths
from dppo.training.standby import Mirror
from dppo.training.sync_p2p import P2PCoordinator
from tests.ranks import left_alone, make_members, make_plan, make_rank
from tests.run_directory import metric_lines, summary

CAUSE = RankFailure("a peer has died")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    left_alone(monkeypatch)


def make_server(run_dir: Path, num_ranks: int = 2, **changes: Any) -> Rank:
    """The server of a run that has begun; nothing was collected yet."""
    me = make_rank(make_plan(run_dir, num_ranks, **changes))
    begin_tracking(me)
    me.recovery.synchronised = True
    me.server.tracker.start_training()
    return me


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Rank]:
    me = make_server(tmp_path)
    yield me
    me.parts.close()


def losses(me: Rank) -> tuple[int, int]:
    counted = me.server.tracker.counters.losses
    return counted.ranks_lost, counted.env_steps_lost


# -- the server is left --------------------


def test_a_server_that_is_left_alone_is_a_worker_too_and_trains_to_the_end(
    server: Rank, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recover(server, CAUSE)
    assert server.group.is_alone and server.parts.worker == 0
    assert losses(server) == (1, 16 * 2), "the rollout of the dead worker"
    assert run_session(server).exit == "finished"
    assert [line["ranks_lost"] for line in metric_lines(tmp_path)] == ["1"] * 3
    assert summary(tmp_path)["world_size"] == 1
    said = capsys.readouterr().err
    assert "rank 1 on node1 has died in iteration 1" in said and "1 rank(s) go on after" in said


def test_a_second_death_within_a_recovery_is_counted_once_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes when the first was counted already: the recovery begins again."""
    me = make_server(tmp_path, num_ranks=3, respawn=True)
    deaths = iter([RankFailure("while it is replaced"), None])

    def replace_lost(me: Rank) -> None:
        if (death := next(deaths)) is not None:
            raise death

    monkeypatch.setattr(module, "replace_lost", replace_lost)
    with pytest.raises(RankFailure, match="while it is replaced"):
        recover(me, CAUSE)
    before = losses(me)
    recover(me, CAUSE)
    assert before == losses(me) == (2, 2 * 32)
    assert me.recovery.fruitless == 1


def test_reports_that_wait_for_their_iteration_are_not_lost(tmp_path: Path) -> None:
    """sync/p2p: the updates of an iteration are made, and the server has answered them."""
    me = make_server(tmp_path, exchange="p2p")
    worker = make_rank(make_plan(tmp_path, 2, exchange="p2p"), rank=1)
    begin_collecting(worker)
    collector, learner = worker.worker.collector, worker.parts.learner
    rollout = collector.collect(16, 0)
    batch = learner.prepare(rollout, collector.discounted_returns(rollout))
    coordinator = P2PCoordinator(me.server.tracker, me.parts.state, me.parts.learner, me.plan.config, [0], 1)
    me.server.begin_session(coordinator)
    coordinator.on_report(collector.report(rollout, 0.0, 0.0, 0.0))
    coordinator.on_sums(0, 0, batch.statistics)
    recover(me, CAUSE)
    np.testing.assert_array_equal(me.recovery.standby.totals, batch.statistics)
    assert me.server.tracker.counters.pending_rollouts == 1
    assert (me.parts.state.round, me.parts.state.iteration) == (1, 0)
    assert me.server.unclosed == [], "the session is over"
    for rank in (me, worker):
        rank.parts.close()


# -- a worker is left --------------------


def make_worker(run_dir: Path, **changes: Any) -> Rank:
    """Rank 1 of a run, which has collected a rollout that was told of."""
    me = make_rank(make_plan(run_dir, 2, **changes), rank=1)
    begin_collecting(me)
    me.recovery.synchronised = True
    collector = me.worker.collector
    rollout = collector.collect(16, 0)
    collector.discounted_returns(rollout)
    me.recovery.standby.add_report(collector.report(rollout, 0.0, 0.0, 0.0))
    return me


def test_a_worker_that_is_left_takes_over_from_a_dead_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the checkpoint that it wrote at the start: there was no copy yet."""
    make_server(tmp_path).server.tracker.files.close()
    me = make_worker(tmp_path)
    recover(me, CAUSE)
    assert me.server.is_open and me.group.is_alone and me.group.is_server
    assert me.worker.collects and me.parts.worker == 0
    assert losses(me) == (1, 0), "it goes on with the rollout that it has"
    assert run_session(me).exit == "finished"
    assert me.worker.collector.row == 48, "the rollout was not collected again"
    said = capsys.readouterr().err
    assert "rank 0 on node0 has died" in said and "rank 1 on node1 is the server now" in said


def test_a_standbys_copy_brings_back_the_dead_servers_counters(tmp_path: Path) -> None:
    server = make_server(tmp_path)
    saved = server.server.tracker.saver.boundary.counters | {"next_episode": 77}
    server.server.tracker.files.close()
    me = make_worker(tmp_path)
    me.recovery.standby.keep_mirror(Mirror(0, 0, np.empty(0, np.uint8), saved).to_message())
    recover(me, CAUSE)
    assert me.server.tracker.counters.next_episode == 77
    me.server.tracker.files.close()
    me.parts.close()


def test_where_the_server_had_ended_the_run_nothing_is_left_to_do(tmp_path: Path) -> None:
    server = make_server(tmp_path)
    server.server.tracker.saver.finish("preempted")
    me = make_worker(tmp_path)
    recover(me, CAUSE)
    assert me.server.has_ended and not me.server.is_open
    assert run_session(me).exit == "preempted"
    me.parts.close()


def test_an_allreduce_worker_steps_back_to_the_last_boundary(tmp_path: Path) -> None:
    """What it has begun since is not on all survivors."""
    make_server(tmp_path).server.tracker.files.close()
    me = make_worker(tmp_path)
    state, before = me.parts.state, me.parts.state.flat.vector.copy()
    me.recovery.standby.pass_boundary(0, state.packed(), state.layout.head_bytes)
    state.flat.vector += 1.0
    state.updates += 3
    recover(me, CAUSE)
    np.testing.assert_array_equal(state.flat.vector, before)
    assert state.updates == 0
    assert me.server.tracker.counters.losses.updates_lost == 3
    me.server.tracker.files.close()
    me.parts.close()


# -- what ends the job --------------------


def test_the_failure_of_a_survivor_ends_the_job_for_all(server: Rank) -> None:
    server.recovery.failure = Failure("rank 0 on node0 failed")
    with pytest.raises(JobFailure, match="rank 0 on node0 failed"):
        recover(server, CAUSE)
    assert losses(server) == (0, 0)


def test_a_rank_that_was_stuck_has_left_word_of_it(server: Rank, tmp_path: Path) -> None:
    (tmp_path / paths.ENDED_BY_STALL).parent.mkdir(exist_ok=True)
    (tmp_path / paths.ENDED_BY_STALL).write_text("rank 1 made no progress for 60 s\n")
    with pytest.raises(JobFailure, match="rank 1 made no progress") as raised:
        recover(server, CAUSE)
    assert raised.value.failure.stalled


def test_deaths_of_nobody_again_and_again_end_the_job(tmp_path: Path) -> None:
    me = make_server(tmp_path, num_ranks=2)
    recover(me, CAUSE)
    for _ in range(MOST_FRUITLESS):
        recover(me, CAUSE)
    with pytest.raises(JobFailure, match="nobody is missing: a peer has died") as raised:
        recover(me, CAUSE)
    assert raised.value.failure.stalled
    me.server.tracker.files.close()


def test_a_survivor_that_never_answers_ends_the_job_where_a_rank_fails(
    server: Rank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []

    def end_job(comm: object, code: int) -> NoReturn:
        ended.append(code)
        raise SystemExit(code)

    clock = iter(range(0, 10**6, int(FAILURE_NOTICE_S) + 1))
    monkeypatch.setattr(module, "end_job", end_job)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    server.recovery.failure = Failure("rank 0 on node0 failed")
    with pytest.raises(SystemExit):
        recover(server, CAUSE)
    assert ended == [EXIT_FAILED] and summary(tmp_path)["error"] == "rank 0 on node0 failed"


def test_asked_to_leave_in_a_recovery_the_server_saves_and_leaves_alone(
    server: Rank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the grace period is nearly over."""

    def leave_alone(me: Rank) -> NoReturn:
        raise SystemExit(75)

    monkeypatch.setattr(module, "leave_alone", leave_alone)
    server.services.preemption.request("SIGUSR1")
    server.services.preemption.grace_s = 1e-9
    with pytest.raises(SystemExit):
        recover(server, CAUSE)
    assert summary(tmp_path)["exit"] == "preempted"


def test_a_server_for_which_others_work_steps_nothing(server: Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was left alone, and stepped environments, until replacements came."""
    recover(server, CAUSE)
    build_envs_alone(server)
    members = make_members(2)
    monkeypatch.setattr(module, "assign_roles", lambda left: members)
    recover(server, CAUSE)
    assert not server.worker.collects and not server.parts.has_envs and server.parts.worker is None
