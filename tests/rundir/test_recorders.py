"""What a run writes about itself: each iteration once, whatever happened before."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dppo.files import LINE_BYTES
from dppo.rundir.recorders import MetricsFile, TensorBoard, read_json, write_json


def iterations(path: Path) -> list[int]:
    return [json.loads(line)["iteration"] for line in path.read_text().splitlines()]


def write(path: Path, *numbers: int, last_iteration: int = 0) -> None:
    file = MetricsFile(path, last_iteration)
    for number in numbers:
        file.write({"iteration": number, "value": number / 2})
    file.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_a_line_is_readable_as_soon_as_it_is_written(path: Path) -> None:
    file = MetricsFile(path, 0)
    file.write({"iteration": 1})
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
    file.write({"iteration": 1, "nan": math.nan, "inf": -math.inf, "numpy": np.float64("nan"), "fine": 0.5})
    file.close()
    line = path.read_text()
    assert json.loads(line) == {"iteration": 1, "nan": None, "inf": None, "numpy": None, "fine": 0.5}
    assert "NaN" not in line


def test_a_json_file_is_replaced_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "summary.json", {"exit": "running", "return_mean_100": math.nan})
    assert read_json(tmp_path / "summary.json") == {"exit": "running", "return_mean_100": None}
    write_json(tmp_path / "summary.json", {"exit": "finished"})
    assert read_json(tmp_path / "summary.json") == {"exit": "finished"}


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "\x00"])
def test_a_json_file_that_cannot_be_read_is_empty(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "x.json").write_text(content)
    assert read_json(tmp_path / "x.json") == {}


def test_tensorboard_gets_every_number_over_environment_steps(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, first_step=0)
    board.write(100, {"iteration": 1, "env_steps": 100, "loss": 0.5, "histogram": [1, 2], "none": None})
    board.write(200, {"loss": 0.25})
    board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(100, 0.5), (200, 0.25)]


def test_tensorboard_shows_each_point_once_after_a_resume(tmp_path: Path) -> None:
    """Killed at step 400, resumed from the checkpoint of step 200."""
    for first_step, value in ((0, 1.0), (200, 2.0)):
        board = TensorBoard(tmp_path, first_step)
        for step in range(first_step + 100, 500, 100):
            board.write(step, {"loss": value})
        board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(100, 1.0), (200, 1.0), (300, 2.0), (400, 2.0)]


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
