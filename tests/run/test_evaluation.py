"""Evaluations of environments on several ranks; tests/mpi/test_groups.py has one on two."""

from __future__ import annotations

import re

import pytest
from mpi4py import MPI

from dppo.config import Config
from dppo.errors import UsageError
from dppo.run.evaluation import evaluate_in_group


def test_another_number_of_ranks_is_refused_with_the_repair() -> None:
    repair = re.escape("has 4 ranks (--env-ranks), and this job 1: start it by mpirun -n 4 python -m dppo.evaluate RUN")
    with pytest.raises(UsageError, match=repair):
        evaluate_in_group(Config(env_ranks=4), "RUN", MPI.COMM_SELF, lambda group: 0)


def test_the_head_evaluates() -> None:
    assert evaluate_in_group(Config(), "RUN", MPI.COMM_SELF, lambda group: 7) == 7
