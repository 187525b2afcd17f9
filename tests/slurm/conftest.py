"""A cluster of emulated nodes for the tests of this folder, with Slurm or without."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.emulation import NODES, PROGRAM, Cluster, Submit, emulated

CHECK_S = 200
"""It may install packages, or wait for another worker that does; less than a test may take."""


@pytest.fixture(scope="session")
def can_emulate() -> None:
    """Skips where no cluster can be emulated, and says why."""
    if not (Path(sys.prefix) / "bin" / "activate").exists():
        pytest.skip(f"jobs run with the Python of these tests, and {sys.prefix} is no virtual environment")
    command = [str(PROGRAM), "check"]
    try:
        checked = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=CHECK_S, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"{' '.join(command)} has not ended after {CHECK_S} s")
    if checked.returncode:
        pytest.skip(checked.stdout.strip() or f"{PROGRAM} check ended with {checked.returncode}")


@pytest.fixture(scope="session")
def slurm(can_emulate: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Four nodes and a Slurm."""
    with emulated("up", NODES, tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def hosts(can_emulate: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes without Slurm, for mpirun --host."""
    with emulated("hosts", 2, tmp_path_factory.mktemp("hosts")) as cluster:
        yield cluster


@pytest.fixture
def sbatch(slurm: Cluster) -> Iterator[Submit]:
    """Submits scripts of jobs/; no job outlives its test."""
    submit = Submit(slurm)
    yield submit
    submit.close()
