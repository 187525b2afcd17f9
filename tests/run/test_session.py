"""One session of training: one rank alone is server and worker, through a link that is a function call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dppo.config import TrajectoriesConfig
from dppo.errors import UsageError
from dppo.run import session
from dppo.run.rank import Rank
from dppo.run.roles import begin_collecting
from dppo.run.session import run_session
from dppo.rundir import paths
from dppo.rundir.checkpoint import newest_valid
from dppo.rundir.summary import Summary
from dppo.training import async_loop
from dppo.training.sync_allreduce import AllreduceCoordinator
from dppo.training.sync_p2p import P2PCoordinator
from tests.ranks import make_plan, make_rank
from tests.run_directory import metric_lines, summary


def begin(run_dir: Path, **changes: Any) -> Rank:
    me = make_rank(make_plan(run_dir, **changes))
    begin_collecting(me)
    return me


@pytest.fixture
def me(tmp_path: Path) -> Iterator[Rank]:
    me = begin(tmp_path)
    yield me
    me.parts.close()


@pytest.mark.parametrize(
    ("mode", "exchange", "coordinator"),
    [
        ("sync", "allreduce", AllreduceCoordinator),
        ("sync", "p2p", P2PCoordinator),
        ("async", "p2p", async_loop.AsyncCoordinator),
    ],
)
def test_a_session_trains_until_the_run_has_ended(mode: str, exchange: str, coordinator: type, tmp_path: Path) -> None:
    me = begin(tmp_path, mode=mode, exchange=exchange)
    ended = run_session(me)
    assert (ended.exit, ended.env_steps) == ("finished", 96)
    assert summary(tmp_path)["exit"] == "finished"
    assert isinstance(me.server.coordinator, coordinator)
    assert me.recovery.synchronised
    saved, skipped = newest_valid(tmp_path)
    assert saved is not None and skipped == [] and saved.env_steps == 96
    np.testing.assert_array_equal(saved.state["parameters"], me.parts.policy.flat.vector)
    me.parts.close()


def test_both_ways_to_average_give_one_rank_the_same_numbers(tmp_path: Path) -> None:
    lines = []
    for exchange in ("allreduce", "p2p"):
        me = begin(tmp_path / exchange, exchange=exchange)
        run_session(me)
        me.parts.close()
        lines.append([{k: v for k, v in line.items() if k != "late"} for line in metric_lines(tmp_path / exchange)])
    assert lines[0] == lines[1] and len(lines[0]) == 3


def test_a_run_that_has_ended_is_not_trained_again(me: Rank) -> None:
    me.server.ended = Summary(exit="finished", env_steps=5)
    assert run_session(me) is me.server.ended
    assert not me.server.is_open and me.worker.collector.row == 0


def test_a_second_session_after_the_end_says_how_the_run_ended(me: Rank) -> None:
    first = run_session(me)
    assert run_session(me) == first
    assert me.worker.collector.row == 48


def test_a_run_directory_that_cannot_be_written_is_the_users_to_mend(me: Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(me: Rank) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(session, "begin_tracking", refuse)
    with pytest.raises(UsageError, match=r"--run-dir .* cannot be written .*No space left.*make room there"):
        run_session(me)
    assert me.worker.collector.row == 0


def test_a_server_that_is_left_alone_steps_the_environments_of_a_worker(tmp_path: Path) -> None:
    """As after a death of all others: it has been the server, and never had any."""
    me = begin(tmp_path)
    me.parts.close()
    me.worker.stop()
    assert not me.parts.has_envs
    session.begin_tracking(me)
    assert run_session(me).exit == "finished"
    assert me.worker.collector.row == 48
    me.parts.close()


def test_a_request_to_leave_ends_the_session_with_all_saved(me: Rank) -> None:
    me.services.preemption.request("SIGUSR1")
    ended = run_session(me)
    assert (ended.exit, ended.preempted_by) == ("preempted", "SIGUSR1")
    assert newest_valid(me.plan.run_dir)[0] is not None


def test_what_ended_an_earlier_attempt_by_a_stall_is_forgotten(me: Rank, tmp_path: Path) -> None:
    path = tmp_path / paths.ENDED_BY_STALL
    path.parent.mkdir()
    path.write_text("rank 3 made no progress")
    run_session(me)
    assert not path.exists()


def test_trajectories_are_on_disk_when_the_summary_is_given(tmp_path: Path) -> None:
    me = begin(tmp_path, trajectories=TrajectoriesConfig(enabled=True))
    run_session(me)
    assert me.worker.dump is None, "it is closed"
    saved = newest_valid(tmp_path)[0]
    assert saved is not None and saved.next_segments == {0: 1}
    assert len(list(tmp_path.glob("trajectories/*/seg_*.h5"))) == 1
    me.parts.close()


def test_moments_are_taken_about_what_the_first_environment_shows_first(
    me: Rank, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, begun = me.worker.collector.first_observation().copy(), []
    monkeypatch.setattr(me.parts.policy.inputs, "start_from", lambda mean: begun.append(mean.copy()))
    run_session(me)
    np.testing.assert_array_equal(begun[0], first)


def test_a_resumed_run_keeps_the_moments_that_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    me = begin(tmp_path, total_steps=64)
    run_session(me)
    me.parts.close()
    saved = newest_valid(tmp_path)[0]
    again = make_rank(replace(make_plan(tmp_path), saved=saved, attempt=2))
    begin_collecting(again)
    monkeypatch.setattr(again.parts.policy.inputs, "start_from", lambda observation: pytest.fail("begun anew"))
    assert again.worker.collector.row == 32
    assert run_session(again).env_steps == 96
    assert [line["iteration"] for line in metric_lines(tmp_path)] == ["1", "2", "3"]
    again.parts.close()


def test_every_rank_takes_over_the_whole_state_of_rank_0_its_metrics_included(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was one boundary behind had older metrics. When another rank died before the next boundary, the
    states were compared byte by byte, and the job ended: "the states differ".
    """
    plan = make_plan(tmp_path, 3)
    giver, mine = make_rank(plan, rank=1), make_rank(plan, rank=2)
    rng = np.random.default_rng(0)
    giver.parts.state.last_metrics[:] = rng.normal(size=len(giver.parts.state.last_metrics))
    giver.parts.state.flat.vector += 0.5
    giver.parts.state.iteration = 17
    for number, rank in enumerate((giver, mine)):  # constant buffers of a network of the user's own
        rank.parts.state.flat.constants = {"drawn": np.full(3, number)}
    given = giver.parts.state.packed(), giver.parts.state.flat.constants
    monkeypatch.setattr(session, "from_rank_zero", lambda comm, value: given)
    monkeypatch.setattr(session, "assert_in_sync", lambda comm, fingerprint: None)
    session.synchronise(mine)
    np.testing.assert_array_equal(mine.parts.state.packed(), giver.parts.state.packed())
    assert mine.parts.state.flat.fingerprint() == giver.parts.state.flat.fingerprint()
    for rank in (giver, mine):
        rank.parts.close()
