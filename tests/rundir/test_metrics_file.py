"""metrics.jsonl has each iteration once, whatever happened before."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from dppo.files import LINE_BYTES
from dppo.rundir.metrics_file import MetricsFile


def iterations(path: Path) -> list[int]:
    return [json.loads(line)["iteration"] for line in path.read_text().splitlines()]


def write(path: Path, *numbers: int, last_iteration: int = 0) -> None:
    file = MetricsFile(path, last_iteration)
    for number in numbers:
        file.iteration({"iteration": number, "value": number / 2})
    file.flush()
    file.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_a_line_is_readable_as_soon_as_it_is_written(path: Path) -> None:
    file = MetricsFile(path, 0)
    file.iteration({"iteration": 1})
    file.flush()
    assert iterations(path) == [1]
    file.close()


def test_after_a_resume_each_iteration_is_there_once(path: Path) -> None:
    """Killed after iteration 5, resumed from the checkpoint of iteration 3."""
    write(path, 1, 2, 3, 4, 5)
    write(path, 4, 5, 6, last_iteration=3)
    assert iterations(path) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("torn", ['{"iteration": 3, "val', '{"iteration": 3}', '{"iter', "\x00\x00\x00", "{}\n", "3\n"])
def test_a_torn_last_line_is_removed(path: Path, torn: str) -> None:
    """Also one that reads well but has no end: more digits may be missing."""
    write(path, 1, 2)
    with open(path, "a") as file:
        file.write(torn)
    write(path, 3, last_iteration=10)
    assert iterations(path) == [1, 2, 3]


def test_lines_that_stay_stay_to_the_byte(path: Path) -> None:
    write(path, 1, 2, 3)
    before = path.read_bytes().splitlines(keepends=True)
    write(path, last_iteration=2)
    assert path.read_bytes() == b"".join(before[:2])


def test_what_json_has_no_number_for_is_null(path: Path) -> None:
    file = MetricsFile(path, 0)
    file.iteration({"iteration": 1, "nan": math.nan, "inf": -math.inf, "numpy": np.float64("nan"), "fine": 0.5})
    file.flush()
    file.close()
    line = path.read_text()
    assert json.loads(line) == {"iteration": 1, "nan": None, "inf": None, "numpy": None, "fine": 0.5}
    assert "NaN" not in line


def test_zeros_behind_the_lines_are_removed(tmp_path: Path) -> None:
    """As the crash of a machine leaves them; here so many that they would not fit into memory."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1}\n{"iteration": 2}\n{"iter')
    os.truncate(path, 10 * 2**30)
    MetricsFile(path, 1).close()
    assert path.read_text() == '{"iteration": 1}\n'


def test_good_lines_behind_a_bad_one_are_kept(path: Path) -> None:
    lines = [f'{{"iteration": {number}}}\n' for number in range(1, 6)]
    path.write_text(lines[0] + lines[1] + "x" * (3 * LINE_BYTES) + "\n" + lines[2] + "{\n" + lines[3] + lines[4])
    MetricsFile(path, 4).close()
    assert path.read_text() == "".join(lines[:4])


def test_a_line_of_steps_that_nobody_has_made_is_removed(path: Path) -> None:
    """Evaluations are found by their steps: one beyond the run's would hide all that are due."""
    lines = [json.dumps({"iteration": 1, "env_steps": steps}) + "\n" for steps in (100, 99 * 10**30, -1, "a", 200)]
    path.write_text("".join(lines))
    MetricsFile(path, 1, 200).close()
    assert path.read_text() == lines[0] + lines[4]


def test_the_best_return_is_that_of_the_lines_that_stay(path: Path) -> None:
    """Without the first short episodes, and without what comes again."""
    means = [(900.0, None), (100.0, 90.0), (300.0, 280.0), (200.0, 190.0), (None, None), (500.0, 490.0)]
    lines = [
        {"iteration": number, "return_mean_100": mean, "return_mean_100_settled": settled}
        for number, (mean, settled) in enumerate(means, 1)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    file = MetricsFile(path, 5)
    file.close()
    assert file.best_return == 300.0
    assert MetricsFile(path.with_name("none.jsonl"), 0).best_return is None
