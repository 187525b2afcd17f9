"""Figures for papers: PNG and PDF files, the same bytes each time."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from dppo.errors import UsageError
from dppo.study.charts import Band, Bars, Chart, Interval, Intervals, Line, Mark, Points, Stack
from dppo.study.papers import write

X = np.arange(5.0)
ROW = Interval("r", 0, 1.0, 0.5, 2.0, np.array([0.5, 2.0]))
CHARTS = (
    Chart("All: $x$", "x", "_y", [
        Line("_a", X, X), Band("b", X, X, X + 1), Points("c", X, X), Stack(X, [("d", X), ("e", X)]), Bars("f", X, X),
    ], [Mark(1, "death", "")]),
    Chart("All: $x$", "x", "y", [Intervals([ROW], across=True)], y_ticks=[(0, "r")]),
)  # fmt: skip


def test_each_chart_is_two_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = write(CHARTS, tmp_path / "new" / "figures")
    assert [file.name for file in files] == ["01-all-x.png", "01-all-x.pdf", "02-all-x.png", "02-all-x.pdf"]
    assert sorted(path.name for path in (tmp_path / "new" / "figures").iterdir()) == sorted(f.name for f in files)
    before = [file.read_bytes() for file in files]
    assert before[0].startswith(b"\x89PNG") and before[1].startswith(b"%PDF")
    write(CHARTS, tmp_path / "new" / "figures")
    assert [file.read_bytes() for file in files] == before


def test_without_matplotlib_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"--figures: .*pip install 'dppo\[analysis\]'"):
        write(CHARTS, tmp_path / "figures")
    assert not (tmp_path / "figures").exists()
