"""The page of a run: where the time goes, what is marked, which settings differ, what is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dppo.rundir.runs import read_run
from dppo.study.charts import Chart, Stack
from dppo.study.history import read_history
from dppo.study.page import Code, Figures, Page, Table, Text, render
from dppo.study.provenance import differing
from dppo.study.run_page import marks, run_page, time_parts
from tests.fakeruns import write_run


def make(folder: Path, lines: list[dict[str, Any]], settings: dict[str, Any] | None = None, **given: Any) -> Path:
    write_run(folder, settings, curve=((1, None),), **given)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def page_of(folder: Path) -> Page:
    return run_page(read_run(folder), read_history(folder))


def parts(page: Page, title: str) -> list[Any]:
    return list(next(section.parts for section in page.sections if section.title == title))


def test_an_iterations_seconds_are_split_up(tmp_path: Path) -> None:
    """Worked by hand: 2 workers, 100 steps each; learning is told a line later."""
    line = {"workers": 2, "collect_mean_s": 5.0, "env_step_mean_s": 0.03, "env_reset_mean_s": 0.5, "episodes_ended": 4}
    lines = [
        {"env_steps": 200, "iteration_s": 10.0, "learn_mean_s": 0.0, "exchange_mean_s": 0.0} | line,
        {"env_steps": 400, "iteration_s": 12.0, "learn_mean_s": 3.0, "exchange_mean_s": 1.0} | line,
    ]
    history = read_history(make(tmp_path / "r", lines))
    split = {name: seconds.tolist() for name, seconds in time_parts(history)}
    assert split == {
        "environment steps": [3, 3], "resets": [1, 1], "acting": [1, 1], "learning": [2, 0], "exchange": [1, 0],
        "waiting and other": [2, 7],
    }  # fmt: skip


def test_where_steps_are_not_timed_they_are_with_acting(tmp_path: Path) -> None:
    line = {"env_steps": 9, "iteration_s": 3.0, "collect_mean_s": 2.0, "env_step_mean_s": None}
    split = dict(time_parts(read_history(make(tmp_path / "r", [line]))))
    assert list(split) == ["stepping and acting", "learning", "exchange", "waiting and other"]
    assert split["stepping and acting"].tolist() == [2] and split["waiting and other"].tolist() == [1]


def test_shares_add_up_to_the_whole(tmp_path: Path) -> None:
    line = {"iteration_s": 1.0, "collect_mean_s": 2.0, "learn_mean_s": 3.0}  # async: parts of several iterations
    page = page_of(make(tmp_path / "r", [line | {"env_steps": i} for i in (1, 2, 3)]))
    (stack,) = next(part for part in parts(page, "Time") if isinstance(part, Chart)).items
    assert isinstance(stack, Stack)
    np.testing.assert_allclose(np.sum([layer for _, layer in stack.layers], axis=0), 100)


def test_deaths_replacements_resumes_and_the_best_are_marked(tmp_path: Path) -> None:
    counts = [(0, 0), (2, 0), (2, 1), (3, 1)]
    folder = make(tmp_path / "r", [
        {"env_steps": 100 * i, "ranks_lost": lost, "ranks_replaced": new} for i, (lost, new) in enumerate(counts, 1)
    ])  # fmt: skip
    attempts = [{"env_steps": 0}, {"env_steps": 250, "time": "noon"}, {"time": "of an older version"}]
    (folder / "versions.json").write_text(json.dumps({"attempts": attempts}))
    evaluations = [{"env_steps": at, "return_mean": value} for at, value in ((100, 5.0), (200, 7.0), (300, None))]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evaluations))
    found = [(mark.x, mark.kind, mark.text) for mark in marks(read_history(folder))]
    assert found == [
        (200, "death", "2 ranks died, by step 200"), (200, "best", "best evaluation: 7, at step 200"),
        (250, "resume", "attempt 2 began at step 250, noon"), (300, "replaced", "1 rank replaced, by step 300"),
        (400, "death", "1 rank died, by step 400"),
    ]  # fmt: skip
    table = next(part for part in parts(page_of(folder), "Deaths and resumes") if isinstance(part, Table))
    assert [row[1].text for row in table.rows] == ["death", "resume", "replaced", "death"]


def test_settings_that_differ_from_the_preset(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", {"env": "CartPole-v1", "seed": 7, "ppo": {"clip": 0.11}})
    config = read_run(folder).config
    assert config is not None
    assert {name: value for name, (value, _) in differing(config).items()} == {"seed": 7, "ppo.clip": 0.11}
    own = write_run(tmp_path / "own", {"env": "Env-v0"})
    config = read_run(own).config
    assert config is not None and differing(config) == {}
    said = parts(page_of(own), "Settings")[0]
    assert isinstance(said, Text) and said.lines == ["All settings are those of the preset, or the defaults."]


def test_how_to_repeat_it(tmp_path: Path) -> None:
    folder = make(tmp_path / "a b", [], {"seed": 3}, world_size=5)
    command = ["/x/dppo/run/__main__.py", "--env-kwargs", "a=$(rm -rf /)"]
    (folder / "versions.json").write_text(json.dumps({"attempts": [{"command": command, "world_size": 5}]}))
    first, again = (part.text for part in parts(page_of(folder), "How to repeat it") if isinstance(part, Code))
    assert first == "/x/dppo/run/__main__.py --env-kwargs 'a=$(rm -rf /)'"
    assert again == f"mpirun -n 5 python -m dppo.run '{folder}/config.toml' --run-dir runs/again --seed 3"


def test_a_run_that_has_just_begun_and_one_whose_files_are_damaged(tmp_path: Path) -> None:
    new = write_run(tmp_path / "new", curve=(), exit="running")
    (new / "metrics.jsonl").unlink()
    page = page_of(new)
    assert [section.title for section in page.sections] == ["Overview", "Returns", "Settings", "How to repeat it"]
    assert any(
        isinstance(part, Text) and "there is no metrics.jsonl yet" in part.lines for part in parts(page, "Overview")
    )
    odd = make(tmp_path / "odd", [{"env_steps": 1, "returns": "x", "staleness": {}, "cases": [1], "lr": "y"}])
    (odd / "config.toml").write_text("[")
    page = page_of(odd)
    assert "Settings" not in [section.title for section in page.sections]
    assert b"its settings" in render(page, made="now")


def test_figures_are_of_the_summary_or_of_the_last_line(tmp_path: Path) -> None:
    folder = make(tmp_path / "r", [{"env_steps": 5, "updates": 4}], exit="running", env_steps=None)
    figures = next(part for part in parts(page_of(folder), "Overview") if isinstance(part, Figures))
    assert dict(figures.pairs)["updates"] == "4" and dict(figures.pairs)["environment steps"] == "5"


@pytest.mark.parametrize("num", [1, 3000])
def test_a_long_run_makes_no_large_page(tmp_path: Path, num: int) -> None:
    rng = np.random.default_rng(0)
    keys = ("entropy", "approx_kl", "value_loss", "policy_loss", "grad_norm", "return_mean_100", "collect_mean_s")
    lines = [
        {"env_steps": i, "returns": rng.normal(size=5).tolist()} | dict(zip(keys, rng.random(7).tolist(), strict=True))
        for i in range(1, num + 1)
    ]
    assert len(render(page_of(make(tmp_path / "r", lines)), made="now")) < 700_000
