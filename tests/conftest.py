"""Fixtures of all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mpi4py import MPI  # noqa: F401 (starts MPI, as an import of dppo does not)

from tests.launch import Launcher


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launcher]:
    """Starts jobs in `tmp_path`; none outlives the test."""
    launcher = Launcher(tmp_path)
    yield launcher
    launcher.close()
