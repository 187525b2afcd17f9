"""The scripts of jobs/ themselves, and what an emulated cluster needs; these tests start none."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    path for path in (ROOT / "jobs").iterdir() if path.suffix in (".sbatch", "") and path.name != "Dockerfile"
)
TRAINS = [path for path in SCRIPTS if "exec python -m dppo.job " in path.read_text()]


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


def test_these_scripts_train_by_their_last_command() -> None:
    assert {path.name for path in TRAINS} == {
        "train.sbatch", "train-srun.sbatch", "sweep.sbatch", "simulator.sbatch"
    }  # fmt: skip
    for script in TRAINS:
        last = script.read_text().replace("\\\n", " ").rstrip().splitlines()[-1]
        assert last.startswith("exec python -m dppo.job ") and "python -m dppo.run" in last, script.name


def test_every_script_says_how_it_is_used() -> None:
    for script in SCRIPTS:
        assert re.search(rf"^# +.*jobs/{script.name}", script.read_text(), re.MULTILINE), script.name


@pytest.mark.parametrize("script", ["exit 1", "echo noise; echo noise >&2; exit 1", None])
def test_a_chain_whose_export_cannot_work_is_not_submitted(script: str | None, tmp_path: Path) -> None:
    tools, python = tmp_path / "tools", tmp_path / "venv" / "bin" / "python"
    tools.mkdir()
    (tools / "sbatch").write_text(f"#!/bin/sh\ntouch {tmp_path}/submitted\n")
    (tools / "sbatch").chmod(0o755)
    if script is not None:
        python.parent.mkdir(parents=True)
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
    environ = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "VENV": str(tmp_path / "venv")}
    ended = subprocess.run([ROOT / "jobs" / "chain"], env=environ, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert ended.stderr.startswith(f"jobs/chain: {python} cannot import Minari, which the export needs (pip install 'd")
    assert not (tmp_path / "submitted").exists()


def test_the_container_holds_all_that_its_installation_needs(tmp_path: Path) -> None:
    """Copied as Apptainer does it (pkg/build/files/copy.go): `cp -fLr SOURCE DESTINATION`, with the folder above."""
    image = tmp_path / "image"
    files, post = (_section_of_container(name) for name in ("files", "post"))
    for line in files:
        source, destination = line.split()  # it takes the first two words of a line, and no more
        assert not set(source) & set("*?[{~$") and destination.startswith("/"), line
        place = f"{image}{destination}"
        Path(place if place.endswith("/") else Path(place).parent).mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-fLr", source, place], cwd=ROOT, check=True)

    (pip,) = (place for place, line in enumerate(post) if line.startswith("pip install"))
    assert post.index("cd /opt/dppo") < pip
    top = image / "opt" / "dppo"
    assert (top / "dppo" / "__init__.py").is_file() and not (top / "dppo" / "dppo").exists()
    named = re.findall(r"-c (\S+)|install -m 755 (\S+)", "\n".join(post))
    assert [name for pair in named for name in pair if name] == ["constraints.txt", "scripts/mpirun"]
    for name in ("constraints.txt", "scripts/mpirun"):
        assert (top / name).is_file()

    pytest.importorskip("setuptools")
    build = "from setuptools.build_meta import build_wheel; build_wheel('wheel')"
    ended = subprocess.run([sys.executable, "-c", build], cwd=top, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    with zipfile.ZipFile(*(top / "wheel").glob("*.whl")) as wheel:
        packed = {name for name in wheel.namelist() if name.startswith("dppo/")}
    kernels = {name for name in packed if name.startswith("dppo/algo/kernels.")}
    assert [name.endswith(".so") for name in kernels] == [True] * (shutil.which("cc") is not None)
    packed -= kernels
    kept = [p for p in (ROOT / "dppo").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    kept = [path for path in kept if not path.name.startswith("kernels.")]
    scripts = {
        f"dppo/cluster/jobs/{path.name}" for path in (ROOT / "jobs").iterdir()
    }  # behind a link, which rglob leaves alone
    assert packed == {str(path.relative_to(ROOT)) for path in kept} | scripts


def _section_of_container(name: str) -> list[str]:
    """The lines of %NAME in jobs/apptainer.def, without those that are empty."""
    definition = (ROOT / "jobs" / "apptainer.def").read_text()
    (text,) = re.findall(rf"^%{name}\n(.*?)(?=^%|\Z)", definition, re.MULTILINE | re.DOTALL)
    return [line.strip() for line in text.splitlines() if line.strip()]


def test_of_checks_at_the_same_time_one_installs_the_packages(can_emulate: None, tmp_path: Path) -> None:
    """Where slurmctld is hidden, and an apt-get brings it back."""
    apt, log = tmp_path / "apt-get", tmp_path / "log"
    apt.write_text(f"""#!/bin/bash
        [[ -e /proc/self/fd/9 ]] && echo "it has the lock" >>{log}
        echo "$*" >>{log}
        [[ $* != *install* ]] || {{ sleep 1; umount /usr/sbin; }}
    """)
    apt.chmod(0o755)
    checks = """
        mount -t tmpfs tmpfs /usr/sbin
        for _ in 1 2 3; do "$0" check & checks+=($!); done
        for check in "${checks[@]}"; do wait "$check" || exit; done
    """
    command = ["unshare", "--mount", "bash", "-c", checks, str(ROOT / "tests" / "slurm" / "cluster")]
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    update, install = log.read_text().splitlines()
    assert update.endswith(" update") and " install " in install and "DPkg::Lock::Timeout=120" in install
