"""One run of benchmarks/chaos_groups.py; the whole table is made by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_ranks_of_two_groups_may_die_within_a_step() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "chaos_groups.py"), "--quick", "--cells", "async, ULFM"]
    command += ["--numbers", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, stdin=subprocess.DEVNULL)
    assert done.returncode == 0 and "No run failed" in done.stdout, done.stdout + done.stderr
