"""The parts of the site that are made of the code: every flag, the presets, and the pages that no list names."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from dppo.bounds import Range, hints
from dppo.config import Config
from dppo.settings.toml import presets


def docstrings(cls: type) -> dict[str, str]:
    """Returns the docstring below each field of a class, in one line."""
    (node,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(node, ast.ClassDef)
    found = {}
    for field, text in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            assert isinstance(text.value, ast.Constant)
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def values(hint: Any) -> str:
    """Returns the type of a setting, or its choices, as a reader of the reference sees them."""
    if get_origin(hint) is Annotated:
        return values(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(hint))
    parts = [part for part in get_args(hint) if part not in (NoneType, Ellipsis)]
    if get_origin(hint) is tuple:
        return "tables" if get_origin(parts[0]) is dict else f"{values(parts[0])} …"
    if get_origin(hint) is dict:
        return "KEY=VALUE …"
    if parts:  # of one type, or none
        return values(parts[0])
    return {"int": "whole number", "float": "number", "str": "text", "bool": "switch"}[hint.__name__]


def range_of(hint: Any) -> str:
    """Returns the words of the range of a setting, or ""."""
    found = next((part for part in getattr(hint, "__metadata__", ()) if isinstance(part, Range)), None)
    return re.sub("^must (be |lie )?", "", found.said) if found is not None else ""


def default_of(field: Any) -> str:
    """Returns the default of a setting as a flag is given it; "" where there is none."""
    value = field.default if field.default is not MISSING else field.default_factory()
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None or value in ((), {}):
        return "–"
    shown = (
        " ".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else value
    )
    return f"`{shown}`"


def _table(cls: type, prefix: str) -> Iterator[str]:
    texts = docstrings(cls)
    yield "| flag | values | default | meaning |"
    yield "|---|---|---|---|"
    for field in fields(cls):
        hint = hints(cls)[field.name]
        if is_dataclass(hint):
            continue
        allowed = ", ".join(filter(None, (values(hint), range_of(hint))))
        meaning = re.sub(r"docs/(\w+)\.md", r"[\1](\1.md)", texts[field.name]).replace("|", "\\|")
        name = f"--{prefix}{field.name}".replace("_", "-")
        yield f"| `{name}` | {allowed} | {default_of(field)} | {_escaped(meaning)} |"


def _escaped(text: str) -> str:
    """Leaves code and links, and escapes what Markdown would take for emphasis or a tag."""
    parts = re.split(r"(`[^`]*`|\[\w+\]\(\w+\.md\))", text)
    return "".join(part if at % 2 else re.sub(r"[*_<>]", r"\\\g<0>", part) for at, part in enumerate(parts))


def flags(root: Path) -> str:
    """Returns a table of each section of settings, from `dppo/config.py`."""
    lines = ["## Of the run", "", *_table(Config, "")]
    for name, hint in hints(Config).items():
        if is_dataclass(hint):
            assert isinstance(hint, type)
            lines += ["", f"## {name}", "", str(hint.__doc__).splitlines()[0], "", *_table(hint, f"{name}.")]
    return "\n".join(lines)


def preset_table(root: Path) -> str:
    """Returns a table of the settings that each preset changes."""
    lines = ["| preset | settings |", "|---|---|"]
    for name, path in sorted(presets().items()):
        settings = _flat(tomllib.loads(path.read_text()))
        lines.append(f"| {name.removesuffix('.toml')} | {' '.join(f'`{key}={value}`' for key, value in settings)} |")
    return "\n".join(lines)


def _flat(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, " ".join(map(str, value)) if isinstance(value, list) else value


def rest(root: Path) -> str:
    """Returns the tree of the pages that docs/index.md does not name: a new page is there at once."""
    index = (root / "docs" / "index.md").read_text()
    named = set(
        re.findall(r"^(?:.*<)?([\w./-]+)>?$", "\n".join(re.findall(r"```{toctree}\n(.*?)```", index, re.S)), re.M)
    )
    pages = sorted(path.stem for path in (root / "docs").glob("*.md"))
    more = [page for page in pages if page not in named | {"index"}]
    return "\n".join(["```{toctree}", ":caption: More", ":hidden:", "", *more, "```"]) if more else ""


PARTS: dict[str, Callable[[Path], str]] = {"flags": flags, "presets": preset_table, "rest": rest}
"""By the names that the documents have for them."""
