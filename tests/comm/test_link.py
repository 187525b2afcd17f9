"""A worker's end of the conversation with rank 0; with at most MPI's way from a rank to itself."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from mpi4py import MPI

from dppo.comm import link as link_module
from dppo.comm.link import CROWDED_POLL_S, NOTHING, POLL_S, LocalLink, MPILink
from dppo.comm.waiting import Backoff
from dppo.data import LastEpisodes, Report
from dppo.models.flat import FlatParameters
from dppo.seams import Answer, Sealed, Tag
from dppo.training.standby import Standby
from tests.conversation import Bell, Enough, Recorder


def test_everything_that_a_worker_says_arrives_as_it_was_said(recorder: Recorder, link: LocalLink) -> None:
    flat = FlatParameters({"w": (2,)}, num_sums=1)
    flat.summed[:] = 1.5, 2.5, 3.0
    link.sums(7, np.array([0.1, 0.2]))
    link.gradient(2**40, flat.summed)
    link.boundary(np.array([1, 2], np.uint8))
    link.failure("rank 3 on höst failed")
    link.stopped = True  # goodbye is said only after the order to stop
    link.bye()
    assert recorder.heard == [
        ("sums", 0, 7, [0.1, 0.2]),
        ("gradient", 0, 2**40, [1.5, 2.5, 3.0], np.float32),
        ("boundary", 0, [1, 2]),
        ("failure", 0, "rank 3 on höst failed"),
        ("bye", 0),
    ]


def test_a_sent_gradient_does_not_change_with_the_next_one(recorder: Recorder, link: LocalLink) -> None:
    kept: list[np.ndarray] = []
    recorder.on_gradient = lambda worker, version, summed: kept.append(summed) or []  # type: ignore[method-assign,func-returns-value]
    flat = FlatParameters({"w": (2,)}, num_sums=0)
    flat.summed[:] = 1
    link.gradient(0, flat.summed)
    flat.summed[:] = 2
    assert kept[0].tolist() == [1, 1]


def test_a_report_arrives_whole(recorder: Recorder, link: LocalLink) -> None:
    numbers = np.arange(3)
    report = Report(
        0, 8, 100, 24, [], numbers, numbers, numbers, numbers, numbers, numbers, numbers, numbers,
        LastEpisodes.unknown(3),
        collect_s=0.5, learn_s=0.25, exchange_s=0.125,
    )  # fmt: skip
    link.report(report, cast(Any, None))
    heard = recorder.heard[0][1]
    assert (heard.first_env, heard.first_row, heard.env_steps, heard.collect_s) == (8, 100, 24, 0.5)
    np.testing.assert_array_equal(heard.env_actions, numbers)


def test_replies_are_taken_in_order_and_not_waited_for_unless_asked(recorder: Recorder, link: LocalLink) -> None:
    assert link.reply(wait=False) is None
    recorder.answers = [Answer(0, Tag.REPLY, np.array([n], np.uint8)) for n in (1, 2)]
    first, second = link.reply(wait=True), link.reply(wait=False)
    assert first is not None and second is not None
    assert (first.tolist(), second.tolist()) == ([1], [2])


def test_the_order_to_stop_ends_every_wait(recorder: Recorder, link: LocalLink) -> None:
    recorder.answers = [Answer(0, Tag.STOP, NOTHING)]
    assert link.reply(wait=True) is None
    assert link.stopped
    assert link.verdict()


def test_a_reply_that_came_before_the_stop_is_still_there(recorder: Recorder, link: LocalLink) -> None:
    recorder.answers = [Answer(0, Tag.REPLY, NOTHING), Answer(0, Tag.STOP, NOTHING)]
    assert link.reply(wait=True) is not None
    assert link.stopped


def test_each_boundary_has_a_verdict_of_its_own(recorder: Recorder, link: LocalLink) -> None:
    recorder.answers = [Answer(0, Tag.CONTINUE, NOTHING)]
    link.boundary(NOTHING)
    assert not link.verdict()
    link.boundary(NOTHING)
    polls = itertools.count()
    recorder.idle = lambda: [Answer(0, Tag.STOP, NOTHING)] if next(polls) == 3 else []  # type: ignore[method-assign]
    assert link.verdict()


def test_rank_0_is_told_once_of_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "POLL_S", 0.0)  # it looks each time
    recorder, asked = Recorder(), [False]
    link = LocalLink(recorder, lambda: asked[0])
    assert not link.stop_requested()
    asked[0] = True
    for _ in range(3):
        assert not link.stop_requested()
    assert recorder.heard == [("signal",)]
    recorder.answers = [Answer(0, Tag.STOP, NOTHING)]
    assert link.stop_requested()


def test_rank_0_is_told_of_a_signal_that_comes_while_a_worker_waits_for_its_neighbours() -> None:
    recorder = Recorder()
    link = LocalLink(recorder, lambda: True)
    for _ in range(3):
        link.keep_moving()
    assert recorder.heard == [("signal",)]


def test_time_spent_waiting_is_counted(recorder: Recorder, link: LocalLink) -> None:
    ready = time.monotonic() + 0.05
    recorder.idle = lambda: [Answer(0, Tag.REPLY, NOTHING)] if time.monotonic() > ready else []  # type: ignore[method-assign]
    link.reply(wait=True)
    assert link.waited_s > 0.04


# -- the bell --------------------


def link_to_itself(bell: Any, asked_to_leave: Callable[[], bool] = lambda: False) -> MPILink:
    return MPILink(MPI.COMM_SELF, asked_to_leave, doorbell=bell)


def test_whatever_a_worker_sends_rings_the_servers_bell_once_it_is_on_its_way() -> None:
    bell = Bell()
    link = link_to_itself(bell)
    link.boundary(np.array([1, 2, 3], np.uint8))
    link.failure("x")
    assert bell.taken == [(0, Tag.BOUNDARY, [1, 2, 3]), (0, Tag.FAILURE, [ord("x")])]


@pytest.mark.parametrize("reaches", [True, False])
def test_a_worker_listens_long_only_where_the_server_rings(reaches: bool, now: list[float]) -> None:
    bell = Bell(crowded=True, reaches=reaches, now=now)
    link = link_to_itself(bell)
    with pytest.raises(Enough):
        link.reply(wait=True)
    if reaches:
        assert bell.waits == [Backoff.SAFETY_S] * 100
    else:
        assert bell.waits[0] < bell.waits[-1] == 0.002
        assert bell.waits == sorted(bell.waits)


# -- asked before every row --------------------


def test_the_order_to_stop_is_seen_at_the_next_look(recorder: Recorder, link: LocalLink, now: list[float]) -> None:
    assert not link.stop_requested()
    recorder.answers = [Answer(0, Tag.STOP, NOTHING)]
    now[0] += 0.9 * POLL_S
    assert not link.stop_requested()
    now[0] += 0.2 * POLL_S
    assert link.stop_requested()


@pytest.mark.parametrize(
    ("bell", "interval_s"),
    [(None, POLL_S), (Bell(), POLL_S), (Bell(crowded=True), CROWDED_POLL_S)],
    ids=["no bell", "a core each", "crowded"],
)
def test_a_look_is_taken_once_in_an_interval_however_many_rows_there_are(
    bell: Bell | None, interval_s: float, now: list[float]
) -> None:
    """At MPI's queues, and at whether this process was asked to leave; where ranks outnumber cores, less often."""
    looked: list[str] = []
    queue: Any = SimpleNamespace(Iprobe=lambda *_: bool(looked.append("queue")))  # type: ignore[func-returns-value]
    link = MPILink(queue, lambda: bool(looked.append("signal")), doorbell=cast(Any, bell))  # type: ignore[func-returns-value]
    for _ in range(95):  # over 9.4 intervals
        assert not link.stop_requested()
        now[0] += 0.1001 * interval_s
    assert looked == ["signal", "queue"] * 10


def test_a_stop_that_came_by_another_way_needs_no_look(recorder: Recorder, link: LocalLink, now: list[float]) -> None:
    assert not link.stop_requested()
    recorder.answers = [Answer(0, Tag.STOP, NOTHING)]
    link.reply(wait=False)
    assert link.stop_requested()


def test_progress_is_told_of_every_row(recorder: Recorder, now: list[float]) -> None:
    phases: list[str] = []
    link = LocalLink(recorder, lambda: False, phases.append)
    for _ in range(5):
        link.interrupted()
    assert phases == ["collect"] * 5


# -- what is kept, and written --------------------


class Dump:
    """A trajectory writer that seals at once."""

    def __init__(self) -> None:
        self.rollouts: list[object] = []
        self.sealed: list[Sealed] = []
        self.waited = False

    def add(self, rollout: object) -> None:
        self.rollouts.append(rollout)

    def seal(self, row: int) -> None:
        self.sealed.append(Sealed(1, row, 1, row))

    def wait(self) -> None:
        self.waited = True

    def answers(self) -> list[Sealed]:
        sealed, self.sealed = self.sealed, []
        return sealed


def report(first_row: int = 0) -> Report:
    numbers = np.arange(3)
    return Report(
        0, 8, first_row, 24, [], numbers, numbers, numbers, numbers, numbers, numbers, numbers, numbers,
        LastEpisodes.unknown(3),
        collect_s=0.5, learn_s=0.25, exchange_s=0.125,
    )  # fmt: skip


def test_the_order_to_seal_is_answered_once_it_is_done(recorder: Recorder) -> None:
    dump = Dump()
    link = LocalLink(recorder, lambda: False, dump=dump)
    recorder.answers = [Answer(0, Tag.SEAL, np.array([48], np.int64).view(np.uint8))]
    link.keep_moving()
    assert recorder.heard == []
    link.keep_moving()
    assert recorder.heard == [("sealed", Sealed(1, 48, 1, 48))]


def test_what_is_sealed_at_the_end_is_told_before_the_goodbye(recorder: Recorder) -> None:
    dump = Dump()
    link = LocalLink(recorder, lambda: False, dump=dump)
    dump.seal(64)
    link.stopped = True
    link.bye()
    assert dump.waited
    assert [what for what, *_ in recorder.heard] == ["sealed", "bye"]


def test_a_rollout_is_written_and_its_report_kept_for_the_case_of_a_death() -> None:
    dump, standby, rollout = Dump(), Standby(), cast(Any, object())
    link = MPILink(cast(Any, Sends()), lambda: False, standby=standby, dump=dump)
    link.report(report(first_row=7), rollout)
    assert dump.rollouts == [rollout]
    assert [r.first_row for r in standby.reports] == [7]
    assert link.keeps_boundaries
    link.keep_boundary(3, np.arange(8, dtype=np.uint8), 2)
    link.keep_totals(np.ones(2))
    assert standby.boundary_heads[3].tolist() == [0, 1] and standby.totals is not None


def test_where_deaths_end_the_job_nothing_is_kept(link: LocalLink) -> None:
    assert not link.keeps_boundaries
    link.keep_boundary(3, NOTHING, 0)
    link.keep_totals(np.ones(2))


class Sends:
    """A communicator in which messages are on their way until they are waited for."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.arrived: list[int] = []

    def Isend(self, message: object, dest: int, tag: int) -> Any:
        self.sent.append(tag)
        return SimpleNamespace(Test=lambda: tag in self.arrived, Wait=lambda: self.arrived.append(tag))


class Dead(Sends):
    """A communicator in which a death is noticed with every look."""

    def Iprobe(self, *arguments: object) -> bool:
        raise MPI.Exception(MPI.ERR_PROC_FAILED)


def test_a_death_ends_the_rollout_and_is_raised_with_its_report_which_is_told_to_nobody() -> None:
    comm, standby = Dead(), Standby()
    link = MPILink(cast(Any, comm), lambda: False, standby=standby)
    assert link.interrupted(), "no exception amid the environments' steps"
    assert link.interrupted()
    with pytest.raises(MPI.Exception):
        link.report(report(), cast(Any, None))
    assert comm.sent == [] and list(standby.reports) == []


def test_who_may_be_hurried_hears_in_which_iteration(recorder: Recorder, link: LocalLink) -> None:
    assert link.hurried_in == -1
    recorder.answers = [Answer(0, Tag.HURRY, np.array([5], np.int64).view(np.uint8))]
    link.keep_moving()
    assert link.hurried_in == 5


def test_a_run_that_one_rank_does_alone_may_end_between_two_updates(recorder: Recorder, link: LocalLink) -> None:
    """Of several ranks all have to leave together."""
    assert not link.ends_here()
    recorder.answers = [Answer(0, Tag.STOP, NOTHING)]
    link.keep_moving()
    assert link.ends_here()
    among_others = MPILink(cast(Any, Sends()), lambda: False)
    among_others.stopped = True
    assert not among_others.ends_here()


def test_what_was_sent_has_arrived_when_a_goodbye_returns() -> None:
    comm = Sends()
    link = MPILink(cast(Any, comm), lambda: False)
    link.boundary(NOTHING)
    link.stopped = True
    link.bye()
    assert comm.sent == comm.arrived == [Tag.BOUNDARY, Tag.BYE]
