"""The one import of mpi4py."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dppo.comm import mpi


@pytest.mark.parametrize("survives", ["0", "1"])
def test_mpi_starts_when_it_is_asked_to_and_not_by_an_import(survives: str) -> None:
    """MPI_Finalize is left out where it could wait for the dead."""
    code = f"""if True:
        import mpi4py
        before = mpi4py.rc.initialize
        from dppo.comm import mpi
        assert not mpi.MPI.Is_initialized()
        assert mpi4py.rc.initialize == before, "the user's own setting stays"
        assert mpi4py.rc.finalize is {survives == "0"}
        if {survives == "0"}:
            mpi.start()
            mpi.start()
            assert mpi.MPI.Is_initialized()
    """
    env = os.environ | {"OMPI_MCA_mpi_ft_enable": survives}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_process_that_no_rank_has_started_was_not_spawned() -> None:
    mpi.start()  # the tests have started it: this changes nothing
    assert not mpi.is_spawned()


def test_without_an_mpi_it_is_said_what_to_install() -> None:
    code = """if True:
        import sys
        sys.modules["mpi4py"] = None
        from dppo.errors import NoMPIError
        try:
            import dppo.comm.mpi
        except NoMPIError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "install" in done.stdout


@pytest.mark.parametrize(
    ("variables", "waits"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x2)"}, [mpi.SETTLE_S]),
        ({"SLURM_STEP_TASKS_PER_NODE": "4"}, []),
        ({}, []),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "OMPI_COMM_WORLD_SIZE": "4"}, []),
    ],
    ids=["srun, two nodes", "srun, one node", "no launcher", "mpirun, whose daemons srun has started"],
)
def test_ranks_that_srun_has_started_on_several_nodes_send_nothing_at_once(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], waits: list[float]
) -> None:
    """MPI_Init of others may not be over: it crashes where a message comes then."""
    for name in ("SLURM_STEP_TASKS_PER_NODE", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    waited: list[float] = []
    monkeypatch.setattr(mpi.MPI, "Is_initialized", lambda: False)
    monkeypatch.setattr(mpi.MPI, "Init_thread", lambda: None)
    monkeypatch.setattr(mpi.time, "sleep", waited.append)
    mpi.start()
    assert waited == waits
