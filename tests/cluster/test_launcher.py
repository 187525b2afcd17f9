"""What launchers say of ranks and nodes. Ranks that do not find each other are recognised: all would train one run."""

from __future__ import annotations

import os
import socket

import pytest

from dppo.cluster import launcher, processes
from dppo.cluster.launcher import check_launcher


@pytest.fixture(autouse=True)
def environ(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An empty environment in the place of this process's."""
    empty: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", empty)
    return empty


@pytest.mark.parametrize(
    ("variables", "ranks"),
    [
        ({}, 1),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, 4),
        ({"MPI_LOCALNRANKS": "6"}, 6),
        ({"MV2_COMM_WORLD_LOCAL_SIZE": "3"}, 3),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x3),1"}, 2),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_NODEID": "3"}, 1),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "SLURM_STEP_TASKS_PER_NODE": "1"}, 4),  # mpirun inside an allocation
        ({"SLURM_STEP_TASKS_PER_NODE": "many"}, 1),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "0"}, 1),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "9" * 5000, "MPI_LOCALNRANKS": "²", "MV2_COMM_WORLD_LOCAL_SIZE": "3"}, 3),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x1000000000)"}, 1),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x999999),4(x999999)"}, 1),
        ({"SLURM_STEP_TASKS_PER_NODE": "2,x", "SLURM_NODEID": "1"}, 1),
        ({"SLURM_STEP_TASKS_PER_NODE": "2,3", "SLURM_NODEID": "9" * 5000}, 1),
    ],
    ids=str,
)
def test_launchers_say_how_many_ranks_share_the_node(
    environ: dict[str, str], variables: dict[str, str], ranks: int
) -> None:
    environ.update(variables)
    assert launcher.local_ranks() == ranks


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"SLURM_PROCID": "0", "PMI_RANK": "0"}, True),
        ({"SLURM_PROCID": "3"}, False),
        ({"SLURM_PROCID": "0", "OMPI_COMM_WORLD_RANK": "2"}, False),  # mpirun in a job: Slurm counts mpirun's daemons
    ],
    ids=str,
)
def test_one_process_is_the_first(environ: dict[str, str], variables: dict[str, str], first: bool) -> None:
    environ |= variables
    assert launcher.is_first() is first


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "the process on "),
        ({"OMPI_COMM_WORLD_RANK": "2", "PMIX_NAMESPACE": "prterun-vm-1@1"}, "rank 2 on "),
        ({"PMIX_RANK": "2", "PMIX_NAMESPACE": "slurm.pmix.7.0"}, "rank 2 on "),
        ({"OMPI_COMM_WORLD_RANK": "0", "PMIX_NAMESPACE": "prterun-vm-1@2"}, "a replacement for a dead rank on "),
    ],
    ids=str,
)
def test_a_rank_has_a_name_before_mpi_has_started(
    environ: dict[str, str], variables: dict[str, str], name: str
) -> None:
    environ |= variables
    launcher.rank_name.cache_clear()
    assert launcher.rank_name() == name + socket.gethostname()
    launcher.rank_name.cache_clear()


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
        {"SLURM_STEP_NUM_TASKS": "6", "SLURM_PTY_PORT": "41234"},  # a shell of srun --pty
        {"PMI_SIZE": "many"},
    ],
    ids=str,
)
def test_one_process_that_is_meant_to_be_alone(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", variables)
    check_launcher(1)


def test_programs_and_local_ranks_are_read(environ: dict[str, str]) -> None:
    assert launcher.num_programs() is None and launcher.local_rank() == 0
    environ |= {"OMPI_NUM_APP_CTX": "2", "MPI_LOCALRANKID": "3"}
    assert launcher.num_programs() == 2 and launcher.local_rank() == 3


def test_a_process_is_below_those_that_have_started_it() -> None:
    assert processes.is_below(os.getpid(), os.getppid())
    assert not processes.is_below(os.getppid(), os.getpid())
