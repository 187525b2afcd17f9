"""One run of each cell and kind of death, as benchmarks/chaos.py does it; the whole table is made by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["sync/allreduce", "sync/p2p", "async"])
def test_every_kind_of_death_is_survived_and_leaves_nothing_behind(cell: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "chaos.py"), "--quick", "--cells", cell]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No run failed" in done.stdout
