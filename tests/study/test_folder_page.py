"""The page of folders: groups by environment, effects of single settings, names, links, runs that are behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dppo.study.charts import Chart, Intervals
from dppo.study.folder_page import folder_page
from dppo.study.overview import make_report
from dppo.study.page import Details, Page, Table
from dppo.study.results import Curves
from tests.fakeruns import write_run


def page_of(*folders: Path) -> Page:
    return folder_page([(folder, make_report(folder)) for folder in folders], Curves(), folders[0] / "report.html")


def section(page: Page, title: str) -> list[Any]:
    return list(next(section.parts for section in page.sections if section.title == title))


def sweep(folder: Path) -> Path:
    for lr in (1e-4, 1e-2):
        for clip in (0.1, 0.2):
            for seed in (1, 2):
                write_run(
                    folder / f"{lr}-{clip}-{seed}", {"seed": seed, "optim": {"lr": lr}, "ppo": {"clip": clip}},
                    curve=((1000, 0.0), (2000, 1000 * lr + 10 * clip + seed)),
                )  # fmt: skip
    return folder


def test_the_effect_of_each_setting_is_of_all_its_runs(tmp_path: Path) -> None:
    clip, lr = section(page_of(sweep(tmp_path / "s")), "Settings one by one")
    assert (clip.x_title, clip.is_log, lr.x_title, lr.is_log) == ("ppo.clip", False, "optim.lr", True)
    (intervals,) = lr.items
    assert isinstance(intervals, Intervals)
    low, high = intervals.rows
    assert (low.at, high.at) == (1e-4, 1e-2)
    np.testing.assert_allclose(sorted(low.values), [2.1, 3.1, 3.1, 4.1])
    assert low.low is not None and low.high is not None and 2.1 <= low.low < low.middle < low.high <= 4.1


def test_each_environment_has_charts_of_its_own(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {"env": "A-v0"})
    write_run(tmp_path / "b", {"env": "B-v0"})
    page = page_of(tmp_path)
    titles = [chart.title for chart in page.charts()]
    assert "Settings: A-v0" in titles and "Settings: B-v0" in titles
    assert {"Learning curves: A-v0", "Learning curves: B-v0"} <= set(titles)


def test_charts_of_single_settings_have_the_same_axis(tmp_path: Path) -> None:
    (details,) = [part for part in section(page_of(sweep(tmp_path / "s")), "Curves") if isinstance(part, Details)]
    assert len({chart.y_range for chart in details.parts}) == 1 and len(details.parts) == 4
    assert all(isinstance(chart, Chart) and len(chart.items) == 4 for chart in details.parts)  # runs, band, line


def test_folders_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    one, two = sweep(tmp_path / "x" / "s"), sweep(tmp_path / "y" / "s")
    assert [s.title for s in page_of(one, two).sections][2:] == [str(one), str(two)]
    assert page_of(one).title == "s"


def test_runs_link_to_their_pages_where_there_are_any(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "s")
    (folder / "0.01-0.1-1" / "report.html").touch()
    (table,) = section(page_of(folder), "Runs")
    assert isinstance(table, Table)
    assert {row[0].text: row[0].link for row in table.rows if row[0].link} == {"0.01-0.1-1": "./0.01-0.1-1/report.html"}


def test_a_run_under_way_that_is_slow_is_named(tmp_path: Path) -> None:
    for seed, seconds in enumerate((10.0, 11.0, 12.0, 40.0)):
        state = "running" if seed > 1 else "finished"
        write_run(tmp_path / f"r{seed}", {"seed": seed}, exit=state, metrics={"train_s": seconds})
    notes = make_report(tmp_path).notes
    assert notes == [f"{tmp_path}/r3 is behind: 75 steps/s, and the median of its setting is 261"]
