"""The batch scripts come with the package, and are copied whole or not at all."""

from __future__ import annotations

import os
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
