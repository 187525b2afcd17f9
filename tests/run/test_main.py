"""python -m dppo.run: what has to come before the first import of NumPy, torch and MPI."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_a_question_is_answered_without_numpy_torch_and_mpi(flag: str) -> None:
    code = """if True:
        import sys
        from dppo.run.__main__ import main
        try:
            main()
        finally:
            print(*sorted({"numpy", "torch", "mpi4py"} & set(sys.modules)), file=sys.stderr)
    """
    done = run(code, flag)
    assert (done.returncode, done.stderr.split()) == (0, [])
    assert "dppo" in done.stdout


def test_guards_stand_and_signals_are_noted_before_anything_heavy_is_imported() -> None:
    code = """if True:
        import signal, sys
        from dppo.cluster import startup
        from dppo.cluster import guard
        from dppo.run.__main__ import main
        before = []
        heavy = {"numpy", "mpi4py.MPI"}
        guard.stand = lambda: before.append(("guards", heavy & set(sys.modules)))
        note = startup.note_early_signals
        startup.note_early_signals = lambda leave: before.append(("signals", heavy & set(sys.modules)))
        sys.modules["mpi4py"] = None  # what comes next cannot be loaded
        try:
            main()
        finally:
            assert before == [("signals", set()), ("guards", set())], before
    """
    done = run(code)
    assert done.returncode == 2 and "AssertionError" not in done.stderr, done
    assert "MPI" in done.stderr
