"""The recovery loop: who goes on after a death, and how a rank ends that cannot go on."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from dppo.errors import DumpError, Failure, JobFailure, RankFailure, SavingError, UsageError, WorkerError
from dppo.run import loop
from dppo.run.loop import SAID, train_on
from dppo.run.rank import Rank
from dppo.run.roles import begin_tracking
from dppo.rundir.summary import Summary
from tests.ranks import make_plan, make_rank
from tests.run_directory import summary


@pytest.fixture
def me(tmp_path: Path) -> Iterator[Rank]:
    me = make_rank(make_plan(tmp_path))
    yield me
    me.parts.close()


Script = Callable[..., list[str]]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Sessions and recoveries end as the test says, by an exception or with what they return, in this order. Returns
    what the loop did.
    """

    def play(*outcomes: tuple[str, Any]) -> list[str]:
        left, done = list(outcomes), []

        def of(what: str) -> Any:
            def act(*arguments: object) -> Any:
                name, outcome = left.pop(0)
                assert name == what, f"expected {name}, and it was {what}"
                done.append(f"{what} after {arguments[1]}" if len(arguments) > 1 else what)
                if isinstance(outcome, BaseException):
                    raise outcome
                return outcome

            return act

        monkeypatch.setattr(loop, "run_session", of("session"))
        monkeypatch.setattr(loop, "recover", of("recovery"))
        return done

    return play


def test_a_run_is_trained_to_its_end_and_everything_is_closed(me: Rank, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    me.services.preemption.install()
    ended = train_on(me, is_command=False)
    assert (ended.exit, ended.env_steps, summary(tmp_path)["exit"]) == ("finished", 96, "finished")
    assert not me.parts.has_envs
    assert signal.getsignal(signal.SIGTERM) == before


def test_after_a_death_the_rank_recovers_and_begins_another_session(me: Rank, script: Script) -> None:
    done = script(("session", RankFailure("first")), ("recovery", None), ("session", Summary(exit="finished")))
    assert train_on(me, is_command=False).exit == "finished"
    assert done == ["session", "recovery after first", "session"]


def test_a_second_death_within_a_recovery_is_recovered_from_as_well(me: Rank, script: Script) -> None:
    done = script(
        ("session", RankFailure("first")), ("recovery", RankFailure("second")), ("recovery", RankFailure("third")),
        ("recovery", None), ("session", RankFailure("fourth")), ("recovery", None),
        ("session", Summary(exit="finished")),
    )  # fmt: skip
    train_on(me, is_command=False)
    assert done == [
        "session", "recovery after first", "recovery after second", "recovery after third", "session",
        "recovery after fourth", "session",
    ]  # fmt: skip


def test_environments_begin_once_and_not_again_after_a_death(me: Rank, script: Script) -> None:
    script(("session", RankFailure("x")), ("recovery", None), ("session", Summary(exit="finished")))
    begun: list[Rank] = []
    begin = loop.begin_collecting
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "begin_collecting", lambda me: (begun.append(me), begin(me)))
        train_on(me, is_command=False)
    assert begun == [me]


def test_wrong_use_is_left_to_the_caller(me: Rank, script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script(("session", UsageError("no room")))
    with pytest.raises(UsageError, match="no room") as raised:
        train_on(me, is_command=False)
    assert not hasattr(raised.value, SAID) and capsys.readouterr().err == ""
    assert not me.parts.has_envs


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ZeroDivisionError("no flow"), "ZeroDivisionError: no flow"),
        (SystemExit(3), "SystemExit: 3"),  # an environment's
        (WorkerError("rank 2 on b failed"), "rank 2 on b failed"),
        (JobFailure(Failure("states differ", stalled=True)), "states differ"),
        (DumpError("row 3 is lost"), "row 3 is lost (--trajectories.required)"),
        (SavingError("the disk is full"), "the disk is full"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_rank_alone_fails_of_is_said_once_and_in_the_summary(
    error: BaseException, text: str, me: Rank, script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin_tracking(me)
    script(("session", error))
    with pytest.raises(type(error)) as raised:
        train_on(me, is_command=False)
    assert getattr(raised.value, SAID)
    assert capsys.readouterr().err.count(text) == 1
    said = summary(tmp_path)
    assert said["exit"] == "failed" and text in said["error"]
    assert said["stalled"] is isinstance(error, JobFailure)


def test_a_failure_before_the_run_was_opened_leaves_no_summary(me: Rank, script: Script, tmp_path: Path) -> None:
    script(("session", OSError("nothing works")))
    with pytest.raises(OSError, match="nothing works"):
        train_on(me, is_command=False)
    assert not (tmp_path / "summary.json").exists()


# -- where others would go on --------------------


def worker_of_three(run_dir: Path, **changes: Any) -> Rank:
    return make_rank(make_plan(run_dir, num_ranks=3, **changes), rank=1)


class Died(BaseException):
    """This process has died."""


def die() -> NoReturn:
    raise Died


@pytest.fixture
def survives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deaths are survived; a rank that waits for the others at its end has died."""
    monkeypatch.setattr(loop, "survives_deaths", lambda: True)
    monkeypatch.setattr(loop.leaving, "die", die)
    monkeypatch.setattr(loop.ulfm, "wait_for_all", lambda comm, meanwhile: die())


AGREED = JobFailure(Failure("all have agreed to end"))


def test_by_default_all_hear_of_a_failing_worker_as_they_would_hear_of_a_death(
    tmp_path: Path, script: Script, survives: None
) -> None:
    """`recover` tells them why, and it ends the job."""
    me = worker_of_three(tmp_path)
    done = script(("session", ZeroDivisionError("no flow")), ("recovery", AGREED))
    with pytest.raises(Died):
        train_on(me, is_command=False)
    assert me.recovery.failure is not None and "no flow" in me.recovery.failure.text
    assert len(done) == 2 and "rank 1 on node1 failed in iteration 1" in done[1]


def test_with_continue_a_failing_worker_dies_and_the_others_go_on(
    tmp_path: Path, script: Script, survives: None, capsys: pytest.CaptureFixture[str]
) -> None:
    me = worker_of_three(tmp_path, on_worker_error="continue", exchange="p2p")
    script(("session", ZeroDivisionError("no flow")))
    with pytest.raises(Died):
        train_on(me, is_command=False)
    assert "no flow" in capsys.readouterr().err and me.recovery.failure is None


def test_required_trajectories_that_are_lost_end_the_run_all_the_same(
    tmp_path: Path, script: Script, survives: None
) -> None:
    me = worker_of_three(tmp_path, on_worker_error="continue", exchange="p2p")
    script(("session", DumpError("row 3 is lost")), ("recovery", AGREED))
    with pytest.raises(Died):
        train_on(me, is_command=False)
    assert me.recovery.failure is not None and "--trajectories.required" in me.recovery.failure.text
