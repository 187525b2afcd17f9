"""The pages of python -m dppo.report in a real browser: no error, nothing from a network, sorting, values at the
pointer, light and dark, names with markup in them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dppo.report import main
from tests.browser import Tab, opened, program
from tests.fakeruns import write_run

MARKUP = "<img src=x onerror=alert(1)><script>document.title='owned'</script>&amp;\"'"
DARK, LIGHT = "rgb(15, 20, 26)", "rgb(255, 255, 255)"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    pytest.importorskip("websockets")
    browser, why = program()
    if browser is None:
        pytest.skip(why)
    with opened(browser) as tab:
        tab.show(1200, 900)
        yield tab


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sweeps with runs of odd names; page.html of both, and of each."""
    folder = tmp_path_factory.mktemp("pages")
    for sweep in ("a", "b"):
        for number, lr in enumerate((3e-4, 1e-3, 1e-2)):
            for seed in (1, 2):
                name = MARKUP.replace("/", "") if number == seed == 1 else f"r{number}-{seed}"
                write_run(
                    folder / sweep / name, {"seed": seed, "optim": {"lr": lr}},
                    curve=((1000, None), (2000, 5.0 * number), (3000, 10.0 * number + seed + (sweep == "b"))),
                    exit="failed" if (number, seed) == (1, 1) else "finished", error=f"rank 1: {MARKUP}",
                )  # fmt: skip
    return folder


def detailed(folder: Path) -> Path:
    """A run with all that a page shows: episodes, evaluations, staleness, cases, a death, a resume, markup."""
    settings = {"env": f"mod:{MARKUP}", "mode": "async", "num-envs": 3, "target-return": 90.0}
    write_run(folder, settings, curve=(), env=f"mod:{MARKUP}", return_mean_100=80.0, world_size=3)
    lines = []
    for i in range(1, 61):
        lines.append({
            "iteration": i, "env_steps": 100 * i, "return_mean_100": float(i), "returns": [i - 1.0, i + 1.0],
            "episodes_ended": 2, "entropy": 1 / i, "lr": 1e-3, "workers": 2 - (i > 30), "ranks_lost": int(i > 30),
            "staleness": [5, 3, 1], "staleness_mean": 0.6, "collect_mean_s": 0.5, "learn_mean_s": 0.3,
            "exchange_mean_s": 0.1, "iteration_s": 1.0, "train_s": float(i), "env_step_mean_s": 0.002,
            "cases": {MARKUP: {"episodes": i, "return_mean_100": 2.0 * i}}, MARKUP: i,
        })  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "damaged\n")
    evaluations = [
        {"iteration": i, "env_steps": 100 * i, "checkpoint": MARKUP, "return_mean": i + 2.0, "return_min": i - 5.0,
         "return_max": i + 9.0, "best": True}
        for i in (20, 40)
    ]  # fmt: skip
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evaluations))
    attempts = [{"time": "today", "command": ["dppo", MARKUP], "env_steps": at, "world_size": 3} for at in (0, 2000)]
    (folder / "versions.json").write_text(json.dumps({"attempts": attempts}))
    return folder


def page_of(capsys: pytest.CaptureFixture[str], *argv: Any) -> Path:
    assert main([*map(str, argv), "--no-plot"]) == 0
    return Path(capsys.readouterr().out.splitlines()[-1].removeprefix("The page: "))


def check(tab: Tab, path: Path) -> None:
    """No error, nothing loaded but the file itself, nothing of the names has become an element."""
    tab.open(path)
    assert tab.said == []
    assert [address for address in tab.loaded if not address.startswith("data:")] == [path.resolve().as_uri()]
    assert tab.run("document.images.length") == 0 and tab.run("document.scripts.length") == 1
    assert tab.run("document.title") != "owned"
    assert "<img src=x onerror=alert(1)>" in tab.run("document.body.innerText")


def test_the_page_of_a_run(tab: Tab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = page_of(capsys, detailed(tmp_path / "run"))
    check(tab, path)
    titles = tab.run("[...document.querySelectorAll('h2')].map(h => h.textContent)")
    assert titles == [
        "Overview", "Returns", "Cases", "Learning", "Time", "Staleness", "Deaths and resumes", "Settings",
        "How to repeat it", "Other metrics",
    ]  # fmt: skip
    text = tab.run("document.body.innerText")
    assert "1 damaged line(s) of metrics.jsonl are left out" in text and "1 rank died, by step 3,100" in text
    assert tab.run("[...document.querySelectorAll('td.strong')].map(c => c.textContent).includes('3')")  # num-envs
    marks = tab.run("[...document.querySelector('svg.chart').querySelectorAll('.mark')].map(m => m.dataset.tip)")
    assert [mark[:16] for mark in marks] == ["attempt 2 began ", "1 rank died, by ", "best evaluation:"]


def test_values_at_the_pointer(tab: Tab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tab.open(page_of(capsys, detailed(tmp_path / "run")))
    box = tab.run(
        "(() => { const c = document.querySelector('svg.chart'), b = c.getBoundingClientRect(), s = b.width /"
        " c.viewBox.baseVal.width, f = c.dataset.frame.split(' ').map(Number), x = c.dataset.x.split(' ').map(Number);"
        " return [b.left + s * (f[0] + f[2] * (4000 - x[0]) / (x[1] - x[0])), b.top + s * (f[1] + f[3] / 4)] })()"
    )
    tab.point(*box)
    said = tab.run("document.getElementById('tip').innerText")
    assert said.splitlines()[0] == "environment steps: 4,000"
    assert {"mean of the last 100: 40", "evaluation: mean: 42", "target: 90"} <= set(said.splitlines())
    assert "evaluation: least to greatest: 35 to 49" in said
    tab.point(1, 1)
    assert tab.run("document.getElementById('tip').hidden") is True


def test_the_page_of_a_folder_sorts(tab: Tab, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = page_of(capsys, folder / "a")
    check(tab, path)
    table = "[...document.querySelectorAll('table')].at(-1)"
    column = f"[...{table}.tBodies[0].rows].map(r => r.cells[4].textContent)"

    def click(name: str) -> None:
        tab.run(f"[...{table}.querySelectorAll('th button')].find(b => b.textContent === {name!r}).click()")

    click("return")
    assert tab.run(column) == ["1", "2", "11", "12", "21", "22"]  # as numbers, not as texts
    click("return")
    assert tab.run(column) == ["22", "21", "12", "11", "2", "1"]
    assert tab.run(f"{table}.querySelector('[aria-sort]').getAttribute('aria-sort')") == "descending"
    click("setting")
    assert tab.run(f"{table}.tBodies[0].rows[0].cells[1].textContent") == "optim.lr=0.0003"
    assert tab.said == []


def test_several_folders_side_by_side(tab: Tab, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = page_of(capsys, folder / "a", folder / "b", "-o", folder / "both.html")
    check(tab, path)
    assert tab.run("[...document.querySelectorAll('h2')].map(h => h.textContent)") == [
        "Comparison", "Side by side", "a", "b",
    ]  # fmt: skip
    left, right = (tab.run(f"document.querySelectorAll('.column')[{k}].getBoundingClientRect().left") for k in (0, 1))
    assert left < right
    ranges = tab.run("[...document.querySelectorAll('.column svg.chart')].map(c => c.dataset.y)")
    assert len(ranges) == 2 and ranges[0] == ranges[1]


def test_light_dark_and_narrow(tab: Tab, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = page_of(capsys, folder / "a")
    try:
        for dark, own, other in ((True, DARK, LIGHT), (False, LIGHT, DARK)):
            tab.run("localStorage.clear()")
            tab.show(1200, 900, dark=dark)
            tab.open(path)
            assert tab.run(BACKGROUND) == own
            tab.run("document.getElementById('theme').click()")
            assert tab.run(BACKGROUND) == other
            tab.open(path)
            assert tab.run(BACKGROUND) == other  # what was chosen stays
        tab.show(420, 900)
        assert tab.run("document.documentElement.scrollWidth") <= 420
    finally:
        tab.run("localStorage.clear()")
        tab.show(1200, 900)


def test_runs_lead_to_their_own_pages(tab: Tab, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = folder / "linked"
    shutil.copytree(folder / "a", copy)
    for run in [path for path in copy.iterdir() if path.is_dir()]:
        page_of(capsys, run)
    tab.open(page_of(capsys, copy))
    links = tab.run("[...document.querySelectorAll('td a')].map(a => a.href)")
    assert len(links) == 6 and all(link.startswith("file:///") and link.endswith("/report.html") for link in links)
    tab.open(copy / "r0-1" / "report.html")
    assert tab.said == []
