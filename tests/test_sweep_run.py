"""python -m dppo.sweep --run and --task: wrong uses, one command at a time in a folder, and real runs of both kinds."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from dppo import report
from dppo.study.lock import lock
from dppo.sweep import main
from tests.test_sweep import EXAMPLE, complaint

TINY = """
ranks = 1
[fixed]
env = "CartPole-v1"
total-steps = 512
num-envs = 2
horizon = 64
log.tensorboard = false
"""
GRID = TINY + "[grid]\nseed = [1, 2]\n"
SEARCH = TINY + "[search]\ntrials = 2\n[search.space]\noptim.lr = {low = 1e-4, high = 1e-2, log = true}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "s.toml"
    path.write_text(GRID)
    return path


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs are no ranks of the job that this test is in, where it is in one."""
    for name in [name for name in os.environ if re.match("OMPI_|PMIX_|PRTE_|SLURM_", name)]:
        monkeypatch.delenv(name)


def summaries(folder: Path) -> dict[str, Any]:
    return {path.parent.name: json.loads(path.read_text())["exit"] for path in sorted(folder.glob("*/summary.json"))}


# -- the list of a search --------------------


def test_what_a_search_draws_and_the_lines_that_run_it(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(SEARCH.replace("trials", "seeds = [1, 2]\ntrials"))
    assert main([str(file)]) == 0
    assert capsys.readouterr() == (
        "fixed: env=CartPole-v1, total-steps=512, num-envs=2, horizon=64, log.tensorboard=False\n"
        "\n"
        "| setting  | drawn from                  |\n"
        "| -------- | --------------------------- |\n"
        "| optim.lr | 0.0001 to 0.01, logarithmic |\n"
        "\n"
        "2 trial(s), each with the seeds 1, 2; sampler tpe, pruner none, best by return\n"
        f"python -m dppo.sweep {file} runs/search --run\n"
        f"SWEEP={file} sbatch --array=0-1 jobs/search.sbatch\n",
        "",
    )


def test_the_example_is_right(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLE.parent.parent)
    assert main(["jobs/search.toml"]) == 0
    assert capsys.readouterr().out.endswith("--run\nsbatch --array=0-3 jobs/search.sbatch\n")


# -- wrong uses --------------------


def test_wrong_arguments(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    for argv in ((file, "--run"), (file, out, 1, "--run"), (file, out, "--run", "--task", 1), (file, "--task", 1)):
        assert "--run and --task I need SWEEP.toml and SWEEP_DIR" in complaint(capsys, *argv)
    assert "--jobs needs --run" in complaint(capsys, file, out, "--jobs", 2)
    assert "--jobs needs --run" in complaint(capsys, file, out, "--task", 1, "--jobs", 2)
    assert "--jobs 0 must lie" in complaint(capsys, file, out, "--run", "--jobs", 0)
    assert "--ranks 0 must lie" in complaint(capsys, file, out, "--run", "--ranks", 0)
    assert "--task is for a file with a [search]" in complaint(capsys, file, out, "--task", 1)
    file.write_text(GRID.replace("[1, 2]", "[1, -2]"))
    assert f"{file}: task 1: seed=-2 must lie" in complaint(capsys, file, out, "--run")
    file.write_text(SEARCH)
    assert "a [search] has no tasks of its own" in complaint(capsys, file, out, 1)
    file.write_text(SEARCH.replace("low = 1e-4", "low = 1"))
    assert "low=1 must be below high=0.01" in complaint(capsys, file, out, "--run")
    assert not out.exists()


def test_without_optuna_a_search_says_what_to_install(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    file.write_text(SEARCH)
    assert "pip install 'dppo[search]'" in complaint(capsys, file, tmp_path / "out", "--run")
    assert not (tmp_path / "out").exists()


def test_without_mpirun_it_says_so(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no mpirun on the PATH" in complaint(capsys, file, tmp_path / "out", "--run", "--ranks", 2)
    assert not (tmp_path / "out").exists()


def test_one_command_at_a_time(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = lock(tmp_path / "sweep.lock")
    assert held is not None
    assert "another dppo.sweep is at work in it" in complaint(capsys, file, tmp_path, "--run")
    os.close(held)
    held = lock(tmp_path / "sweep.lock", shared=True)
    file.write_text(SEARCH)
    assert "another dppo.sweep is at work in it" in complaint(capsys, file, tmp_path, "--run")
    (tmp_path / "workers").mkdir()
    same = lock(tmp_path / "workers" / "task_003")
    assert "another process is task_003 of this study" in complaint(capsys, file, tmp_path, "--task", 3)
    for descriptor in (held, same):
        os.close(descriptor or 0)


# -- real runs --------------------


def test_a_sweep_on_this_machine(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What has ended is not run again; what is added is."""
    out = tmp_path / "out"
    file.write_text(GRID.replace("[1, 2]", "[1]"))
    assert main([str(file), str(out), "--run"]) == 0
    before = (out / "task_000" / "metrics.jsonl").read_bytes()
    file.write_text(GRID)
    capsys.readouterr()
    assert main([str(file), str(out), "--run", "--jobs", "2"]) == 0
    said = capsys.readouterr().out
    assert "task 0" not in said and "task 1 starts: seed=2\n" in said and said.endswith("2 of 2 tasks have ended\n")
    assert summaries(out) == {"task_000": "finished", "task_001": "finished"}
    assert (out / "task_000" / "metrics.jsonl").read_bytes() == before
    assert "finished" in (out / "task_001" / "output.log").read_text()


def test_a_search_on_this_machine_then_another_file(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    file.write_text(SEARCH)
    assert main([str(file), str(out), "--run"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"2 of 2 trials have ended; the best so far is trial [01] with [\d.]+\n$", said)
    assert summaries(out) == {"trial_0000": "finished", "trial_0001": "finished"}
    assert report.main([str(out), "--no-plot"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("study: 2 trials, optimised return; 2 complete\n") and "optim.lr=0.0" in said
    assert "All runs have ended by themselves." in said
    file.write_text(SEARCH.replace("trials = 2", "trials = 3"))  # more trials are allowed
    assert main([str(file), str(out), "--task", "7"]) == 0  # outside of Slurm
    assert len(summaries(out)) == 3
    capsys.readouterr()
    for before, after, what in (
        ("high = 1e-2", "high = 2e-2", "search.space"),
        ("= 512", "= 513", "[fixed]"),
        ("trials", "sampler = 'random'\ntrials", "search.sampler"),
    ):
        file.write_text(SEARCH.replace(before, after))
        said = complaint(capsys, file, out, "--run")
        assert f"which has another {what}: choose another SWEEP_DIR" in said


@pytest.mark.slow
def test_a_trial_that_does_not_learn_is_stopped_by_its_recorder(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    rates = "optim.lr = {choices = [1e-3, 2e-3, 3e-3, 4e-3, 1e-9]}"
    text = SEARCH.replace("trials = 2", "sampler = 'grid'\npruner = 'median'").replace("= 512", "= 6000")
    file.write_text(f"{text.partition('optim.lr')[0]}{rates}\n")
    assert main([str(file), str(out), "--run"]) == 0
    assert "5 of 5 trials have ended, 1 pruned; the best so far is trial" in capsys.readouterr().out
    assert summaries(out) == {f"trial_000{k}": "finished" for k in range(5)}
    stopped = json.loads((out / "trial_0004" / "summary.json").read_text())
    assert stopped["stopped_by"] == "Pruning" and stopped["env_steps"] < 6000
