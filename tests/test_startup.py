"""Threads, Open MPI's parameters, and what launchers say, before anything heavy is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dppo import startup

PATH = str(Path(startup.__file__).parents[1])


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
    ],
    ids=str,
)
def test_launchers_say_how_many_ranks_share_the_node(
    environ: dict[str, str], variables: dict[str, str], ranks: int
) -> None:
    environ.update(variables)
    assert startup.local_ranks() == ranks


@pytest.mark.parametrize(("cores", "ranks", "share"), [(8, 2, 4), (8, 3, 2), (2, 4, 1), (1, 32, 1), (6, 1, 6)])
def test_each_rank_gets_its_share_of_the_cores_that_it_may_run_on(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, cores: int, ranks: int, share: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    environ["OMPI_COMM_WORLD_LOCAL_SIZE"] = str(ranks)
    assert startup.limit_threads() == share
    assert environ["OMP_NUM_THREADS"] == environ["MKL_NUM_THREADS"] == str(share)


@pytest.mark.parametrize(("cores", "of_job", "share"), [(4, "64", 4), (64, "64", 4), (4, "many", 1), (64, "128", 4)])
def test_cores_that_srun_has_dealt_out_are_not_shared_again(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, cores: int, of_job: str, share: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    environ.update(SLURM_STEP_TASKS_PER_NODE="16(x2)", SLURM_CPUS_ON_NODE=of_job)
    assert startup.limit_threads() == share


def test_numpys_blas_gets_one_thread(environ: dict[str, str]) -> None:
    startup.limit_threads()
    assert environ["OPENBLAS_NUM_THREADS"] == "1"


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"])
def test_a_users_thread_setting_stays(environ: dict[str, str], name: str) -> None:
    environ[name] = "17"
    startup.limit_threads()
    assert environ[name] == "17"


def test_han_and_ucx_are_switched_off_everywhere(environ: dict[str, str]) -> None:
    startup.set_mpi_parameters()
    assert environ["OMPI_MCA_coll"] == "^han"
    assert environ["OMPI_MCA_osc"] == "^ucx"


@pytest.mark.parametrize(("size", "local", "one_node"), [("4", "4", True), ("8", "4", False), (None, None, True)])
def test_shared_memory_is_chosen_on_one_node_only(
    environ: dict[str, str], size: str | None, local: str | None, one_node: bool
) -> None:
    if size is not None and local is not None:
        environ.update(OMPI_COMM_WORLD_SIZE=size, OMPI_COMM_WORLD_LOCAL_SIZE=local)
    startup.set_mpi_parameters()
    assert (environ.get("OMPI_MCA_pml") == "ob1") == one_node


def test_a_rank_that_no_launcher_started_needs_no_shared_memory(environ: dict[str, str]) -> None:
    startup.set_mpi_parameters()
    assert environ["OMPI_MCA_btl"] == "self"
    environ.clear()
    environ.update(PMIX_RANK="0")
    startup.set_mpi_parameters()
    assert "sm" in environ["OMPI_MCA_btl"].split(",")


def test_a_users_mpi_parameters_stay(environ: dict[str, str]) -> None:
    mine = {"OMPI_MCA_coll": "^tuned", "OMPI_MCA_osc": "rdma", "OMPI_MCA_pml": "ucx", "OMPI_MCA_btl": "self"}
    environ.update(mine)
    startup.set_mpi_parameters()
    assert environ.items() >= mine.items()


@pytest.mark.parametrize(
    ("variables", "one"),
    [
        ({}, True),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, False),
        ({"PMIX_RANK": "0", "SLURM_STEP_TASKS_PER_NODE": "4"}, True),
        ({"PMIX_RANK": "0", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, False),
        # mpirun's daemons are a step of their own
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x3)"}, True),
    ],
    ids=str,
)
def test_a_network_is_left_to_open_mpi_where_there_is_one(
    environ: dict[str, str], variables: dict[str, str], one: bool
) -> None:
    environ.update(variables)
    startup.set_mpi_parameters()
    assert (environ.get("OMPI_MCA_pml") == "ob1") == ("OMPI_MCA_btl" in environ) == one


@pytest.mark.parametrize(
    ("variables", "kept"),
    [
        ({}, False),  # nobody has launched it: it opens nothing
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "PMIX_NAMESPACE": "prterun-n1-7@1"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "prterun-n1-7@1"}, False),
        # a replacement may join ranks on other nodes
        ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "1", "PMIX_NAMESPACE": "prterun-n1-7@2"}, False),
        # or come to another node of the allocation
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "SLURM_JOB_NUM_NODES": "2"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "SLURM_JOB_NUM_NODES": "1"}, True),
        (
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_MCA_btl_tcp_if_include": "eth0"},
            False,
        ),
    ],
    ids=str,
)
def test_ports_are_kept_to_a_node_where_all_ranks_are_on_one(
    environ: dict[str, str], variables: dict[str, str], kept: bool
) -> None:
    environ.update(variables)
    startup.set_mpi_parameters()
    assert startup.is_kept_to_this_node() == kept
    assert (environ.get("OMPI_MCA_btl_tcp_if_include") == "lo") == kept


def test_python_and_shell_read_the_same_parameters(environ: dict[str, str], tmp_path: Path) -> None:
    users = {"OMPI_MCA_coll": "^han,tuned", "OMPI_MCA_osc": ""}  # what is set stays, also where it is set to nothing
    command = ["/bin/sh", "-c", f". {startup.MPI_PARAMETERS}; env -u PWD -u SHLVL -u _ -0"]
    shells = subprocess.run(command, env=users, capture_output=True, text=True, check=True).stdout
    environ.update(users, OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_LOCAL_SIZE="1")
    before = dict(environ)
    startup.set_mpi_parameters()
    pairs = [line.partition("=") for line in shells.split("\0") if line]
    assert {name: value for name, _, value in pairs} | before == environ
    assert environ["OMPI_MCA_coll"] == "^han,tuned" and "PRTE_MCA_hwloc_default_binding_policy" in environ


def test_scripts_are_told_where_the_parameters_are() -> None:
    command = [sys.executable, "-m", "dppo.startup"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": PATH}).stdout
    assert Path(told.strip()) == startup.MPI_PARAMETERS


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
    assert startup.is_first() is first
