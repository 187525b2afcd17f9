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

FLOORS = (
    ("bounds", "errors", "data", "seeding"),
    ("config", "files", "seams", "cluster"),
    ("console", "settings", "algo", "envs"),
    ("models", "comm", "rundir"),
    ("trajectories",),
    ("training",),
    ("run", "study", "verdict", "requeue"),
    ("evaluate", "export", "report", "sweep", "job", "__main__"),
)
"""From the ground up. Files and folders import lower floors only; files of one folder may import each other."""

LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
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


def test_the_house_can_be_seen_at_a_glance() -> None:
    """Each folder as one node of the graph of imports."""
    edges = {(room_of(path), room) for path in ROOMS for room in rooms_imported(path) - {room_of(path)}}
    levels = 1 + max(LEVEL.values())
    assert len(LEVEL) <= 30 and levels <= 8 and len(edges) <= 110, (len(LEVEL), levels, len(edges))
    entries = [path for path in ROOT.iterdir() if not path.name.startswith(("_", "."))]
    assert sum(path.suffix == ".py" for path in entries) <= 15 and sum(path.is_dir() for path in entries) <= 11


def test_files_of_a_folder_do_not_import_each_other_in_circles() -> None:
    asked = {path: {name for name in imports(path) if name.split(".")[0] == "dppo"} for path in ROOMS}
    names = {".".join(("dppo", *path.with_suffix("").parts)): path for path in ROOMS}
    above: dict[Path, set[Path]] = {}
    for path, wanted in asked.items():
        parts = {name.rpartition(".")[0] for name in wanted} | wanted
        above[path] = {names[part] for part in parts if part in names and names[part] != path}

    def look(path: Path, way: tuple[Path, ...]) -> None:
        assert path not in way, " -> ".join(map(str, (*way, path)))
        if path not in seen:
            for other in above[path]:
                look(other, (*way, path))
            seen.add(path)

    seen: set[Path] = set()
    for path in ROOMS:
        look(path, ())


METHODS = frozenset({
    "Allgather", "Allgatherv", "Allreduce", "Barrier", "Bcast", "Gather", "Gatherv", "Iprobe", "Irecv", "Isend", "Recv",
    "Send", "Shrink", "Agree", "Iagree", "Revoke", "Spawn", "Split", "Dup", "Free", "Abort", "Test", "Testsome", "Wait",
    "Merge", "Create_intercomm", "Ibarrier",
})  # fmt: skip


def test_only_comm_and_run_speak_mpi() -> None:
    """By the methods that they call, and by what they import."""
    speakers = set()
    for path in FILES:
        nodes = list(ast.walk(ast.parse((ROOT / path).read_text())))
        calls = {
            node.func.attr for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        if calls & METHODS or any(name.split(".")[0] == "mpi4py" for name in imports(path)):
            speakers.add(room_of(path))
    assert speakers == {"comm", "run"}
    assert [p for p in FILES if any(n.split(".")[0] == "mpi4py" for n in imports(p))] == [Path("comm/mpi.py")]


def test_only_run_says_comm_world() -> None:
    """Elsewhere the communicator is an argument; words in docstrings do not count."""
    speakers = set()
    for path in FILES:
        nodes = ast.walk(ast.parse((ROOT / path).read_text()))
        if any(isinstance(n, ast.Attribute) and n.attr in ("COMM_WORLD", "COMM_SELF") for n in nodes):
            speakers.add(path.name)
    assert speakers == {"command.py"}


READERS = {
    Path("cluster", "launcher.py"): r"\b(?:OMPI_|PMI_|PMIX_|PRTE_|MV2_|MPI_LOCALNRANKS)\w*",
    Path("cluster", "slurm.py"): r"\bSLURM_\w+",
}
"""The only module that names a launcher's variables, and which; the batch system's, likewise."""
PARAMETERS = re.compile(r"OMPI_MCA_\w+")
"""Open MPI's own settings: startup.py sets them."""


@pytest.mark.parametrize("reader", READERS, ids=str)
def test_variables_of_launchers_and_of_slurm_are_read_in_one_module_each(reader: Path) -> None:
    """Named in the text, comments included: elsewhere a function of that module is called."""
    named = {path: set(re.findall(READERS[reader], (ROOT / path).read_text())) for path in FILES}
    assert named.pop(reader)
    startups = named.pop(Path("cluster", "startup.py"))
    assert {path: names for path, names in named.items() if names} == {}
    assert {name for name in startups if not PARAMETERS.fullmatch(name)} == set()


@pytest.mark.parametrize("path", [p for p in FILES if room_of(p) == "algo"], ids=str)
def test_the_mathematics_is_pure(path: Path) -> None:
    """No MPI, environments, files, clocks or torch."""
    outside = {name.split(".")[0] for name in imports(path)} - {"__future__", "dppo"}
    assert outside <= {"collections", "dataclasses", "importlib", "math", "typing", "numpy"}


def test_the_ground_floor_needs_the_standard_library_and_numpy_only() -> None:
    for path in ROOMS:
        if LEVEL[room_of(path)] <= LEVEL["cluster"] or room_of(path) == "console":
            outside = {name.split(".")[0] for name in imports(path)} - {"numpy", "dppo"}
            # one where NumPy is there already, one for annotations alone
            allowed = {"startup.py": {"threadpoolctl"}, "seams.py": {"gymnasium"}}.get(path.name, set())
            assert outside - allowed <= set(sys.stdlib_module_names), path


@pytest.mark.parametrize(
    "module",
    [
        "dppo",
        "dppo.cluster.startup",
        "dppo.config",
        "dppo.settings.flags",
        "dppo.sweep",
        "dppo.job",
        "dppo.__main__",
        "dppo.cluster.guard",
    ],
)
def test_light_modules_load_neither_numpy_nor_torch_nor_mpi(module: str) -> None:
    """Threads and Open MPI's parameters must be set before these are imported."""
    code = f"import sys, {module}; print(*sorted({{'numpy', 'torch', 'mpi4py'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


MODULES = sorted(".".join(("dppo", *path.with_suffix("").parts)) for path in ROOMS if path.name != "__init__.py")


def test_no_import_has_a_side_effect() -> None:
    """No threads limited, no variable set, no MPI started, no handler of a signal."""
    code = f"""if True:
        import importlib, os, signal, sys, threading
        handlers = lambda: [signal.getsignal(number) for number in sorted(signal.valid_signals())]
        os.environ["PYGAME_HIDE_SUPPORT_PROMPT"] = "hide"  # Gymnasium sets it
        before = dict(os.environ), handlers()
        for module in {MODULES!r}:
            importlib.import_module(module)
            assert (dict(os.environ), handlers()) == before, module
            assert threading.active_count() == 1, module
            mpi = sys.modules.get("mpi4py.MPI")
            assert mpi is None or not mpi.Is_initialized(), module
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_report_loads_neither_torch_nor_mpi() -> None:
    code = "import sys, dppo.report; print(*sorted({'torch', 'mpi4py', 'h5py', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_packages_names_are_there() -> None:
    assert set(dppo.__all__) == {*dppo._HOMES, "train"}
    assert dppo.Config.__module__ == "dppo.config"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dppo.nothing  # noqa: B018


def test_the_packages_names_are_listed() -> None:
    assert {*dppo.__all__, "__version__", "__doc__"} <= set(dir(dppo))
    assert {name for name in dir(dppo) if not name.startswith("_")} == set(dppo.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+", dppo.__version__)


def test_the_folder_above_a_clone_imports_the_package_and_not_the_clone(tmp_path: Path) -> None:
    (tmp_path / "dppo").symlink_to(ROOT.parent)
    code = "import dppo, dppo.rundir; from dppo import Config; print(dppo.__file__, dppo.__path__, *dir(dppo))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    inner = tmp_path / "dppo" / "dppo"
    assert done.stdout.split()[:2] == [f"{inner}/__init__.py", f"['{inner}']"] and "train" in done.stdout
    command = [sys.executable, "-m", "dppo.sweep", "dppo/jobs/sweep.toml"]
    assert "6 task(s)" in subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
