"""The scripts of jobs/ themselves; these tests need no cluster."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path for path in (ROOT / "jobs").iterdir() if path.suffix in (".sbatch", ""))
TRAINS = [path for path in SCRIPTS if "dppo.verdict" in path.read_text()]


@pytest.mark.parametrize(
    "script", [*SCRIPTS, ROOT / "tests" / "slurm" / "cluster", ROOT / "scripts" / "mpirun"], ids=str
)
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    ended = subprocess.run([shellcheck, "-x", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("script", TRAINS, ids=lambda path: path.name)
def test_a_script_that_trains_comes_back_and_is_told_in_time(script: Path) -> None:
    directives = re.findall(r"^#SBATCH (--\S+)", script.read_text(), re.MULTILINE)
    assert {"--requeue", "--open-mode=append", "--signal=B:USR1@120"} <= set(directives)


def test_every_script_says_how_it_is_used() -> None:
    for script in SCRIPTS:
        assert re.search(rf"^# +.*jobs/{script.name}", script.read_text(), re.MULTILINE), script.name


def test_the_container_is_made_of_files_that_are_there() -> None:
    definition = (ROOT / "jobs" / "apptainer.def").read_text()
    (listed,) = re.findall(r"^%files\n\s+(.*) /opt/dppo/$", definition, re.MULTILINE)
    needed = {"setup.cfg", "pyproject.toml", "constraints.txt", "README.md", "dppo"}
    assert needed <= set(listed.split()) and all((ROOT / name).exists() for name in listed.split())
