"""The parameter server's rounds, and how a worker and rank 0 talk; with at most MPI's way from a rank to itself."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from mpi4py import MPI

from dppo.algo.optim import staleness_weight
from dppo.comm import link as link_module
from dppo.comm.link import CROWDED_POLL_S, NOTHING, POLL_S, LocalLink, MPILink
from dppo.comm.server import ParameterServer, serve
from dppo.comm.waiting import Backoff
from dppo.data import LastEpisodes, Report
from dppo.models.flat import FlatParameters
from dppo.seams import Answer, Tag

W = 4


def synchronous(staleness: int) -> float:
    """Only what was computed from the present parameters counts."""
    return float(staleness == 0)


def make_server(quorum: int, weight: Callable[[int], float] = synchronous) -> ParameterServer:
    return ParameterServer(W, quorum, weight)


def vector(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


# -- the quorum --------------------


def test_a_full_quorum_waits_for_all_and_answers_all() -> None:
    server = make_server(quorum=W)
    for worker in (2, 0, 3):
        taken = server.handle(worker, 0, vector(worker, 1), is_gradient=True)
        assert taken.total is None and not taken.answer
    closed = server.handle(1, 0, vector(1, 1), is_gradient=True)
    assert closed.total is not None and closed.total.tolist() == [6, 4]
    assert list(closed.answer) == [0, 1, 2, 3]
    assert (server.version, server.late) == (1, 0)


@pytest.mark.parametrize("drop", [1, 2, 3])
def test_with_drop_the_round_closes_without_the_stragglers(drop: int) -> None:
    server = make_server(quorum=W - drop)
    arriving = [3, 1, 0, 2][: W - drop]
    for worker in arriving:
        closed = server.handle(worker, 0, vector(1, 10**worker), is_gradient=True)
    assert closed.total is not None
    assert closed.total.tolist() == [W - drop, sum(10**w for w in arriving)]
    assert sorted(closed.answer) == sorted(arriving)


def test_a_late_vector_is_counted_answered_and_never_added() -> None:
    server = make_server(quorum=W - 1)
    for worker in (0, 1, 2):
        server.handle(worker, 0, vector(1, 1), is_gradient=True)
    late = server.handle(3, 0, vector(1000, 1000), is_gradient=True)
    assert late.total is None and list(late.answer) == [3]
    assert (server.late, server.version) == (1, 1)
    for worker in (3, 2, 1):
        closed = server.handle(worker, 1, vector(1, 1), is_gradient=True)
    assert closed.total is not None and closed.total.tolist() == [3, 3]


def test_a_worker_may_be_late_by_many_rounds() -> None:
    server = make_server(quorum=1)
    for version in range(5):
        server.handle(0, version, vector(1, 1), is_gradient=True)
    assert server.handle(1, 0, vector(1, 1), is_gradient=True).total is None
    assert server.handle(1, 5, vector(1, 1), is_gradient=True).total is not None


def test_quorum_one_applies_each_as_it_comes() -> None:
    server = make_server(quorum=1, weight=lambda age: 1.0)
    for version, worker in enumerate([2, 0, 0, 3]):
        closed = server.handle(worker, 0, vector(worker, 1), is_gradient=True)
        assert closed.total is not None and closed.total.tolist() == [worker, 1]
        assert list(closed.answer) == [worker]
        assert server.version == version + 1


def test_sums_and_gradients_go_through_the_same_rounds() -> None:
    """The advantage statistics of an iteration come from the same number of workers as its gradients."""
    server = make_server(quorum=2)
    server.handle(0, 0, np.array([1.0, 2.0]), is_gradient=False)
    closed = server.handle(1, 0, np.array([10.0, 20.0]), is_gradient=False)
    assert closed.total is not None and closed.total.tolist() == [11, 22]
    assert server.version == 1
    assert not server.staleness  # of gradients only


@pytest.mark.parametrize("quorum", [0, W + 1])
def test_a_quorum_is_of_one_to_all_workers(quorum: int) -> None:
    with pytest.raises(AssertionError):
        make_server(quorum)


def test_sending_twice_in_a_round_is_a_bug() -> None:
    server = make_server(quorum=W)
    server.handle(0, 0, vector(1, 1), is_gradient=True)
    with pytest.raises(AssertionError, match="worker 0 sent twice in round 0"):
        server.handle(0, 0, vector(1, 1), is_gradient=True)


# -- the sum --------------------


def test_the_sum_is_in_rank_order_whatever_the_order_of_arrival() -> None:
    """In float32 the order shows: (1e8 + 1) - 1e8 is 0, but 1 + (1e8 - 1e8) is 1."""
    vectors = [vector(1e8, 0.1), vector(1, 0.2), vector(-1e8, 0.3), vector(3, 0.4)]
    expected = ((vectors[0] + vectors[1]) + vectors[2]) + vectors[3]
    for order in itertools.permutations(range(W)):
        server = make_server(quorum=W)
        for worker in order:
            closed = server.handle(worker, 0, vectors[worker].copy(), is_gradient=True)
        assert closed.total is not None
        assert closed.total.tobytes() == expected.tobytes()


def test_samples_weigh_not_ranks() -> None:
    """What travels are sums with their count: the mean of 1 sample of 10 and 3 of 2 is 4."""
    server = ParameterServer(2, 2, synchronous)
    server.handle(0, 0, vector(10, 1), is_gradient=True)
    closed = server.handle(1, 0, vector(6, 3), is_gradient=True)
    assert closed.total is not None
    assert closed.total[0] / closed.total[1] == 4.0


# -- staleness --------------------


def stale_server(policy: str) -> ParameterServer:
    """At version 3; gradients of two numbers, one sum behind them."""
    server = make_server(quorum=1, weight=lambda age: staleness_weight(age, policy, 2))
    server.version = 3
    return server


@pytest.mark.parametrize(
    ("policy", "by_age"),
    [
        ("drop", [1.0, 1.0, 1.0, None]),
        ("scale", [1.0, 1 / 2, 1 / 3, None]),
        ("none", [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_staleness_weighs_the_step_and_not_the_gradient(policy: str, by_age: list[float | None]) -> None:
    for age, expected in enumerate(by_age):
        closed = stale_server(policy).handle(0, 3 - age, vector(12, 24, 100), is_gradient=True)
        if expected is None:
            assert closed.total is None
        else:
            assert closed.total is not None
            assert closed.weight == pytest.approx(expected)
            assert closed.total.tolist() == [12, 24, 100]


def test_the_histogram_counts_every_gradient_those_that_were_dropped_too() -> None:
    server = stale_server("drop")
    for version in (3, 3, 0, 4):  # after each that is applied the version is one further
        server.handle(0, version, vector(1, 1), is_gradient=True)
    assert dict(server.staleness) == {0: 1, 1: 2, 5: 1}
    assert server.late == 1


# -- the conversation --------------------


class Recorder:
    """A coordinator that writes down what it is told, and answers what it is given to answer."""

    done = False
    abandoned = False

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.answers: list[Answer] = []

    def _hear(self, *what: Any) -> list[Answer]:
        self.heard.append(what)
        answers, self.answers = self.answers, []
        return answers

    def on_report(self, report: Report) -> list[Answer]:
        return self._hear("report", report)

    def on_sums(self, worker: int, version: int, vector: np.ndarray) -> list[Answer]:
        return self._hear("sums", worker, version, vector.tolist())

    def on_gradient(self, worker: int, version: int, summed: np.ndarray) -> list[Answer]:
        return self._hear("gradient", worker, version, summed.tolist(), summed.dtype)

    def on_boundary(self, worker: int, message: np.ndarray) -> list[Answer]:
        return self._hear("boundary", worker, message.tolist())

    def on_fetch(self, worker: int) -> list[Answer]:
        return self._hear("fetch", worker)

    def on_failure(self, worker: int, text: str) -> list[Answer]:
        return self._hear("failure", worker, text)

    def on_signal(self) -> list[Answer]:
        return self._hear("signal")

    def on_bye(self, worker: int) -> list[Answer]:
        return self._hear("bye", worker)

    def idle(self) -> list[Answer]:
        answers, self.answers = self.answers, []
        return answers


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def link(recorder: Recorder) -> LocalLink:
    return LocalLink(recorder, lambda: False)


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
        0, 8, 100, 24, [], numbers, numbers, numbers, numbers, numbers, numbers, numbers, LastEpisodes.unknown(3),
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


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which only the test and its bell move."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


class Bell:
    """A doorbell; on its ring the neighbour takes in the message that it was rung for. Waits take time `now`."""

    def __init__(self, *, crowded: bool = False, reaches: bool = True, now: list[float] | None = None) -> None:
        self.crowded, self._reaches, self._now = crowded, reaches, now or [0.0]
        self.taken: list[tuple[int, Tag, list[int]]] = []
        self.waits: list[float] = []

    def reaches(self, rank: int) -> bool:
        return self._reaches

    def ring(self, rank: int) -> None:
        status = MPI.Status()
        assert any(MPI.COMM_SELF.Iprobe(0, MPI.ANY_TAG, status) for _ in range(10)), "rung before it was sent"
        message = np.empty(status.Get_count(MPI.BYTE), np.uint8)
        MPI.COMM_SELF.Recv([message, MPI.BYTE], 0, status.Get_tag())
        self.taken.append((rank, Tag(status.Get_tag()), message.tolist()))

    def wait(self, longest_s: float) -> None:
        self.waits.append(longest_s)
        self._now[0] += longest_s


class Until(Recorder):
    """A coordinator of a run that ends when `over` says so."""

    def __init__(self, over: Callable[[], bool]) -> None:
        super().__init__()
        self._over = over

    @property
    def done(self) -> bool:  # type: ignore[override]
        return self._over()

    def idle(self) -> list[Answer]:
        return []


def link_to_itself(bell: Any, asked_to_leave: Callable[[], bool] = lambda: False) -> MPILink:
    return MPILink(MPI.COMM_SELF, asked_to_leave, doorbell=bell)


def test_whatever_a_worker_sends_rings_the_servers_bell_once_it_is_on_its_way() -> None:
    bell = Bell()
    link = link_to_itself(bell)
    link.boundary(np.array([1, 2, 3], np.uint8))
    link.failure("x")
    assert bell.taken == [(0, Tag.BOUNDARY, [1, 2, 3]), (0, Tag.FAILURE, [ord("x")])]


def test_whatever_the_server_answers_rings_that_workers_bell_once_it_is_on_its_way() -> None:
    bell: Any = Bell()
    coordinator = Until(lambda: len(bell.taken) == 2)
    coordinator.answers = [Answer(0, Tag.REPLY, np.array([7], np.uint8)), Answer(0, Tag.STOP, NOTHING)]
    request = MPI.COMM_SELF.Isend([NOTHING, MPI.BYTE], 0, int(Tag.SIGNAL))
    serve(MPI.COMM_SELF, coordinator, first_worker_rank=0, doorbell=bell)
    request.Wait()
    assert coordinator.heard == [("signal",)]
    assert bell.taken == [(0, Tag.REPLY, [7]), (0, Tag.STOP, [])]


@pytest.mark.parametrize("reaches", [True, False])
def test_the_server_listens_long_only_where_every_worker_rings(reaches: bool, now: list[float]) -> None:
    bell: Any = Bell(crowded=True, reaches=reaches, now=now)
    serve(MPI.COMM_SELF, Until(lambda: len(bell.waits) == 100), first_worker_rank=0, doorbell=bell)
    if reaches:
        assert bell.waits == [Backoff.SAFETY_S] * 100
    else:
        assert bell.waits[0] < bell.waits[-1] == 0.01
        assert bell.waits == sorted(bell.waits)


@pytest.mark.parametrize("reaches", [True, False])
def test_a_worker_listens_long_only_where_the_server_rings(reaches: bool, now: list[float]) -> None:
    bell = Bell(crowded=True, reaches=reaches, now=now)
    link = link_to_itself(bell)
    link._wait_for(lambda: len(bell.waits) == 100)
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
    link = link_to_itself(bell, lambda: bool(looked.append("signal")))  # type: ignore[func-returns-value]
    link._poll = lambda: bool(looked.append("queue"))  # type: ignore[method-assign,func-returns-value]
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
