"""What is handed out is complete: the source distribution has what its tests need, the wheel what a user needs."""

from __future__ import annotations

import shutil
import subprocess
import sys
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


def test_the_source_distribution_is_whole_and_a_wheel_of_it_has_the_job_scripts(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    tree, sdist, wheel = (tmp_path / name for name in ("tree", "sdist", "wheel"))
    for name in tracked():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    (tree / "dppo" / "cluster" / "jobs").symlink_to("../../jobs")
    with tarfile.open(build("sdist", tree, sdist)) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    packed = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert tracked() <= packed

    names = zipfile.ZipFile(build("wheel", unpacked, wheel)).namelist()
    scripts = {f"dppo/cluster/jobs/{path.name}" for path in (ROOT / "jobs").iterdir()}
    include = {f"dppo/envs/include/{name}" for name in ("dppo.h", "dppo.f90", "dppo_fortran.c")}
    others = {"dppo/cluster/openmpi.sh", "dppo/py.typed", "dppo/settings/presets/CartPole-v1.ppo.toml"}
    pages = {f"dppo/study/page.{ending}" for ending in ("html.jinja", "css", "js")}
    assert scripts | include | others | pages <= set(names)
