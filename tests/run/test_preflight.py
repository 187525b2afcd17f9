"""What a plan asks Slurm for."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dppo.config import Config
from dppo.console import Console
from dppo.errors import RefusedFileError
from dppo.run.preflight import Plan, plan_run
from tests.parts import SMALL, Run


@pytest.mark.parametrize(("dry_run", "end"), [(False, 17000000000.0), (True, None)])
def test_the_end_of_the_job_is_asked_for_only_where_something_is_trained(
    dry_run: bool, end: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("dppo.run.preflight.ends_at", lambda: asked.append(True) or 17000000000.0)
    config = Config(env="CartPole-v1", run_dir=str(tmp_path / "run"), dry_run=dry_run)
    plan = plan_run(config, 1, Console(1.0, enabled=False))
    assert isinstance(plan, Plan) and plan.ends_at == end
    assert asked == [True] * (not dry_run)


# -- run directories that are not as they should be --------------------


def plan(config: Config) -> object:
    return plan_run(config, 1, Console(1.0, enabled=False))


@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl", "summary.json", "checkpoints"])
def test_a_link_that_leads_nowhere_makes_a_run_directory_too(name: str, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to(tmp_path / "nothing")
    with pytest.raises(ValueError, match=f"holds a run already.*{name}"):
        plan(Config(env="CartPole-v1", run_dir=str(tmp_path)))


@pytest.mark.parametrize("run_dir", ["x" * 300, "file/run"])
def test_a_path_that_cannot_be(run_dir: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--run-dir .*: choose another --run-dir"):
        plan(Config(env="CartPole-v1", run_dir=str(tmp_path / run_dir)))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Of a run that was preempted after an iteration."""
    run = Run(tmp_path)
    run.iterate()
    run.tracker.saver.finish("preempted")
    return tmp_path


def resume(run_dir: Path) -> object:
    return plan(replace(SMALL, run_dir=str(run_dir), resume=True))


@pytest.mark.parametrize("how", ["folder", "link"])
@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json", "checkpoints", "checkpoints/latest"])
def test_a_part_of_another_kind_is_refused_by_its_name(name: str, how: str, run_dir: Path) -> None:
    path = run_dir / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if how == "link":
        path.symlink_to(run_dir / "nothing")
    elif name == "checkpoints":
        path.touch()
    else:
        path.mkdir()
    if (name, how) == ("checkpoints/latest", "link"):  # the next checkpoint replaces it
        assert isinstance(resume(run_dir), Plan)
        return
    repair = "remove it" if how == "link" and name.endswith((".json", ".jsonl")) else "move it away"
    with pytest.raises((ValueError, RefusedFileError), match=rf"{name} is .*: {repair}"):
        resume(run_dir)


@pytest.mark.parametrize("name", ["trajectories", "trajectories/rank_00000"])
@pytest.mark.parametrize("is_new", [True, False])
def test_trajectories_that_would_lead_out_of_the_run_directory_are_refused(
    is_new: bool, name: str, run_dir: Path, tmp_path: Path
) -> None:
    """Readers would not follow: the dump would be of no use."""
    if is_new:
        run_dir = tmp_path / "new"
    link = run_dir / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path)
    with pytest.raises(ValueError, match=rf"{link} is a link, .*--run-dir on that other disk"):
        plan(replace(SMALL, run_dir=str(run_dir), resume=not is_new))


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json"])
def test_where_a_resume_cannot_write_a_file_it_says_so(
    name: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != name)
    with pytest.raises(ValueError, match=rf"{run_dir / name} cannot be written to: make it writable"):
        resume(run_dir)


def test_where_a_resume_cannot_write_it_says_so(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere else
    with pytest.raises(ValueError, match=rf"{run_dir} cannot be written to: make it writable"):
        resume(run_dir)


def test_a_latest_checkpoint_that_is_not_there_is_named(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_dir / "checkpoints" / "latest").write_text("step_000000999\n")
    assert isinstance(resume(run_dir), Plan)
    assert "'step_000000999', the latest checkpoint, is not there" in capsys.readouterr().err


def test_a_run_directory_is_absolute_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment may change the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for given in ("run", "deep/er/run", "./run", "~/run", None):
        plan = plan_run(Config(env="CartPole-v1", run_dir=given), 1, Console(1.0, enabled=False))
        assert isinstance(plan, Plan)
        assert plan.run_dir.is_absolute() and plan.run_dir.is_relative_to(tmp_path)
