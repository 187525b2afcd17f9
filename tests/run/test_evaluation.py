"""Evaluations of environments on several ranks; tests/mpi/test_groups.py has one on two."""

from __future__ import annotations

import re
from typing import Any

import pytest
from mpi4py import MPI

from dppo.config import SOLVER, Config
from dppo.errors import UsageError
from dppo.run.evaluation import evaluate_in_group, evaluate_on_ranks, how_to_evaluate
from dppo.run.solvers import Simulators


def test_another_number_of_ranks_is_refused_with_the_repair() -> None:
    repair = re.escape("has 4 ranks (--env-ranks), and this job 1: start it by mpirun -n 4 python -m dppo.evaluate RUN")
    with pytest.raises(UsageError, match=repair):
        evaluate_in_group(Config(env_ranks=4), "RUN", MPI.COMM_SELF, lambda group: 0)


def test_the_head_evaluates() -> None:
    assert evaluate_in_group(Config(), "RUN", MPI.COMM_SELF, lambda group: 7) == 7


@pytest.mark.parametrize(
    ("settings", "command"),
    [
        ({}, "python -m dppo.evaluate 'a run'"),
        ({"env_ranks": 4}, "mpirun -n 4 python -m dppo.evaluate 'a run'"),
        ({"env": SOLVER, "env_ranks": 2}, "mpirun -n 1 python -m dppo.evaluate 'a run' : -n 2 ./simulator"),
    ],
)
def test_each_kind_of_environment_is_evaluated_by_its_own_command(settings: dict[str, Any], command: str) -> None:
    assert how_to_evaluate(Config(**settings), "a run") == command


@pytest.mark.parametrize(
    ("env", "simulators", "message"),
    [
        (SOLVER, 0, "has 1 of dppo and 0 of a simulator: start it by mpirun -n 1 python -m dppo.evaluate RUN : -n 2"),
        (SOLVER, 3, "has 1 of dppo and 3 of a simulator: start it by mpirun -n 1 python -m dppo.evaluate RUN : -n 2"),
        ("my:Env", 2, "my:Env, uses no other program, .* start the evaluation by mpirun -n 2 python -m dppo.evaluate"),
    ],
)
def test_other_programs_than_the_runs_are_refused_with_the_repair(env: str, simulators: int, message: str) -> None:
    programs = Simulators(MPI.COMM_SELF, MPI.COMM_SELF, range(1, 1 + simulators))
    with pytest.raises(UsageError, match=message):
        evaluate_on_ranks(Config(env=env, env_ranks=2), "RUN", programs, lambda group: 0)


def test_one_rank_plays_with_the_simulator_that_it_has_met(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[Any] = []
    monkeypatch.setattr(Simulators, "meet", lambda self, comm, alone, config: met.append((comm, alone, config.env)))
    programs = Simulators(MPI.COMM_SELF, MPI.COMM_SELF, [1, 2])
    assert evaluate_on_ranks(Config(env=SOLVER, env_ranks=2), "RUN", programs, lambda group: 7) == 7
    assert met == [(MPI.COMM_SELF, MPI.COMM_SELF, SOLVER)]
