"""Which numbers of ranks and which settings fit, and what simulators are told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from dppo.comm.mpi import MPI
from dppo.config import Config
from dppo.envs.solver import Declaration
from dppo.errors import UsageError
from dppo.run import solvers
from dppo.run.solvers import Simulators, layout_error

RIGHT: dict[str, Any] = {"env": "dppo.envs:Solver", "env_ranks": 2, "num_envs": 1}


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
        ({"cases": ({"name": "calm", "env_kwargs": {}},)}, 3, 4, "a program chooses its case itself"),
    ],
)
def test_settings_and_numbers_of_ranks_must_fit(
    changed: dict[str, Any], ranks: int, simulators: int, said: str | None
) -> None:
    error = layout_error(Config(**(RIGHT | changed)), ranks, simulators)
    assert (error is None) == (said is None) and (said or "") in (error or "")


def test_dppo_is_started_once_in_an_mpirun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert solvers.part(MPI.COMM_SELF).size == 0
    monkeypatch.setattr(solvers, "gather_all", lambda comm, mine: [mine, [*mine, "--seed", "7"]])
    with pytest.raises(UsageError, match="has started dppo several times, with different arguments"):
        solvers.part(MPI.COMM_SELF)


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


def test_a_worker_knows_whether_others_of_dppo_still_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after the first deaths: the last one does not die with its simulator, as it has the job's last word."""
    dead, asked = 0, list[Any]()

    class Link:
        declaration = Declaration("it", (0.0,), (1.0,), (0.0,), (1.0,), False)

        def __init__(self, comm: object, name: str, *, has_others: Any) -> None:
            asked.append(has_others)

        def read_declaration(self) -> None:
            pass

    intercomm = SimpleNamespace(Set_errhandler=lambda handler: None)
    alone = SimpleNamespace(Create_intercomm=lambda *arguments: intercomm)
    own = SimpleNamespace(size=3, rank=1, Get_failed=lambda: SimpleNamespace(size=dead))
    monkeypatch.setattr(solvers, "WorkerLink", Link)
    monkeypatch.setattr(solvers, "gather_all", lambda comm, mine: [mine] * 3)
    solvers.meet(cast(Any, own), cast(Any, own), cast(Any, alone), [3, 4], 1)
    has_others, *_ = asked
    assert has_others()
    dead = 1
    assert has_others()
    dead = 2
    assert not has_others()
