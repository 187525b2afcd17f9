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
