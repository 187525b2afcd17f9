"""What is said to simulators and what they say."""

from __future__ import annotations

import struct
from typing import Any, cast

import numpy as np
import pytest

from dppo.comm.mpi import MPI
from dppo.envs.solver import TRUNCATED, Declaration
from dppo.errors import UsageError
from dppo.run import solver_link
from dppo.run.solver_link import (
    ACTION,
    END,
    LOAD,
    PATH_TAG,
    RESET,
    SAVE,
    TAG,
    ServerLink,
    WorkerLink,
    poll,
    unpacked,
)

INF = float("inf")


def message(*bounds: list[float], name: bytes = b"it", can_save: int = 1) -> bytes:
    head = struct.pack("=qqqq", len(bounds[0]), len(bounds[2]), can_save, len(name))
    return head + np.concatenate(bounds).astype(np.float64).tobytes() + name


def test_a_declaration_is_read() -> None:
    said = message([-INF, 0.0], [INF, 3.0], [-1.0], [2.0], name="Wärme".encode())
    assert unpacked(said, "simulator 0") == Declaration("Wärme", (-INF, 0.0), (INF, 3.0), (-1.0,), (2.0,), True)


@pytest.mark.parametrize("bounds", [([1.0], [1.0]), ([2.0], [1.0]), ([float("nan")], [1.0])])
def test_bounds_that_leave_nothing_between_them_are_refused(bounds: tuple[list[float], list[float]]) -> None:
    with pytest.raises(UsageError, match="simulator 0 has declared that action 0 lies between"):
        unpacked(message([0.0], [1.0], *bounds), "simulator 0")
    with pytest.raises(UsageError, match="observation 0"):
        unpacked(message(*bounds, [0.0], [1.0]), "simulator 0")


class Group:
    """An intercommunicator that notes what is sent, and has answers ready."""

    def __init__(self, *answers: np.ndarray) -> None:
        self.answers, self.sent = list(answers), list[tuple[int, bytes]]()
        self.is_dead = False

    def Send(self, buffer: Any, dest: int, tag: int) -> None:
        if self.is_dead:
            raise MPI.Exception(MPI.ERR_OTHER)
        assert dest == 0
        values = buffer[0] if isinstance(buffer, list) else buffer
        self.sent.append((tag, values.tobytes()))

    def Irecv(self, buffer: Any, source: int, tag: int) -> Group:
        if self.is_dead:
            raise MPI.Exception(MPI.ERR_OTHER)
        assert (source, tag) == (0, TAG)
        buffer[0].view(np.uint8)[:] = np.frombuffer(self.answers.pop(0).tobytes(), np.uint8)
        return self

    def Iprobe(self, source: int, tag: int, status: Any) -> bool:
        status.Set_elements(MPI.BYTE, len(self.answers[0].tobytes()))
        return True

    def Recv(self, buffer: Any, source: int, tag: int) -> None:
        self.Irecv(buffer, source, tag)

    def Test(self) -> bool:
        return True


def linked(*answers: np.ndarray) -> tuple[Any, Group]:
    declared = np.frombuffer(message([-INF, -INF], [INF, INF], [-1.0, -1.0], [1.0, 1.0]), np.uint8)
    group = Group(declared, *answers)
    link = WorkerLink(cast(MPI.Comm, group), "simulator 0")
    link.read_declaration()
    return link, group


def state(status: int, reward: float, *observation: float) -> np.ndarray:
    return np.frombuffer(struct.pack("=qd", status, reward) + np.array(observation).tobytes(), np.uint8)


def test_requests_and_states_have_the_layout_of_the_header() -> None:
    link, group = linked(state(0, 0.0, 1.0, 2.0), state(TRUNCATED, 0.5, 3.0, 4.0), np.array([1]), np.array([0]))
    assert link.reset(11).tolist() == [1.0, 2.0]
    observation, reward, status = link.step(np.array([0.25, -1.0], np.float32))
    assert (observation.tolist(), reward, status) == ([3.0, 4.0], 0.5, TRUNCATED)
    assert link.save("/a/b") and not link.load("/c")
    link.end()
    link.end()
    heads = [(tag, *struct.unpack_from("=qq", sent)) for tag, sent in group.sent if tag == TAG]
    assert heads == [(TAG, RESET, 11), (TAG, ACTION, 0), (TAG, SAVE, 4), (TAG, LOAD, 2), (TAG, END, 0)]
    assert struct.unpack_from("=dd", group.sent[1][1], 16) == (0.25, -1.0)
    assert [sent for tag, sent in group.sent if tag == PATH_TAG] == [b"/a/b", b"/c"]
    with pytest.raises(RuntimeError, match="has been let go"):
        link.reset(1)


class Clock:
    """A time that passes while somebody sleeps."""

    def __init__(self, oversleeps_s: float = 0.0) -> None:
        self.now, self.sleeps, self._oversleeps_s = 100.0, list[float](), oversleeps_s

    def monotonic(self) -> float:
        self.now += 1e-6
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds + self._oversleeps_s


def test_a_wait_sleeps_through_the_time_that_a_step_takes_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(solver_link, "time", clock)

    def waited(step_s: float, expected_s: float) -> list[float]:
        clock.sleeps, end = [], clock.now + step_s
        assert step_s <= poll(lambda: clock.now >= end, expected_s=expected_s) < 1.02 * step_s + 1e-5
        return clock.sleeps

    assert len(waited(0.01, 0.0)) > 100, "nothing is expected"
    first, *others = waited(0.01, 0.01)
    assert first == pytest.approx(0.0095, abs=1e-5) and len(others) < 6
    assert waited(1e-4, 1e-4) == []
    naps = waited(1.0, 1.0)
    assert max(naps) == 0.02, "a death meanwhile is noticed soon"


def test_a_wait_that_overslept_is_not_expected_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each step would be expected to take as long as the one before had seemed to take, and longer."""
    clock = Clock(oversleeps_s=1e-4)
    monkeypatch.setattr(solver_link, "time", clock)
    expected_s, ends = 1e-3, []
    for _ in range(200):
        began, end = clock.now, clock.now + 5e-4
        expected_s = poll(lambda end=end: clock.now >= end, expected_s=expected_s)  # type: ignore[misc]
        ends.append(clock.now - began)
    assert max(ends[100:]) < 5e-4 + 2e-4


def test_the_shortest_of_the_last_steps_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    expected: list[float] = []
    takes = iter([3.0, 5.0, 4.0, *[6.0] * 12])

    def poll(is_done: Any, expected_s: float) -> float:
        expected.append(expected_s)
        return next(takes)

    link, _ = linked(*[state(0, 0.0, 1.0, 2.0)] * 15)
    monkeypatch.setattr(solver_link, "poll", poll)
    for _ in range(15):
        link.step(np.zeros(2))
    assert expected[:8] == [0.0] * 8 and expected[8:10] == [3.0, 4.0] and expected[-1] == 6.0


def test_a_simulator_that_has_died_is_named_where_the_job_does_not_survive_it() -> None:
    link, group = linked()
    group.is_dead = True
    with pytest.raises(RuntimeError, match="simulator 0 has died"):
        link.reset(1)
    link.end()


def test_a_worker_dies_with_its_simulator(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def die() -> None:
        raise SystemExit(9)

    link, group = linked()
    group.is_dead = True
    monkeypatch.setattr(solver_link, "survives_deaths", lambda: True)
    monkeypatch.setattr(solver_link.leaving, "die", die)
    with pytest.raises(SystemExit):
        link.step(np.zeros(2))
    assert "simulator 0 has died" in capsys.readouterr().err


def test_the_only_worker_does_not_die_with_its_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would be left who gives the job its exit code."""
    link, group = linked()
    link._has_others, group.is_dead = lambda: False, True
    monkeypatch.setattr(solver_link, "survives_deaths", lambda: True)
    with pytest.raises(RuntimeError, match="simulator 0 has died"):
        link.step(np.zeros(2))


def test_a_server_knows_the_declaration_only() -> None:
    declared = unpacked(message([0.0], [1.0], [0.0], [1.0]), "simulator 0")
    told = ServerLink(declared)
    assert told.declaration == declared
    told.end()
    with pytest.raises(RuntimeError, match=r"this rank has no simulator.*--resume"):
        told.reset(1)


def test_a_wait_has_its_limit() -> None:
    with pytest.raises(TimeoutError, match="too late"):
        poll(lambda: False, deadline=0.0, too_late="too late")
