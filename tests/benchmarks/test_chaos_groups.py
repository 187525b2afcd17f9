"""A few deaths of environments' ranks, as benchmarks/chaos_groups.py brings them about; its table is made by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "number"), [("async, ULFM", 3), ("sync/p2p, no ULFM", 0)], ids=["within steps", "at a step, and resumed"]
)
def test_ranks_of_groups_may_die(cell: str, number: int) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "chaos_groups.py"), "--quick", "--cells", cell]
    command += ["--numbers", str(number)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, stdin=subprocess.DEVNULL)
    assert done.returncode == 0 and "No run failed" in done.stdout, done.stdout + done.stderr
