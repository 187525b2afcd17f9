"""How a rank leaves MPI, and how a job ends; in processes that no launcher has started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest
from mpi4py import MPI

from dppo.comm import leaving

LEFT = RuntimeError("this process has left")


def run(code: str) -> subprocess.CompletedProcess[str]:
    program = f"from dppo.comm import leaving, mpi\nmpi.start()\n{code}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


def test_an_environment_cannot_end_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MPI, "Finalize", MPI.Finalize)
    leaving.keep_running()
    with pytest.raises(RuntimeError, match="leave the call out"):
        MPI.Finalize()
    assert not MPI.Is_finalized()


def test_a_rank_whose_environment_has_ended_mpi_in_c_is_lost_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert leaving.left_mpi() == ""
    monkeypatch.setattr(leaving, "MPI", SimpleNamespace(Is_finalized=lambda: True))
    assert "has called MPI_Finalize" in leaving.left_mpi()


@pytest.mark.parametrize("code", [0, 75])
def test_a_rank_leaves_with_its_code_also_where_mpi_finalize_was_taken_away(code: int) -> None:
    done = run(f"leaving.keep_running(); print('said', end=''); leaving.leave({code})")
    assert (done.returncode, done.stdout) == (code, "said"), done.stderr


def test_a_child_that_nobody_has_ended_keeps_no_rank() -> None:
    since = time.monotonic()
    done = run("import multiprocessing as m, time; m.get_context('fork').Process(target=time.sleep, args=(50,)).start()"
               "\nleaving.leave(3)")  # fmt: skip
    assert done.returncode == 3 and time.monotonic() - since < 20


def test_who_dies_is_killed_and_what_it_said_is_there() -> None:
    done = run("print('last words', end=''); leaving.die()")
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "last words")


class Aborts:
    """A communicator that notes its end."""

    code: int | None = None

    def Abort(self, code: int) -> NoReturn:
        self.code = code
        raise LEFT


def test_a_job_ends_by_mpi_where_deaths_are_not_survived() -> None:
    comm = Aborts()
    with pytest.raises(RuntimeError, match="has left"):
        leaving.end_job(cast(Any, comm), 3)
    assert comm.code == 3


def test_where_they_are_the_launcher_is_told_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """MPI_Abort would end some ranks only."""
    comm, codes = Aborts(), []

    def leave(code: int) -> NoReturn:
        codes.append(code)
        raise LEFT

    with subprocess.Popen(["sleep", "60"]) as launcher:
        monkeypatch.setattr(leaving, "survives_deaths", lambda: True)
        monkeypatch.setattr(leaving.processes, "launcher", lambda: launcher.pid)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        monkeypatch.setattr(os, "_exit", leave)
        with pytest.raises(RuntimeError, match="has left"):
            leaving.end_job(cast(Any, comm), 3)
        assert launcher.wait(timeout=30) == -signal.SIGTERM
    assert (codes, comm.code) == ([3], None)
