"""The house stands: imports point downward only, and MPI is spoken in few rooms."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dppo

ROOT = Path(dppo.__file__).parent

LAYERS = (
    ("bounds",),
    (
        "config",
        "batch",
        "seeding",
        "console",
        "preemption",
        "startup",
        "watchdog",
        "allocation",
        "reading",
        "processes",
    ),
    ("algo", "models", "envs", "commandline", "history", "guard", "counters"),
    ("exchange", "storage", "rollout", "state", "tasks"),
    ("learner", "journal", "results"),
    ("ending", "planning", "workplace", "sync_exchange"),
    ("synchronous", "asynchronous", "opening"),
    ("crew",),
    ("succession", "roles"),
    ("survival",),
    ("run", "evaluate", "trajectories", "sweep", "report", "verdict", "requeue", "job"),
)
"""Rooms from the ground up: a file, or a folder whose files may import each other."""

LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
ROOMS = [path for path in FILES if path != Path("__init__.py")]  # that one is lazy, and belongs to the users


def room_of(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Full names of all that a file imports, anywhere in it: a.b for `import a.b` and a.b.c for `from a.b import c`."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively: write the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_imported(path: Path) -> set[str]:
    """Rooms of dppo that a file imports from."""
    names = [name.split(".") for name in imports(path) if name.split(".")[0] == "dppo"]
    return {parts[1] for parts in names if len(parts) > 1} - {"__version__"}


def test_every_file_has_its_place() -> None:
    assert {room_of(path) for path in ROOMS} == set(LEVEL)


@pytest.mark.parametrize("path", ROOMS, ids=str)
def test_imports_point_downward_only(path: Path) -> None:
    own = room_of(path)
    for room in rooms_imported(path) - {own}:
        assert LEVEL[room] < LEVEL[own], f"{path} (layer {LEVEL[own]}) imports {room} (layer {LEVEL[room]})"


def test_only_the_exchange_and_run_know_mpi() -> None:
    speakers = {room_of(path) for path in FILES if any(name.split(".")[0] == "mpi4py" for name in imports(path))}
    assert speakers == {"exchange", "run"}


def test_only_run_says_comm_world() -> None:
    """Elsewhere the communicator is an argument; words in docstrings do not count."""
    speakers = set()
    for path in FILES:
        nodes = ast.walk(ast.parse((ROOT / path).read_text()))
        if any(isinstance(n, ast.Attribute) and n.attr in ("COMM_WORLD", "COMM_SELF") for n in nodes):
            speakers.add(path.name)
    assert speakers == {"run.py"}


@pytest.mark.parametrize("path", [p for p in FILES if room_of(p) == "algo"], ids=str)
def test_the_mathematics_is_pure(path: Path) -> None:
    """No MPI, environments, files, clocks or torch."""
    outside = {name.split(".")[0] for name in imports(path)} - {"__future__", "dppo"}
    assert outside <= {"collections", "dataclasses", "math", "typing", "numpy"}


def test_the_ground_floor_needs_the_standard_library_and_numpy_only() -> None:
    for path in ROOMS:
        if LEVEL[room_of(path)] <= LEVEL["config"]:
            outside = {name.split(".")[0] for name in imports(path)} - {"numpy", "dppo"}
            assert outside <= set(sys.stdlib_module_names), path


@pytest.mark.parametrize("module", ["dppo", "dppo.startup", "dppo.config", "dppo.commandline", "dppo.sweep"])
def test_light_modules_load_neither_numpy_nor_torch_nor_mpi(module: str) -> None:
    """Threads and Open MPI's parameters must be set before these are imported."""
    code = f"import sys, {module}; print(*sorted({{'numpy', 'torch', 'mpi4py'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_report_loads_neither_torch_nor_mpi() -> None:
    code = "import sys, dppo.report; print(*sorted({'torch', 'mpi4py', 'h5py', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_packages_names_are_there() -> None:
    assert set(dppo.__all__) == set(dppo._HOMES)
    assert dppo.Config.__module__ == "dppo.config"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dppo.nothing  # noqa: B018


def test_the_packages_names_are_listed() -> None:
    assert {*dppo.__all__, "__version__", "__doc__"} <= set(dir(dppo))
    assert {name for name in dir(dppo) if not name.startswith("_")} == set(dppo.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+", dppo.__version__)


def test_the_folder_above_a_clone_imports_the_package_and_not_the_clone(tmp_path: Path) -> None:
    (tmp_path / "dppo").symlink_to(ROOT.parent)
    code = "import dppo, dppo.storage; from dppo import Config; print(dppo.__file__, dppo.__path__, *dir(dppo))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    inner = tmp_path / "dppo" / "dppo"
    assert done.stdout.split()[:2] == [f"{inner}/__init__.py", f"['{inner}']"] and "train" in done.stdout
    command = [sys.executable, "-m", "dppo.sweep", "dppo/jobs/sweep.toml"]
    assert "6 task(s)" in subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
