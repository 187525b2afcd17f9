"""How a rank leaves by itself: stuck, or with workers that are stuck."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest

from dppo.config import LogConfig
from dppo.errors import EXIT_FAILED, EXIT_STALLED, SavingError
from dppo.run import leave
from dppo.run.leave import leave_alone, make_watchdog
from dppo.run.rank import Group, Rank
from dppo.run.roles import begin_tracking
from dppo.rundir import paths
from tests.ranks import make_plan, make_rank
from tests.run_directory import summary

SOON = LogConfig(tensorboard=False, stall_after_s=0.0, stall_abort_s=0.05)


class Left(BaseException):
    """This process has left."""


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The ways in which a process can end are noted, and it goes on: the first counts."""
    ends: list[tuple[str, int]] = []
    monkeypatch.setattr(leave.guard, "leave_at_once", lambda code: ends.append(("leaves", code)))
    monkeypatch.setattr(leave, "end_job", lambda comm, code: ends.append(("ends the job", code)))
    monkeypatch.setattr(leave, "die", lambda: ends.append(("dies", 0)))
    return ends


def stall(run_dir: Path, ends: list[tuple[str, int]], *, has_folder: bool = True, **changes: Any) -> None:
    """Rank 2's watchdog hears nothing of it until it has ended."""
    plan = make_plan(run_dir, num_ranks=3, log=SOON, **changes)
    watchdog = make_watchdog(plan, cast(Any, SimpleNamespace()), 2)
    if has_folder:
        watchdog.write_to(run_dir / paths.STALLS)
    deadline = time.monotonic() + 10
    while not ends and time.monotonic() < deadline:
        time.sleep(0.01)
    watchdog.stop()


def test_a_stuck_rank_leaves_where_deaths_end_the_job(tmp_path: Path, ends: list[tuple[str, int]]) -> None:
    stall(tmp_path, ends)
    assert ends[0] == ("leaves", EXIT_STALLED)


def test_where_they_are_survived_a_stuck_rank_says_why_the_job_ends(
    tmp_path: Path, ends: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leave, "survives_deaths", lambda: True)
    stall(tmp_path, ends)
    assert ends[0] == ("dies", 0)
    assert "rank 2 on " in (tmp_path / paths.ENDED_BY_STALL).read_text()


def test_the_only_rank_ends_the_job_as_a_simulator_may_be_beside_it(
    tmp_path: Path, ends: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leave, "survives_deaths", lambda: True)
    stall(tmp_path, ends, survives=False)
    assert ends[0] == ("ends the job", EXIT_STALLED)


def test_with_continue_it_only_dies(
    tmp_path: Path, ends: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leave, "survives_deaths", lambda: True)
    stall(tmp_path, ends, on_worker_error="continue", exchange="p2p")
    assert ends[0] == ("dies", 0)
    assert not (tmp_path / paths.ENDED_BY_STALL).exists()


def test_before_there_is_a_run_directory_a_stuck_rank_ends_the_job(
    tmp_path: Path, ends: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leave, "survives_deaths", lambda: True)
    stall(tmp_path, ends, has_folder=False)
    assert ends[0] == ("ends the job", EXIT_STALLED)


# -- rank 0 without its workers --------------------


@pytest.fixture
def me(tmp_path: Path) -> Rank:
    """The server of a run that was preempted, with workers that are stuck."""
    me = make_rank(make_plan(tmp_path, num_ranks=3))
    begin_tracking(me)
    me.services.preemption.request("SIGUSR1")
    return me


def codes_of(me: Rank) -> list[int]:
    """Leaves alone. Returns the code."""
    codes: list[int] = []

    def abort(code: int) -> NoReturn:
        codes.append(code)
        raise Left

    me.group.comm.Abort = abort  # type: ignore[method-assign]
    with pytest.raises(Left):
        leave_alone(me)
    return codes


def test_a_run_that_is_saved_ends_with_its_own_code(
    me: Rank, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    me.server.tracker.saver.finish("preempted")
    assert codes_of(me) == [75]
    assert summary(tmp_path)["exit"] == "preempted"
    assert "some workers did not leave in time: the job ends without them, exit code 75" in capsys.readouterr().err


def test_a_run_that_cannot_be_saved_has_failed(
    me: Rank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise SavingError("the disk is full")

    monkeypatch.setattr(me.server.tracker.saver, "conclude", refuse)
    assert codes_of(me) == [EXIT_FAILED]
    assert (summary(tmp_path)["exit"], summary(tmp_path)["error"]) == ("failed", "the disk is full")
    assert "the disk is full" in capsys.readouterr().err


def test_where_deaths_are_survived_only_stuck_ranks_of_this_node_are_killed(
    me: Rank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MPI_Abort would end some ranks only; those on other nodes end with the launcher."""
    killed: list[int] = []
    server, first, second = me.group.members
    me.group = Group(me.group.comm, (server, replace(first, host=server.host, pid=12345), replace(second, pid=54321)))
    me.server.tracker.saver.finish("preempted")

    def leave_with(code: int) -> NoReturn:
        raise Left(code)

    monkeypatch.setattr(leave, "survives_deaths", lambda: True)
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(pid))
    monkeypatch.setattr(os, "_exit", leave_with)
    with pytest.raises(Left, match="75"):
        leave_alone(me)
    assert killed == [12345]
