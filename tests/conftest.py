"""Fixtures of all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from mpi4py import MPI  # noqa: F401 (starts MPI, as an import of dppo does not)

from tests.launch import Launcher
from tests.parts import make_parts, save, settle

os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # as every rank has it (cluster/startup.py); read at the first call

LONG = (
    "slurm/test_again.py", "mpi/test_recovery.py", "mpi/test_repeatable.py", "slurm/test_failures.py",
    "slurm/test_train.py", "mpi/test_trajectories.py", "slurm/test_sweep.py", "mpi/test_nested.py",
    "mpi/test_failures.py", "mpi/test_learning.py", "mpi/test_gpus.py", "slurm/test_hosts.py", "slurm/test_scaling.py",
    "training/test_exported.py",
)  # fmt: skip
"""The files of more than half a minute, in the order in which they begin: the long ones first, so that no worker is
left with one at the end; those in slurm/, which wait, beside those in mpi/, which need the cores.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Brings the files of `LONG` to the front. `make test` keeps this order."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path, len(LONG)))


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launcher]:
    """Starts jobs in `tmp_path`; none outlives the test."""
    launcher = Launcher(tmp_path)
    yield launcher
    launcher.close()


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """Programs that the test starts hear Ctrl-C, also where a shell has started pytest in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def cartpole(tmp_path: Path) -> Path:
    """An untrained policy: episodes of some ten steps."""
    place = make_parts(env="CartPole-v1")
    settle(place)
    return save(place, tmp_path / "cartpole")


@pytest.fixture
def pendulum(tmp_path: Path) -> Path:
    """An untrained policy with continuous actions."""
    place = make_parts(env="Pendulum-v1")
    settle(place)
    return save(place, tmp_path / "pendulum")
