"""The variables for programs that environments start: nothing of the job's MPI, and the cores of the rank's share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dppo.cluster.startup import share_of
from dppo.envs import child_environment
from tests.launch import OF_DPPO

OF_THE_JOB = {
    "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_MCA_num_procs": "8", "OMPI_MCA_btl": "self,sm",
    "OMPI_MCA_mpi_ft_enable": "1", "PMIX_RANK": "3", "PMIX_NAMESPACE": "prterun-x@1", "PMIX_SERVER_URI2": "x",
    "PMI_RANK": "3", "PMI_FD": "9", "PRTE_LAUNCHED": "1", "OPAL_PREFIX": "/opt", "HYDI_CONTROL_FD": "4",
    "MPI_LOCALRANKID": "1",
}  # fmt: skip
OF_THE_USER = {
    "PATH": "/bin", "OMPI_MCA_coll": "^han", "PRTE_MCA_hwloc_default_binding_policy": "none", "PMIX_MCA_psec": "native",
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "SLURM_JOB_ID": "77",
}  # fmt: skip


def test_variables_of_the_job_are_left_out_and_the_users_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name, value in (OF_THE_JOB | OF_THE_USER).items():
        monkeypatch.setenv(name, value)
    given = child_environment()
    cores = given.pop("DPPO_CORES")
    assert {name: given[name] for name in OF_THE_USER} == OF_THE_USER
    assert not OF_THE_JOB.keys() & given.keys()
    assert {int(core) for core in cores.split(",")} <= os.sched_getaffinity(0)
    assert os.environ["PMIX_RANK"] == "3", "only the copy is changed"


@pytest.mark.parametrize(
    ("cores", "ranks", "share", "dealt"),
    [
        ([0, 1, 2, 3], 2, 2, [[0, 1], [2, 3]]),
        ([4, 5, 6, 7, 8], 2, 2, [[4, 5], [6, 7]]),
        ([0, 1], 4, 1, [[0], [1], [0], [1]]),
        ([6, 7], 3, 2, [[6, 7]] * 3),  # bound: its own cores are the whole share
    ],
)
def test_cores_are_dealt_to_the_ranks_of_a_node(
    cores: list[int], ranks: int, share: int, dealt: list[list[int]]
) -> None:
    assert [share_of(cores, rank, ranks, share) for rank in range(ranks)] == dealt


@pytest.mark.slow
def test_a_rank_starts_an_mpirun_of_its_own(tmp_path: Path) -> None:
    """With the job's variables a nested mpirun may take itself for a part of the job."""
    mpirun = Path(sys.executable).parent / "mpirun"
    if not mpirun.exists():
        pytest.skip("there is no mpirun beside this Python")
    inner = "from mpi4py import MPI; print('inner', MPI.COMM_WORLD.size, flush=True)"
    outer = tmp_path / "outer.py"
    outer.write_text(
        "import subprocess, sys\n"
        "from mpi4py import MPI\n"
        "from dppo.envs import child_environment\n"
        f"command = [{str(mpirun)!r}, '--oversubscribe', '-n', '2', sys.executable, '-c', {inner!r}]\n"
        "done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=100)\n"
        "print(MPI.COMM_WORLD.rank, done.returncode, done.stdout.split(), flush=True)\n"
    )
    environ = {
        **{name: value for name, value in os.environ.items() if name not in OF_DPPO},
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    done = subprocess.run(
        [mpirun, "--oversubscribe", "-n", "2", sys.executable, outer], capture_output=True, text=True, timeout=200,
        env=environ, check=False,
    )  # fmt: skip
    assert sorted(done.stdout.splitlines()) == [f"{rank} 0 ['inner', '2', 'inner', '2']" for rank in (0, 1)], (
        done.stdout + done.stderr
    )
