"""The picture of a report: it is whole, the same again, and not there without Matplotlib."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from dppo.study.curves import COLOURS, draw

CURVE = np.array([[0, 1, 2], [1, 2, 3], [0, 1, 2], [2, np.nan, 4]], np.float64)


def test_a_curve_of_each_with_its_label(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "report.svg"
    draw(path, [("optim.lr=0.1", CURVE), ("optim.lr=0.2", CURVE + 1)])
    first = path.read_bytes()
    assert b"optim.lr=0.1" in first and b"optim.lr=0.2" in first
    assert all(colour.lower().encode() in first for colour in COLOURS[:2])
    draw(path, [("optim.lr=0.1", CURVE), ("optim.lr=0.2", CURVE + 1)])
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["report.svg"]


def test_no_more_curves_than_colours(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most 8 curves, got 9"):
        draw(tmp_path / "report.svg", [("x", CURVE)] * 9)


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError):
        draw(tmp_path / "report.svg", [("x", CURVE)])
    assert list(tmp_path.iterdir()) == []
