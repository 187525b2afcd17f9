"""Signals of a batch job at any moment; programs that end, or do not. The whole job is in tests/test_job.py."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dppo.cluster import supervisor

BEGIN = """if True:
    import os, signal, sys, time
    from dppo.cluster import supervisor
    from dppo.cluster.supervisor import JobEnds, Supervisor
    me = Supervisor()
    def python(text, *more):
        return [sys.executable, "-c", "import os, signal, time; " + text, *more]
    def tell(number, then=""):
        return python(f"os.kill(os.getppid(), {int(number)}); {then}")
    # a job begins
"""
LIMIT_S = 30.0


def run(text: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a process that does this."""
    code = BEGIN + "\n".join(f"    {line}" for line in text.splitlines())
    environ = {"PYTHONPATH": str(Path(supervisor.__file__).parents[2])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("program", "code"),
    [("os._exit(0)", 0), ("os._exit(75)", 75), ("os.kill(os.getpid(), 9)", 137), ("os.kill(os.getpid(), 15)", 143)],
)
@pytest.mark.parametrize("how", ["run", "check"])
def test_a_programs_code_is_that_of_a_shell(how: str, program: str, code: int) -> None:
    assert run(f"print(me.{how}(python({program!r}), 20.0), me.is_asked())") == (0, f"{code} False\n", "")


def test_a_program_that_is_not_there_is_named_and_not_started() -> None:
    said = "dppo: no-such-launcher cannot be started: No such file or directory\n"
    assert run("print(me.run(['no-such-launcher'], 1.0), me.check(['no-such-launcher'], 1.0))") == (
        0, "127 127\n", 2 * said,
    )  # fmt: skip


def test_a_check_that_takes_too_long_is_killed_and_shows_nothing() -> None:
    since = time.monotonic()
    text = "print('shown', flush=True); time.sleep(60)"
    assert run(f"print(me.check(python({text!r}), 0.5), me.is_asked())") == (0, "137 False\n", "")
    assert time.monotonic() - since < 10


def test_a_check_ends_when_the_job_is_asked_to_save() -> None:
    assert run("print(me.check(tell(signal.SIGUSR1, 'time.sleep(60)'), 50.0), me.is_asked())") == (0, "137 True\n", "")


def test_a_signal_that_comes_with_a_programs_end_is_for_nobody() -> None:
    """While it ends, and once it has ended."""
    text = """tells = "signal.signal(10, signal.SIG_IGN); os.kill(os.getppid(), 10); os._exit(3)"
print([me.run(python(tells), 20.0) for _ in range(10)], me.is_asked())
import subprocess
begin = subprocess.Popen.__init__
def begin_and_wait(program, *args, **more):
    begin(program, *args, **more)
    os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
    os.kill(os.getpid(), 10)
subprocess.Popen.__init__ = begin_and_wait
print(me.run(python("os._exit(3)"), 0.0), me.check(python("os._exit(3)"), 20.0))"""
    assert run(text) == (0, f"{10 * [3]} True\n3 3\n", "")


def test_a_signal_between_two_programs_is_kept() -> None:
    assert run("os.kill(os.getpid(), signal.SIGUSR1)\nprint(me.is_asked(), me.is_asked())") == (0, "True True\n", "")
    assert run("print(Supervisor(asked=True).is_asked())") == (0, "True\n", "")


@pytest.mark.parametrize("text", ["me.is_asked()", "me.run(python('time.sleep(1)'), 9.0)", "me.check(python(''), 9.0)"])
def test_the_end_of_the_job_is_told_at_once(text: str) -> None:
    ends = f"os.kill(os.getpid(), signal.SIGTERM)\ntry:\n    {text}\nexcept JobEnds:\n    print('ends')"
    assert run(ends) == (0, "ends\n", "")


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGCONT, signal.SIGUSR2])
def test_a_program_that_stops_has_not_ended_and_is_killed_in_time(number: int) -> None:
    program = (
        f"signal.signal({int(signal.SIGUSR2)}, signal.SIG_IGN); os.kill(os.getpid(), {int(number)}); time.sleep(60)"
    )
    tells = f"signal.signal({int(signal.SIGUSR1)}, signal.SIG_IGN); os.kill(os.getppid(), {int(signal.SIGUSR1)}); "
    since = time.monotonic()
    code, out, err = run(f"print(me.run(python({tells + program!r}), 0.5))")
    assert (code, out) == (0, "137\n") and "has not ended 0.5 s after it was asked to save: it is killed" in err
    assert time.monotonic() - since < 10


def test_a_program_that_cannot_even_be_killed_is_given_up() -> None:
    """As one that waits for a file system that is gone: here kill does nothing."""
    text = """supervisor._GONE_S = 0.2
import subprocess
kill, subprocess.Popen.kill = subprocess.Popen.kill, lambda program: found.append(program)
found = []
print(me.check(python("time.sleep(60)"), 0.2), len(found))
kill(found[0])"""
    assert run(text) == (0, "137 1\n", "")


@pytest.mark.usefixtures("hears_ctrl_c")
def test_a_program_starts_without_held_or_ignored_signals() -> None:
    show = "print(*(line for line in open('/proc/self/status') if line.startswith(('SigBlk', 'SigIgn'))))"
    plain = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True).stdout
    unlike = "signal.pthread_sigmask(signal.SIG_SETMASK, ())\nsignal.signal(signal.SIGUSR1, signal.SIG_IGN)"
    assert run(f"{unlike}\nSupervisor().run(python({show!r}), 1.0)") == (0, plain, "")
