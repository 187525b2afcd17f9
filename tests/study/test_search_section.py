"""What a report says and shows of a study."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dppo.errors import UsageError
from dppo.study.local import BROKEN, DONE, Outcome
from dppo.study.search_section import html_section, read_study, text_lines
from tests.study.test_trials import TEXT, end, make_all, worker

MANY = TEXT.replace("trials = 3", "trials = 12\nsampler = 'random'").replace(
    "ppo.epochs", 'env-kwargs.gain = {choices = ["<b>a</b>", "b", [1, 2]]}\nppo.epochs'
)


def test_a_folder_without_a_study(tmp_path: Path) -> None:
    assert read_study(tmp_path) is None


def test_the_setting_that_matters_is_named_first(tmp_path: Path) -> None:
    make_all(worker(tmp_path, text=MANY))
    before = (tmp_path / "study.journal").read_bytes()
    data = read_study(tmp_path)
    assert data is not None and data.best is not None and len(data.trials) == 12
    assert data.best.value == max(row.settings["optim.lr"] for row in data.trials)
    assert next(iter(data.importance)) == "optim.lr" and sum(data.importance.values()) == pytest.approx(1.0)
    assert text_lines(data)[0] == "study: 12 trials, optimised return; 12 complete"
    assert text_lines(data)[1].startswith(f"best: trial {data.best.number}, 0.00")
    assert (tmp_path / "study.journal").read_bytes() == before  # it only reads


def test_the_pictures_are_svg_that_needs_nothing_else(tmp_path: Path) -> None:
    make_all(worker(tmp_path, text=MANY))
    data = read_study(tmp_path)
    assert data is not None
    page = html_section(data)
    pictures = re.findall(r"<svg.*?</svg>", page)
    assert len(pictures) == 3
    for picture in pictures:
        ElementTree.fromstring(picture)
    circles = len(re.findall("<circle", pictures[0]))
    assert (
        circles == 12 and len(re.findall("<rect", pictures[1])) == 3 and len(re.findall("<polyline", pictures[2])) == 12
    )
    assert "<b>a</b>" not in page and "&lt;b&gt;a&lt;/b&gt;" in page
    assert re.findall(r"(?:src|href)=", page) == []


def test_few_trials_and_failed_ones(tmp_path: Path) -> None:
    source = worker(tmp_path)
    job = source.next()
    assert job is not None
    source.ended(job, Outcome(BROKEN, "it broke"))
    job = source.next()
    assert job is not None
    data = read_study(tmp_path)
    assert data is not None and [row.state for row in data.trials] == ["failed", "running"]
    assert data.trials[0].reason == "it broke" and data.best is None
    assert "<svg" not in html_section(data)
    end(job, 3.0)
    source.ended(job, Outcome(DONE))
    data = read_study(tmp_path)
    assert data is not None and html_section(data).count("<svg") == 1


def test_a_damaged_study_is_named(tmp_path: Path) -> None:
    worker(tmp_path)
    (tmp_path / "study.journal").write_text("nothing\nof\nOptuna's\n")
    with pytest.raises(UsageError, match=r"study\.journal cannot be read"):
        read_study(tmp_path)
