"""A follower's life, with a head that is a list of what it says."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from mpi4py import MPI

from dppo.envs.group_link import Call, Failed
from dppo.errors import Failure, JobFailure, RankFailure, UsageError
from dppo.run.following import Following
from dppo.rundir.summary import Summary
from tests.ranks import make_plan


class Head:
    """The follower's end of a group, whose head says what it is given to say."""

    name, rank, heartbeat = "rank 2 on node1", 2, None

    def __init__(self, *says: tuple[Call, Any]) -> None:
        self._says, self.freed = list(says), 0

    def next_call(self) -> tuple[Call, int, Any]:
        call, arguments = self._says.pop(0)
        return call, 0, arguments

    def answer(self, number: int, failed: Failed | None) -> None:
        assert failed is None

    def is_given_up(self, number: int) -> bool:
        return False

    def open(self, number: int) -> MPI.Intracomm:
        return MPI.COMM_SELF

    def free(self) -> None:
        self.freed += 1


def following(tmp_path: Path, head: Head) -> Following:
    plan = make_plan(tmp_path / "run", env="CartPole-v1", env_ranks=2)
    return Following(plan, head, MPI.COMM_SELF.Dup())  # type: ignore[arg-type]


def test_a_follower_makes_the_calls_until_the_run_has_ended(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    summary = Summary(exit="finished")
    head = Head(
        (Call.MAKE, ({}, {})), (Call.LEAVE, None),  # prepared
        (Call.RESET, {"seed": 3}), (Call.STEP, 1), (Call.CLOSE, None), (Call.LEAVE, summary),
    )  # fmt: skip
    life = following(tmp_path, head).through_the_start()
    assert isinstance(life, Following)
    signal.raise_signal(signal.SIGUSR1)  # for the head and rank 0
    assert life.to_the_end(is_command=False) == summary
    assert head.freed == 1 and signal.getsignal(signal.SIGUSR1) == before


@pytest.mark.parametrize("outcome", [UsageError("no such id"), RankFailure("a death")])
def test_a_start_ends_as_it_does_on_the_head(outcome: Exception, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(type(outcome), match=str(outcome)):
        following(tmp_path, Head((Call.LEAVE, outcome))).through_the_start()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_dry_run_ends_with_its_summary(tmp_path: Path) -> None:
    summary = Summary(exit="finished")
    assert following(tmp_path, Head((Call.LEAVE, summary))).through_the_start() == summary


def test_a_run_that_fails_is_not_told_again(tmp_path: Path) -> None:
    head = Head((Call.LEAVE, None), (Call.LEAVE, Failure("rank 1 failed")))
    life = following(tmp_path, head).through_the_start()
    assert isinstance(life, Following)
    with pytest.raises(JobFailure, match="rank 1 failed") as caught:
        life.to_the_end(is_command=False)
    assert caught.value.said_by_dppo  # type: ignore[attr-defined]
