"""benchmarks/in_turns.py: a worked case, and two trainings that take turns."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import in_turns  # noqa: E402


def test_the_time_in_which_a_run_stood_still_does_not_count() -> None:
    ends = [(0.0, 100), (4.0, 500), (10.0, 900)]
    assert in_turns.speed(ends, [(1.0, 3.0), (9.0, 12.0)]) == pytest.approx(800 / 7)
    assert in_turns.speed(ends, [(-5.0, -1.0), (11.0, 12.0)]) == pytest.approx(80.0)


def test_two_trainings_take_turns_and_leave_no_process(tmp_path: Path) -> None:
    flags = ["--env", "CartPole-v1", "--total-steps", "20000"]
    found = in_turns.steps_per_s({name: (tmp_path / name, flags) for name in "ab"}, 1, 120.0)
    assert found.keys() == {"a", "b"}
    for name, steps_per_s in found.items():
        ends = json.loads((tmp_path / name / in_turns.CLOCK).read_text())
        still = (ends[-1][0] - ends[0][0]) - (ends[-1][1] - ends[0][1]) / steps_per_s
        assert 0 <= still < ends[-1][0] - ends[0][0]
        assert json.loads((tmp_path / name / "summary.json").read_text())["exit"] == "finished"
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    assert not [pid for pid in children if "dppo.run" in Path(f"/proc/{pid}/cmdline").read_text()]


def test_a_run_that_fails_is_named(tmp_path: Path) -> None:
    flags = ["--env", "CartPole-v1", "--total-steps", "-1"]
    with pytest.raises(RuntimeError, match="the run 'a' ended with code 2"):
        in_turns.steps_per_s({"a": (tmp_path / "a", flags)}, 1, 60.0)
