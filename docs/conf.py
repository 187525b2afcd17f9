"""The site: `make docs` builds it from the documents, which stay readable where they are.

Sphinx's folder is the top of the repository, so that links between documents lead to the same places in both. Lines
that begin with `<!-- made:` are replaced by what `docs/made.py` makes of the code.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

import made  # noqa: E402

import dppo  # noqa: E402

project = "dppo"
author = copyright = "the dppo authors"
version = release = dppo.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "*.md", "benchmarks/**/*.md", "examples/**/*.md"]
exclude_patterns = [".*", "build", "dist", "runs", "dppo", "tests", "jobs", "scripts", "**/__pycache__"]

html_theme = "furo"
html_title = f"dppo {version}"
html_copy_source = html_show_sourcelink = False
pygments_style = "friendly"

LISTED = ("README", "CHANGELOG", "CONTRIBUTING")

myst_heading_anchors = 4
myst_links_external_new_tab = True
# tables of results begin with a heading of any level
suppress_warnings = ["myst.header"]

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
default_role = "code"
napoleon_google_docstring, napoleon_numpy_docstring = True, False


def _replace(app: Any, document: str, content: list[str]) -> None:
    """Puts what is made of the code into a document, and takes links to folders for words. Measurements and the
    pages of examples are linked by others, and are in no list.
    """
    text = re.sub(r"^<!-- made: (\w+) -->$", lambda found: made.PARTS[found[1]](ROOT), content[0], flags=re.MULTILINE)
    here = (ROOT / document).parent

    def link(found: re.Match[str]) -> str:
        return found[1] if (here / found[2]).is_dir() else found[0]

    text = re.sub(r"\[([^\]]*)\]\(([^)#:\s]+)\)", link, text)
    content[0] = text if document in LISTED or document.startswith("docs/") else f"---\norphan: true\n---\n\n{text}"


def _as_restructured_text(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with `code` in it; a module's own says where things are made, for those who read it."""
    if what == "module":
        lines.clear()
    for at, line in enumerate(lines):
        parts = re.split(r"(`[^`]*`)", line)
        lines[at] = "".join(p if i % 2 else re.sub(r"[*|]", r"\\\g<0>", p) for i, p in enumerate(parts))


def _lead_to_the_index(app: Any, error: Exception | None) -> None:
    if error is None:
        text = '<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html"><title>dppo</title>\n'
        Path(app.outdir, "index.html").write_text(text)


def setup(app: Any) -> dict[str, bool]:
    app.connect("source-read", _replace)
    # these change with the code and with the list of pages, not with their own text
    app.connect("env-get-outdated", lambda *_: ["docs/index", "docs/flags", "docs/api"])
    app.connect("autodoc-process-docstring", _as_restructured_text, priority=400)  # before napoleon
    app.connect("build-finished", _lead_to_the_index)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
