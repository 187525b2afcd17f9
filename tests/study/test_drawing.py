"""SVG of charts: well-formed, escaped, with gaps, small however many points there are."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np

from dppo.study.charts import Band, Bars, Chart, Interval, Intervals, Item, Line, Mark, Points, Stack
from dppo.study.drawing import svg

X = np.array([0.0, 1, 2, 3, 4])
MARKUP = '<b onclick="x">&\'\u202e\x1b'


def drawn(*items: Item, **given: object) -> ElementTree.Element:
    return ElementTree.fromstring(svg(Chart(MARKUP, MARKUP, MARKUP, items, **given)))  # type: ignore[arg-type]


def test_every_form_is_well_formed_and_names_are_text() -> None:
    y = np.array([1.0, np.nan, 3, 2, 1])
    row = Interval(MARKUP, 0, 1.0, 0.5, 2.0, np.array([1.0]))
    root = drawn(
        Line(MARKUP, X, y), Band(MARKUP, X, y, y + 1), Points(MARKUP, X, y), Stack(X, [(MARKUP, X), (MARKUP, X)]),
        Bars(MARKUP, X, X), marks=[Mark(1, "death", MARKUP), Mark(2, "other", MARKUP)],
    )  # fmt: skip
    across = drawn(Intervals([row], across=True), y_ticks=[(0, MARKUP)])
    for element in (*root.iter(), *across.iter()):
        assert element.tag in ("svg", "path", "text", "g", "rect", "circle")
        assert not any(name.startswith("on") for name in element.attrib)
    texts = {text.text for text in root.iter("text")} | {path.get("data-name") for path in root.iter("path")}
    assert '<b onclick="x">&\'\\u202e\\x1b' in texts  # control codes are spelt out
    assert not re.search("[\u202e\x1b]", ElementTree.tostring(root, "unicode"))


def test_gaps_break_lines_and_bands() -> None:
    y = np.array([1.0, 2, np.nan, 2, 1])
    (line,) = [p for p in drawn(Line("l", X, y)).iter("path") if p.get("data-kind") == "line"]
    assert line.attrib["d"].count("M") == 2
    assert len([p for p in drawn(Band("b", X, y, y + 1)).iter("path") if p.get("data-kind") == "band"]) == 2
    (one,) = [p for p in drawn(Line("l", X[:1], y[:1])).iter("path") if p.get("data-kind") == "line"]
    assert one.attrib["d"].endswith("h1")


def test_places_are_those_of_the_frame() -> None:
    root = drawn(Line("l", X, X), y_range=(0.0, 8.0))
    (path,) = [p for p in root.iter("path") if p.get("data-kind") == "line"]
    *_, width, height = map(float, root.attrib["data-frame"].split())
    assert path.attrib["d"].startswith(f"M0.0,{height:.2f}") and path.attrib["d"].endswith(
        f"L{width:.1f},{height / 2:.2f}"
    )
    log = drawn(Line("l", np.array([1.0, 10, 100]), X[:3]), is_log=True)
    (path,) = [p for p in log.iter("path") if p.get("data-kind") == "line"]
    a, b, c = (float(x) for x in re.findall(r"[ML]([\d.]+),", path.attrib["d"]))
    assert b - a == c - b or abs((b - a) - (c - b)) < 0.2


def test_a_million_points_take_little_room() -> None:
    rng = np.random.default_rng(0)
    x, y = np.arange(1e6), rng.normal(size=1_000_000)
    assert len(svg(Chart("t", "x", "y", [Points("p", x, y), Line("l", x, y), Band("b", x, y, y + 1)]))) < 400_000
