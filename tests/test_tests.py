"""The tests mirror the modules that carry a run: each has a file of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

import dppo
from tests.conftest import LONG

PACKAGE, TESTS = Path(dppo.__file__).parent, Path(__file__).parent
MODULES = sorted(
    path.relative_to(PACKAGE)
    for folder in ("run", "comm", "training")
    for path in (PACKAGE / folder).glob("*.py")
    if path.name != "__init__.py"
)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_module_of_a_run_has_a_test_file_of_its_own(module: Path) -> None:
    """A file that begins a program, __main__.py, is tested by test_main.py."""
    path = TESTS / module.parent / f"test_{module.stem.strip('_')}.py"
    assert path.exists(), f"{module} has no {path.relative_to(TESTS.parent)}"
    assert "def test_" in path.read_text()


@pytest.mark.parametrize("name", LONG)
def test_long_files_are_there(name: str) -> None:
    assert (TESTS / name).is_file()
