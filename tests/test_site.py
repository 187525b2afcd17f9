"""What the documentation site makes of the code, and the record by which dppo is cited. `make docs` builds the site."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from dppo.config import VERSION, Config, LogConfig
from dppo.settings.flags import flag_names
from dppo.settings.toml import presets

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[1]
KEYS = {
    "abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi", "identifiers", "keywords",
    "license", "license-url", "message", "preferred-citation", "references", "repository", "repository-artifact",
    "repository-code", "title", "type", "url", "version",
}  # fmt: skip
"""That the Citation File Format 1.2.0 knows."""


@pytest.fixture(scope="module")
def made() -> ModuleType:
    """docs/made.py."""
    spec = importlib.util.spec_from_file_location("made", ROOT / "docs" / "made.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_flag_is_in_the_reference_once_with_values_default_and_meaning(made: ModuleType) -> None:
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in made.flags(ROOT).splitlines()
        if line.startswith("| `--")
    ]
    assert [row[0].strip("`").removeprefix("--") for row in rows] == sorted(flag_names(), key=lambda n: "." in n)
    assert all(len(row) == 4 and all(row) for row in rows)
    of = {row[0]: row[1:] for row in rows}
    assert of["`--ppo.clip`"] == ["number, in (0, 10]", "`0.2`", "Clip range of the probability ratio."]
    assert of["`--mode`"][:2] == ["`sync`, `async`", "`sync`"]
    assert of["`--log.tensorboard`"][:2] == ["switch", "on"]
    assert of["`--model.hidden`"][:2] == ["whole number …", "`64 64`"]
    assert of["`--optim.lr`"][:2] == ["number, positive, and at most 1000", "–"]
    assert "[gpu](gpu.md)" in of["`--device`"][2]


def test_each_field_has_a_docstring(made: ModuleType) -> None:
    assert made.docstrings(LogConfig)["tensorboard"] == "Write TensorBoard event files."
    with pytest.raises(KeyError):
        made.docstrings(Config)["ppo"]  # a section, which has the docstring of its class


def test_each_preset_is_in_the_reference(made: ModuleType) -> None:
    text = made.preset_table(ROOT)
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:]] == [
        name.removesuffix(".toml") for name in sorted(presets())
    ]
    assert "| Hopper-v5.ppo | `" in text


def test_a_page_that_no_list_names_is_listed_under_more(made: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("```{toctree}\n:hidden:\n\nold\n```\n")
    assert made.rest(tmp_path) == ""
    for name in ("old", "new"):
        (tmp_path / "docs" / f"{name}.md").write_text("# A page\n")
    assert made.rest(tmp_path).splitlines()[-2] == "new" and "old" not in made.rest(tmp_path)


def test_what_the_documents_leave_to_the_code_can_be_made(made: ModuleType) -> None:
    wanted = {n for path in (ROOT / "docs").glob("*.md") for n in re.findall(r"<!-- made: (\w+) -->", path.read_text())}
    assert wanted == set(made.PARTS)


def test_the_citation_is_of_this_version_and_has_the_form_of_its_format() -> None:
    record = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert set(record) <= KEYS and {"cff-version", "message", "title", "authors"} <= set(record)
    assert record["cff-version"] == "1.2.0" and record["type"] in ("software", "dataset")
    assert record["authors"] and all(set(a) & {"name", "family-names", "given-names"} for a in record["authors"])
    assert record["version"] == VERSION
    assert f"version {VERSION}" in (ROOT / "docs" / "index.md").read_text()
