"""Fixtures of all tests."""

from __future__ import annotations

import signal
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


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """Programs that the test starts hear Ctrl-C, also where a shell has started pytest in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
