"""One run of each cell and of those kinds of death that tests/mpi/test_recovery.py lacks, as benchmarks/chaos.py
makes them: while the others recover, and while a checkpoint is half written. The whole table is made by hand.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["sync/allreduce", "sync/p2p", "async"])
def test_deaths_at_the_worst_moments_are_survived_and_leave_nothing_behind(cell: str) -> None:
    chaos = [sys.executable, str(ROOT / "benchmarks" / "chaos.py"), "--quick"]
    command = [*chaos, "--cells", cell, "--kinds", "recovery", "checkpoint"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No run failed" in done.stdout
