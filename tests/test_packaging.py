"""What is handed out is complete: the source distribution has what its tests need, the wheel what a user needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = "from setuptools.build_meta import build_sdist, build_wheel; build_{kind}('{folder}')"


def tracked() -> set[str]:
    """Files of the repository; links to folders, which the distribution holds as folders, are left out."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("only a git checkout says which files belong to the repository")
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}


def build(kind: str, tree: Path, folder: Path) -> Path:
    code = BUILD.format(kind=kind, folder=folder)
    ended = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of a source distribution of the repository, as `python -m build` makes them."""
    pytest.importorskip("setuptools")
    tree, sdist, wheel, unpacked = (tmp_path_factory.mktemp(name) for name in ("tree", "sdist", "wheel", "unpacked"))
    for name in tracked():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    (tree / "dppo" / "cluster" / "jobs").symlink_to("../../jobs")
    with tarfile.open(build("sdist", tree, sdist)) as archive:
        archive.extractall(unpacked, filter="data")
    (top,) = unpacked.iterdir()
    packed = {str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()}
    assert tracked() <= packed, "the source distribution is not whole"
    return build("wheel", top, wheel)


def test_a_wheel_of_the_source_distribution_has_all_that_a_user_needs(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    scripts = {f"dppo/cluster/jobs/{path.name}" for path in (ROOT / "jobs").iterdir()}
    include = {f"dppo/envs/include/{name}" for name in ("dppo.h", "dppo.f90", "dppo_fortran.c")}
    presets = {f"dppo/settings/presets/{path.name}" for path in (ROOT / "dppo/settings/presets").iterdir()}
    others = {"dppo/cluster/openmpi.sh", "dppo/py.typed", "dppo/__main__.py"}
    pages = {f"dppo/study/page.{ending}" for ending in ("html.jinja", "css", "js")}
    assert scripts | include | presets | others | pages <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "docs/", "benchmarks/"))]
    kernels = [name for name in names if name.startswith("dppo/algo/kernels.") and name.endswith(".so")]
    assert len(kernels) == (shutil.which("cc") is not None)
    (entries,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "dppo = dppo.__main__:main" in archive.read(entries).decode()


@pytest.mark.slow
def test_an_installed_wheel_trains_in_another_folder(wheel: Path, tmp_path: Path) -> None:
    """Into an environment that has the dependencies and nothing else; MPI is this one's."""
    venv, here = tmp_path / "venv", Path(sys.executable).parent
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=60)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin" / "python"), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", wheel], check=True, timeout=60)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "OMPI_", "DPPO_"))}

    def run(*command: object) -> str:
        done = subprocess.run(
            [str(word) for word in command], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=100,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    dppo = venv / "bin" / "dppo"
    mpirun = (here / "mpirun", "--allow-run-as-root", "--oversubscribe", "-n", 2)
    assert "finished" in run(*mpirun, dppo, "run", "--total-steps", 2000, "--run-dir", "a")
    parameters = Path(run(dppo, "job", "--openmpi").strip())
    assert parameters.is_file() and parameters.is_relative_to(venv)
