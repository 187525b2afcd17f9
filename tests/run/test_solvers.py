"""What is said to simulators and what they say; which numbers of ranks and which settings fit."""

from __future__ import annotations

import struct
from typing import Any, cast

import numpy as np
import pytest

from dppo.comm.mpi import MPI
from dppo.config import Config
from dppo.envs.solver import TRUNCATED, Declaration
from dppo.errors import UsageError
from dppo.run import solvers
from dppo.run.solvers import ACTION, END, LOAD, PATH_TAG, RESET, SAVE, TAG, Simulators, layout_error, unpacked

INF = float("inf")
RIGHT: dict[str, Any] = {"env": "dppo.envs:Solver", "env_ranks": 2, "num_envs": 1}


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


@pytest.mark.parametrize(
    ("changed", "ranks", "simulators", "said"),
    [
        ({}, 3, 4, None),
        ({}, 1, 2, None),
        ({"env": "CartPole-v1"}, 3, 0, None),
        ({}, 3, 3, "2 worker(s) with --env-ranks 2 need 4 rank(s) of the simulator, and 3 were started: mpirun -n 3"),
        ({"env_ranks": 1}, 3, 4, "need 2 rank(s)"),
        ({}, 3, 0, "needs the simulator as the second program: mpirun -n 1+W"),
        ({"env": "CartPole-v1"}, 3, 4, "uses no other program, but this mpirun has started one on 4 rank(s)"),
        ({"num_envs": 8}, 3, 4, "set --num-envs 1"),
        ({"vectorization": "native"}, 3, 4, "vectorization=native"),
        ({"on_env_error": "restart"}, 3, 4, "cannot be started anew"),
        ({"respawn": True}, 3, 4, "cannot be started anew"),
    ],
)
def test_settings_and_numbers_of_ranks_must_fit(
    changed: dict[str, Any], ranks: int, simulators: int, said: str | None
) -> None:
    error = layout_error(Config(**(RIGHT | changed)), ranks, simulators)
    assert (error is None) == (said is None) and (said or "") in (error or "")


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
    link = solvers._Link(cast(MPI.Comm, group), "simulator 0")
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
    monkeypatch.setattr(solvers, "survives_deaths", lambda: True)
    monkeypatch.setattr(solvers.leaving, "die", die)
    with pytest.raises(SystemExit):
        link.step(np.zeros(2))
    assert "simulator 0 has died" in capsys.readouterr().err


def test_the_only_worker_does_not_die_with_its_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would be left who gives the job its exit code."""
    link, group = linked()
    link._has_others, group.is_dead = False, True
    monkeypatch.setattr(solvers, "survives_deaths", lambda: True)
    with pytest.raises(RuntimeError, match="simulator 0 has died"):
        link.step(np.zeros(2))


def test_dppo_is_started_once_in_an_mpirun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert solvers.part(MPI.COMM_SELF).size == 0
    monkeypatch.setattr(solvers, "gather_all", lambda comm, mine: [mine, [*mine, "--seed", "7"]])
    with pytest.raises(UsageError, match="has started dppo several times, with different arguments"):
        solvers.part(MPI.COMM_SELF)


def test_a_server_knows_the_declaration_only() -> None:
    declared = unpacked(message([0.0], [1.0], [0.0], [1.0]), "simulator 0")
    told = solvers._Told(declared)
    assert told.declaration == declared
    told.end()
    with pytest.raises(RuntimeError, match="this rank has no simulator"):
        told.reset(1)


def test_simulators_that_were_told_nothing_are_refused_once() -> None:
    class World:
        def __init__(self) -> None:
            self.rank, self.size, self.sent = 0, 3, list[tuple[int, list[int]]]()

        def Send(self, buffer: np.ndarray, dest: int, tag: int) -> None:
            self.sent.append((dest, buffer.tolist()))

    world = World()
    found = Simulators(cast(Any, world), cast(Any, world), ranks=(1, 2), pids=(5, 6))
    with pytest.raises(UsageError, match="need 4 rank"):
        found.meet(cast(Any, world), cast(Any, world), Config(**RIGHT))
    found.let_go()
    found.let_go()
    assert world.sent == [(1, [0] * 5), (2, [0] * 5)]


def test_ranks_are_listed_as_ranges() -> None:
    assert [solvers._listed(ranks) for ranks in ([3], [3, 4, 5], [3, 5])] == ["3", "3-5", "3, 5"]


def test_a_wait_has_its_limit() -> None:
    with pytest.raises(TimeoutError, match="too late"):
        solvers._poll(lambda: False, deadline=0.0, too_late="too late")
