"""What a report reads of a run: columns, episodes, staleness, and files that are damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dppo.study.history import CHUNK, read_history


def write(folder: Path, *lines: dict[str, Any] | str) -> Path:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in text))
    (folder / "versions.json").write_text('{"attempts": []}')
    return folder


def test_columns_have_a_place_for_every_line(tmp_path: Path) -> None:
    write(
        tmp_path, {"env_steps": 10, "a": 1.5, "cases": {"x/y": {"episodes": 3}}}, {"env_steps": 20, "b": 2, "a": None},
        {"env_steps": 30, "a": 3, "b": True, "text": "no", "cases": {"z": {"episodes": 4}}},
    )  # fmt: skip
    history = read_history(tmp_path)
    nan = np.nan
    np.testing.assert_array_equal(history.column("a"), [1.5, nan, 3])
    np.testing.assert_array_equal(history.column("b"), [nan, 2, 1])
    np.testing.assert_array_equal(history.column("cases/x/y/episodes"), [3, nan, nan])
    np.testing.assert_array_equal(history.column("cases/z/episodes"), [nan, nan, 4])
    np.testing.assert_array_equal(history.column("none"), [nan, nan, nan])
    assert (len(history), history.has("a"), history.has("text"), history.notes) == (3, True, False, [])


def test_chunks_change_nothing(tmp_path: Path) -> None:
    num = 2 * CHUNK + 7
    write(
        tmp_path, *({"env_steps": i, "late": i if i > CHUNK + 3 else None, "returns": [i]} for i in range(1, num + 1))
    )
    history = read_history(tmp_path)
    np.testing.assert_array_equal(history.steps, np.arange(1, num + 1))
    np.testing.assert_array_equal(history.episode_steps, history.steps)
    late = history.column("late")
    assert np.isnan(late[: CHUNK + 3]).all() and late[CHUNK + 3 :].tolist() == list(range(CHUNK + 4, num + 1))


def test_episodes_lie_within_their_iteration_in_their_order(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"env_steps": 100, "returns": [1, 2]},
        {"env_steps": 200},
        {"env_steps": 300, "returns": [3, None, "x", 4]},
    )
    history = read_history(tmp_path)
    assert history.episode_returns.tolist() == [1, 2, 3, 4]
    assert history.episode_steps.tolist() == [50, 100, 250, 300]


def test_staleness_is_summed_and_has_its_quantile(tmp_path: Path) -> None:
    write(tmp_path, {"env_steps": 1, "staleness": [90, 8, 2, 0]}, {"env_steps": 2, "staleness": [0]})
    history = read_history(tmp_path)
    assert history.staleness.tolist() == [90, 8, 2, 0]
    np.testing.assert_array_equal(history.column("staleness_p95"), [1, np.nan])
    np.testing.assert_array_equal(history.column("staleness_max"), [2, np.nan])


def test_damage_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    huge = '{"env_steps": 3, "a": 1' + "0" * 400 + "}"
    write(tmp_path, {"env_steps": 1}, "{", '{"env_steps": null}', "[]", '{"env_steps": NaN}', huge)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"env_steps": 4')  # is being written
    (tmp_path / "evaluations.jsonl").write_text('{"env_steps": 5, "return_mean": 1}\n{"env_steps": "x"}\n{"env_st')
    (tmp_path / "versions.json").write_text("{")
    history = read_history(tmp_path)
    assert history.steps.tolist() == [1, 3]
    assert [line["env_steps"] for line in history.evaluations] == [5]
    assert history.notes == [
        "4 damaged line(s) of metrics.jsonl are left out", "1 damaged line(s) of evaluations.jsonl are left out",
        "versions.json is damaged: versions, commands and resumes are not known",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluations.jsonl"])
def test_what_is_no_file_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path, {"env_steps": 1})
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    (note,) = read_history(tmp_path).notes
    assert name in note and "named pipe" in note


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    history = read_history(tmp_path)
    assert len(history) == 0 and history.notes == ["there is no metrics.jsonl yet"]
    assert not history.has("env_steps")
