"""The batch scripts come with the package, and are copied whole or not at all."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dppo.job import main

ROOT = Path(__file__).parents[1]


def test_the_copies_are_the_scripts_of_the_repository(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--copy", str(tmp_path / "new" / "jobs")]) == 0
    copied = {path.name: path.read_bytes() for path in (tmp_path / "new" / "jobs").iterdir()}
    assert copied == {path.name: path.read_bytes() for path in (ROOT / "jobs").iterdir()}
    assert os.access(tmp_path / "new" / "jobs" / "chain", os.X_OK)
    assert "train.sbatch" in capsys.readouterr().out


@pytest.mark.parametrize("there", ["sweep.toml", "chain"])
def test_what_is_there_is_not_overwritten(there: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / there).write_text("mine")
    assert main(["--copy", str(tmp_path)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "mine"
    assert capsys.readouterr().err == (
        f"dppo: {tmp_path} has {there} already: move them away, or choose another folder\n"
    )


@pytest.mark.parametrize("arguments", [[], ["--copy"], ["--copy", "/dev/null/jobs"], ["--cpoy", "x"]])
def test_wrong_use_is_one_message(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dppo: ")


def moved_elsewhere(folder: Path) -> None:
    """A virtual environment that was moved: its script still names the place where it was made."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(shutil.which("python3") or "python3")
    (folder / "bin" / "activate").write_text(f"export PATH={folder}-before/bin:$PATH\n")


@pytest.mark.parametrize("script", sorted((ROOT / "jobs").glob("*.sbatch")), ids=lambda path: path.name)
def test_a_job_without_its_virtual_environment_is_wrong_use_and_runs_no_other_python(
    script: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "python").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (other / "python").chmod(0o755)
    moved_elsewhere(tmp_path / "moved")
    for venv in ("none", "moved"):
        ended = subprocess.run(
            ["bash", script], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False,
            env={"PATH": f"{other}:/usr/bin:/bin", "VENV": str(tmp_path / venv), "RUN_DIR": "runs/it"},
        )  # fmt: skip
        assert ended.returncode == 2, ended
        assert f"dppo: VENV={tmp_path / venv} is no virtual environment with dppo in it" in ended.stderr
    assert not (tmp_path / "started").exists() and not (tmp_path / "runs").exists()
