"""Ranks that do not find each other are recognised: each would train the same run."""

from __future__ import annotations

import os

import pytest

from dppo.planning import check_launcher

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
