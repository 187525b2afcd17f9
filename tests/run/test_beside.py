"""Commands that are no run, where mpirun has started another program beside them."""

from __future__ import annotations

import atexit
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dppo import evaluate
from dppo.config import SOLVER, Config
from dppo.run import beside, command
from dppo.run.beside import other_programs


def test_alone_nothing_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "all_programs", lambda: pytest.fail("MPI was started"))
    with other_programs() as programs:
        assert programs is None


class Programs:
    """A simulator of one rank, beside two ranks of dppo."""

    size, own = 1, SimpleNamespace(rank=0, size=2)

    def __init__(self, told: list[str]) -> None:
        self._told = told

    def let_go(self) -> None:
        self._told.append("let go")

    def end_those_left(self) -> None:
        self._told.append("ended")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens to the programs that are found."""
    told: list[str] = []
    found: Any = Programs(told)
    monkeypatch.setattr(command, "all_programs", lambda: found)
    monkeypatch.setattr(atexit, "register", lambda function, **_: told.append(function.__name__))
    return told


@pytest.mark.parametrize("survives", [False, True])
def test_others_are_let_go_however_the_command_ends(
    monkeypatch: pytest.MonkeyPatch, told: list[str], survives: bool
) -> None:
    """Without ULFM this process waits for them in MPI_Finalize, and not for ever."""
    monkeypatch.setattr(beside, "survives_deaths", lambda: survives)
    monkeypatch.setattr(beside, "num_programs", lambda: 2)
    with pytest.raises(SystemExit), other_programs() as programs:
        assert programs is not None
        sys.exit(2)
    assert told == ["let go", "ended" if survives else "leave_together"]


def test_programs_of_which_the_launcher_says_nothing_are_let_go_too(
    monkeypatch: pytest.MonkeyPatch, told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As by MPICH: only the run's settings say that there is a simulator."""
    monkeypatch.setattr(beside, "num_programs", lambda: None)
    monkeypatch.setattr(evaluate, "load_config", lambda run_dir: Config(env=SOLVER, num_envs=1))
    assert evaluate.main(["run"]) == 2
    assert "this job has 2 of dppo and 1 of a simulator" in capsys.readouterr().err
    assert told == ["let go", "leave_together"]


@pytest.mark.parametrize("is_first", [True, False])
def test_a_simulator_that_stays_is_told_of_and_ends_the_job(is_first: bool) -> None:
    """MPI_Finalize waits for it, in C."""
    code = f"""if True:
        import atexit, ctypes, time, types, dppo.comm.mpi
        from dppo.run import beside
        ctypes.CDLL = lambda *_: types.SimpleNamespace(MPI_Finalize=lambda: time.sleep(60))
        beside.LEAVE_S, beside.AFTER_RANK_ZERO_S = 0.1, 0.1
        atexit.register(beside.leave_together, is_first={is_first})
    """
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert ("the simulator must call dppo_end once dppo_wait_reset returns DPPO_END" in done.stderr) == is_first
