"""Ranks that do not find each other are recognised: each would train the same run. What a plan asks Slurm for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dppo.config import Config
from dppo.console import Console
from dppo.planning import Plan, check_launcher, plan_run

ALONE = "processes, but each is an MPI world of its own"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"SLURM_STEP_NUM_TASKS": "6"}, f"srun started 6 {ALONE}: use mpirun"),
        ({"PMI_SIZE": "4"}, f"mpirun started 4 {ALONE}: it belongs to another MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "4", "SLURM_STEP_NUM_TASKS": "1"}, f"mpirun started 4 {ALONE}"),
    ],
    ids=str,
)
def test_many_processes_that_are_each_alone(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", variables)
    with pytest.raises(ValueError, match=said):
        check_launcher(1)
    check_launcher(
        2
    )  # some have found each other: an MPI that counts only those of its node, or srun's heterogeneous jobs


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_NTASKS": "6"},  # in an allocation, outside of mpirun and srun: for a look at one's settings
        {"OMPI_COMM_WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "6"},
        {"PMI_SIZE": "many"},
    ],
    ids=str,
)
def test_one_process_that_is_meant_to_be_alone(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", variables)
    check_launcher(1)


@pytest.mark.parametrize(("dry_run", "end"), [(False, 1700000000.0), (True, None)])
def test_the_end_of_the_job_is_asked_for_only_where_something_is_trained(
    dry_run: bool, end: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("dppo.planning.ends_at", lambda: asked.append(True) or 1700000000.0)
    config = Config(env="CartPole-v1", run_dir=str(tmp_path / "run"), dry_run=dry_run)
    plan = plan_run(config, 1, Console(1.0, enabled=False))
    assert isinstance(plan, Plan) and plan.ends_at == end
    assert asked == [True] * (not dry_run)


def test_a_run_directory_is_absolute_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment may change the working directory."""
    monkeypatch.chdir(tmp_path)
    for given in ("run", "deep/er/run", "./run", None):
        plan = plan_run(Config(env="CartPole-v1", run_dir=given), 1, Console(1.0, enabled=False))
        assert isinstance(plan, Plan)
        assert plan.run_dir.is_absolute() and plan.run_dir.is_relative_to(tmp_path)
