"""The names of a run directory's files and folders are told once."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dppo
from dppo.rundir import paths

ROOT = Path(dppo.__file__).parent
NAMES = {value for name, value in vars(paths).items() if name.isupper()}
HOMES = {"rundir/paths.py", "settings/toml.py"}  # the latter's config.toml is told on, as it lies below rundir/
OTHERS = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py"))


def spelt_out(tree: ast.AST) -> Iterator[str]:
    """Names of files, and what is put behind a folder by `/`; the name of a section or a thread is another thing."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in NAMES and not str(node.value).isidentifier():
            yield str(node.value)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant):
            yield from {part for name in NAMES for part in name.split("/") if part == node.right.value}


@pytest.mark.parametrize("path", [path for path in OTHERS if path not in HOMES])
def test_no_other_module_spells_a_name_out(path: str) -> None:
    assert list(spelt_out(ast.parse((ROOT / path).read_text()))) == []


def test_a_spelt_out_name_is_found() -> None:
    tree = ast.parse('run_dir / "checkpoints" / "latest"; ("summary.json",); section = "trajectories"')
    assert sorted(spelt_out(tree)) == ["checkpoints", "latest", "summary.json"]


def test_names_that_hold_a_number_sort_by_it() -> None:
    assert paths.checkpoint_name(50_176) == "step_000050176" > paths.checkpoint_name(9_999)
    assert paths.rank_name(12) == "rank_00012" > paths.rank_name(9)
