"""Commands that are no run, where mpirun has started another program beside them."""

from __future__ import annotations

import signal
import sys
from typing import Any

import pytest

from dppo.run import beside, command
from dppo.run.beside import other_programs


def test_alone_nothing_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "all_programs", lambda: pytest.fail("MPI was started"))
    with other_programs() as programs:
        assert programs is None


@pytest.mark.parametrize("survives", [False, True])
def test_others_are_let_go_however_the_command_ends(monkeypatch: pytest.MonkeyPatch, survives: bool) -> None:
    """Without ULFM this process waits for them in MPI_Finalize, and not for ever."""
    told: list[str] = []

    class Programs:
        def let_go(self) -> None:
            told.append("let go")

        def end_those_left(self) -> None:
            told.append("ended")

    found: Any = Programs()
    monkeypatch.setattr(beside, "survives_deaths", lambda: survives)
    monkeypatch.setattr(signal, "alarm", lambda limit_s: told.append(f"{limit_s} s"))
    monkeypatch.setattr(beside, "num_programs", lambda: 2)
    monkeypatch.setattr(command, "all_programs", lambda: found)
    with pytest.raises(SystemExit), other_programs() as programs:
        assert programs is found
        sys.exit(2)
    assert told == ["let go", "ended" if survives else "60 s"]
