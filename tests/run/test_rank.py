"""What a rank consists of, and that it is idle where it has no role."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dppo.cluster import startup
from dppo.cluster.watchdog import Watchdog
from dppo.console import Console
from dppo.run.rank import Group, Server, Worker, begin_services
from dppo.run.roles import begin_collecting, begin_tracking
from dppo.rundir.summary import Summary
from tests.ranks import make_members, make_plan, make_rank


def group(size: int, rank: int) -> Group:
    return Group(cast(Any, SimpleNamespace(size=size, rank=rank)), tuple(make_members(size)))


def test_the_first_of_a_group_serves_and_the_others_work() -> None:
    first, last = group(3, 0), group(3, 2)
    assert (first.is_server, last.is_server) == (True, False)
    assert (first.member.rank, last.member.rank) == (0, 2)
    assert first.workers == last.workers == [0, 1]
    assert not first.is_alone


def test_one_rank_alone_is_server_and_worker() -> None:
    alone = group(1, 0)
    assert alone.is_alone and alone.is_server and alone.workers == [0]


def test_a_worker_is_idle_until_it_collects_and_after_it_has_become_the_server(tmp_path: Path) -> None:
    worker = Worker()
    assert not worker.collects and worker.num_last_steps == 0
    with pytest.raises(AssertionError, match="steps no environments"):
        worker.collector  # noqa: B018
    me = make_rank(make_plan(tmp_path))
    begin_collecting(me)
    assert me.worker.collects and me.worker.num_last_steps == 0
    me.worker.collector.collect(4, 0)
    assert me.worker.num_last_steps == 4 * me.plan.config.num_envs
    me.worker.stop()
    assert not me.worker.collects and me.worker.num_last_steps == 0
    me.parts.close()


def test_a_server_is_idle_until_the_run_is_opened() -> None:
    server = Server()
    assert not (server.is_open or server.has_ended) and server.summary is None
    assert server.settle() is None and server.unclosed == []
    for part, why in (("tracker", "keep track"), ("coordinator", "does not serve")):
        with pytest.raises(AssertionError, match=why):
            getattr(server, part)


def test_a_run_that_a_dead_server_has_ended_has_ended() -> None:
    server = Server()
    server.ended = Summary(exit="finished")
    assert server.has_ended and server.summary is server.ended and not server.is_open


def test_a_session_is_settled_as_often_as_ranks_die_and_then_forgotten(tmp_path: Path) -> None:
    me = make_rank(make_plan(tmp_path, num_ranks=2))
    begin_tracking(me)
    settled = []
    coordinator: Any = SimpleNamespace(settle=lambda: settled.append(1), totals="sums", unclosed=["report"])
    me.server.begin_session(coordinator)
    assert me.server.coordinator is coordinator
    assert [me.server.settle(), me.server.settle()] == ["sums", "sums"] and len(settled) == 2
    assert me.server.unclosed == ["report"]
    me.server.end_session()
    assert me.server.settle() is None and me.server.unclosed == []
    me.server.tracker.files.close()


@pytest.mark.parametrize(("num_ranks", "survives", "goes_on"), [(2, True, True), (2, False, False), (1, True, False)])
def test_a_run_survives_deaths_only_where_others_are_left(
    num_ranks: int, survives: bool, goes_on: bool, tmp_path: Path
) -> None:
    me = make_rank(make_plan(tmp_path, num_ranks, survives=survives))
    assert me.survives is goes_on
    me.parts.close()


@pytest.mark.parametrize("early", [False, True])
def test_from_the_start_of_its_services_a_signal_is_a_request(
    early: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "early_signals", ["SIGTERM"] if early else [])
    watchdog = Watchdog(None, 3, 0.0, 0.0)
    services = begin_services(make_plan(tmp_path), Console(60.0, enabled=False), watchdog, time.monotonic())
    try:
        assert services.preemption.requested is early
        assert watchdog.has_folder and services.threads >= 1
        os.kill(os.getpid(), signal.SIGUSR1)
        assert services.preemption.asked()
        assert services.preemption.reason == ("a signal at start-up" if early else "SIGUSR1")
    finally:
        services.preemption.uninstall()
        watchdog.stop()
