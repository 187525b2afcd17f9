"""A page: one HTML file with sections of text, tables and charts, which needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from dppo.config import VERSION
from dppo.errors import UsageError, missing_package
from dppo.files import plain
from dppo.rundir import paths
from dppo.study.charts import Chart, short_number
from dppo.study.drawing import legend_marks, svg

FILE = paths.REPORT


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    value: float | str | None = None
    """What the table sorts by; None: the text."""
    tone: str = ""
    """good, bad or strong: how it is shown."""
    link: str = ""
    """The address, relative to the page, that it leads to."""


@dataclass(frozen=True)
class Table:
    """A table that sorts by a click on a column's name."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    num_left: int = 1
    """The number of columns that begin on the left; the others hold numbers."""
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class Text:
    """Lines of text; of more than one, a list."""

    lines: Sequence[str]
    tone: str = ""
    kind: str = field(default="text", init=False)


@dataclass(frozen=True)
class Code:
    """A command to copy."""

    text: str
    kind: str = field(default="code", init=False)


@dataclass(frozen=True)
class Figures:
    """Numbers to see at a glance: names and texts."""

    pairs: Sequence[tuple[str, str]]
    kind: str = field(default="figures", init=False)


@dataclass(frozen=True)
class Html:
    """A piece of HTML in which everything is escaped already."""

    text: str
    kind: str = field(default="html", init=False)


@dataclass(frozen=True)
class Details:
    """Parts that a click opens."""

    title: str
    parts: Sequence[Any]
    kind: str = field(default="details", init=False)


@dataclass(frozen=True)
class Columns:
    """Several lists of parts side by side, each with a title."""

    columns: Sequence[tuple[str, Sequence[Any]]]
    kind: str = field(default="columns", init=False)


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading."""

    title: str
    parts: Sequence[Any]


@dataclass(frozen=True)
class Page:
    """A whole page."""

    title: str
    subtitle: str
    sections: Sequence[Section]

    def charts(self) -> Iterator[Chart]:
        """Yields all charts."""
        for section in self.sections:
            yield from _charts(section.parts)


def _charts(parts: Sequence[Any]) -> Iterator[Chart]:
    for part in parts:
        if isinstance(part, Chart):
            yield part
        elif isinstance(part, Details):
            yield from _charts(part.parts)
        elif isinstance(part, Columns):
            for _, column in part.columns:
                yield from _charts(column)


def number_cell(value: float | None, text: str | None = None, tone: str = "") -> Cell:
    """Returns the cell of a number; – where there is none, which sorts as the least."""
    if value is None:
        return Cell("–", float("-inf"), tone)
    return Cell(short_number(value) if text is None else text, value, tone)


def render(page: Page, *, made: str, reload_s: float | None = None) -> bytes:
    """Returns the page as a file.

    Args:
      made: when it was made, as a text.
      reload_s: seconds after which the page loads itself anew; None: never.

    Raises:
      UsageError: Jinja is missing.
    """
    try:
        from jinja2 import DictLoader, Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise UsageError(f"no page can be made: {missing_package('Jinja2', error)}") from error
    texts = {name: _stored(name) for name in ("page.html.jinja", "page.css", "page.js")}
    environment = Environment(
        autoescape=True, loader=DictLoader(texts), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        # names are data: a control code, or a mark that reverses the order of letters, is spelt out
        finalize=lambda value: value if isinstance(value, Markup) else plain(value),
    )  # fmt: skip
    environment.globals.update(svg=lambda chart: Markup(svg(chart)), markup=Markup, legend_marks=legend_marks)
    script = texts["page.js"]
    text = environment.get_template("page.html.jinja").render(
        page=page, made=made, version=VERSION, reload_s=reload_s,
        css=Markup(texts["page.css"]), script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip
    return text.encode()


def _stored(name: str) -> str:
    return (resources.files("dppo.study") / name).read_text(encoding="utf-8")
