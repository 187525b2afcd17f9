"""However a rank ends, its guards end so that the launcher notices; nothing outlives them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dppo.cluster import guard

PATH = str(Path(guard.__file__).parents[2])
LAUNCHED = {"PMIX_RANK": "3", "PYTHONPATH": PATH}
LIMIT_S = 20.0

BEGIN = """if True:
    import ctypes, os, signal, subprocess, sys, threading, time
    from dppo.cluster import guard
    guard.LEAVE_S = guard.LAUNCHER_ENDS_S = guard.LAUNCHER_IS_TOLD_S = guard.SILENCE_MARGIN_S = 0.3
    guard.stand()
    # a rank begins
"""


SLOW_GUARDS = "guard._Guard.__new__ = lambda cls, *_, **__: (time.sleep(0.5), object.__new__(cls))[1]"
"""What has forked goes on long after what it has forked."""


def program(text: str, before: str = "pass") -> list[str]:
    """`before` is done before the guards part from their rank."""
    begin = BEGIN.replace("guard.stand()", f"{before or 'pass'}\n    guard.stand()")
    return [sys.executable, "-c", begin + "\n".join(f"    {line}" for line in text.splitlines())]


def run(text: str, *, launched: bool = True) -> tuple[int, str]:
    """Exit code, or minus the signal, and standard error, of a rank that does this, as its launcher sees them."""
    environ = {"PYTHONPATH": PATH} | (LAUNCHED if launched else {})
    done = subprocess.run(program(text), env=environ, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    return done.returncode, done.stderr


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until_gone(*pids: int) -> None:
    deadline = time.monotonic() + LIMIT_S
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline, "something was left behind"
        time.sleep(0.01)


@contextlib.contextmanager
def running(text: str, before: str = "") -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A launched program, and the numbers in its first line of output."""
    with subprocess.Popen(
        program(text, before),
        env=LAUNCHED,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process, [int(word) for word in process.stdout.readline().split()]
        finally:
            process.kill()


@pytest.mark.parametrize("launched", [True, False])
@pytest.mark.parametrize(
    ("last_act", "code"),
    [
        ("os._exit(7)", 7),
        ("os._exit(0)", 0),
        ("os._exit(75)", 75),
        ("ctypes.CDLL(None).exit(3)", 3),
        ("sys.exit()", 0),
        ("guard._rank_pid = -1; guard.announce(0); os._exit(0)", 0),  # a forked child cannot speak for the rank
    ],
)
def test_a_rank_that_leaves_without_a_word_counts_as_killed(last_act: str, code: int, launched: bool) -> None:
    ended, said = run(f"guard.started()\n{last_act}", launched=launched)
    assert ended == -signal.SIGKILL
    assert said.count("left without a word") == 1 and f"with exit code {code}," in said
    assert ("rank 3 on " in said) == launched


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
def test_a_rank_that_dies_by_a_signal_is_seen_to(number: signal.Signals) -> None:
    assert run(f"guard.started()\nos.kill(os.getpid(), {int(number)})") == (-number, "")


@pytest.mark.parametrize("code", [0, 1, 2, 75])
@pytest.mark.parametrize(
    "last_act",
    ["sys.exit({code})", "os._exit(9)", "os.kill(os.getpid(), signal.SIGSEGV)", "time.sleep(60)",
     "threading.Thread(target=time.sleep, args=(60,)).start()"],
)  # fmt: skip
def test_a_code_that_was_announced_holds_however_the_rank_ends(last_act: str, code: int) -> None:
    """Also where it does not end: a thread, an exit handler, MPI_Finalize."""
    assert run(f"guard.started()\nguard.announce({code})\n{last_act.format(code=code)}") == (code, "")


def test_a_rank_that_cannot_leave_as_a_simulator_stays_says_so() -> None:
    """MPI_Finalize waits for all programs of the job."""
    two = "os.environ['OMPI_NUM_APP_CTX'] = '2'; kill, until = guard.processes.kill, time.monotonic() + 1.0"
    does_not_take = "lambda pid, number: None if number == 9 and time.monotonic() < until else kill(pid, number)"
    two += f"; guard.processes.kill = {does_not_take}"
    command = program("guard.started()\nguard.announce(0)\ntime.sleep(60)", two)
    environ = LAUNCHED | {"PYTHONPATH": PATH}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0 and done.stderr.count("has not ended within 0.3 s, and is killed") == 1, done.stderr
    assert "call dppo_end once dppo_wait_reset returns DPPO_END" in done.stderr


@pytest.mark.parametrize("code", [0, 1, 2])
def test_before_mpi_has_started_codes_are_passed_on(code: int) -> None:
    """What Python cannot import, and all that is found by then."""
    assert run(f"sys.exit({code})") == (code, "")


@pytest.mark.parametrize("survives", [True, False])
def test_under_ulfm_to_leave_at_once_is_to_die(survives: bool) -> None:
    ulfm = f"os.environ.update(OMPI_MCA_mpi_ft_enable='{int(survives)}')"
    assert run(f"guard.started()\n{ulfm}\nguard.leave_at_once(143)")[0] == (-signal.SIGKILL if survives else 143)


CHILDREN = {
    "child": "subprocess.Popen(['sleep', '1000'])",
    "in a session of its own": "subprocess.Popen(['sleep', '1000'], start_new_session=True)",
    "daemon": "subprocess.run(['sh', '-c', 'setsid sleep 1000 & setsid sleep 1001 &'])",
    "deaf": "subprocess.Popen(['sh', '-c', 'trap \"\" TERM INT HUP; sleep 1000; sleep 1001']); time.sleep(0.2)",
}


@pytest.mark.parametrize("end", ["guard.announce(0); sys.exit()", "os.kill(os.getpid(), signal.SIGKILL)"])
@pytest.mark.parametrize("kind", CHILDREN)
def test_what_a_rank_leaves_behind_is_ended_and_named(kind: str, end: str) -> None:
    """Its pipes would hold the launcher for ever: that this returns says that they are closed."""
    ended, said = run(f"guard.started()\n{CHILDREN[kind]}\n{end}")
    assert ended == (0 if "announce" in end else -signal.SIGKILL)
    assert said.count("rank 3 on ") == 1 and "left processes behind" in said and "sleep" in said


def test_those_who_leave_by_themselves_are_not_named() -> None:
    tracker = "from multiprocessing import resource_tracker\nresource_tracker.ensure_running()"
    assert run(f"guard.started()\n{tracker}\nguard.announce(0)\nos._exit(0)") == (0, "")


@pytest.mark.parametrize("slow", ["", SLOW_GUARDS], ids=["", "guards begin late"])
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_whichever_is_killed_all_end(victim: int, slow: str) -> None:
    """The outer guard, the inner one, or the rank; with a child that has left their session."""
    with running(
        """guard.started()
child = subprocess.Popen(['sleep', '1000'], start_new_session=True)
inner = os.getppid()
outer = int(open(f'/proc/{inner}/stat').read().rpartition(')')[2].split()[1])
print(outer, inner, os.getpid(), child.pid, flush=True)
time.sleep(60)""",
        slow,
    ) as (process, pids):
        assert pids[0] == process.pid
        os.kill(pids[victim], signal.SIGKILL)
        assert process.wait(LIMIT_S) == -signal.SIGKILL
        wait_until_gone(*pids)


def test_a_signal_to_the_group_reaches_the_rank_but_not_its_children() -> None:
    """As mpirun sends it: SIGUSR1 would end a simulator before the state is saved."""
    with running(
        """guard.started()
got = []
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, frame: got.append(number))
child = subprocess.Popen(['sleep', '1000'])
print(child.pid, flush=True)
while len(got) < 2:
    time.sleep(0.01)
assert child.poll() is None
child.kill()
child.wait()
guard.announce(75)
sys.exit(75)"""
    ) as (process, _):
        os.killpg(process.pid, signal.SIGUSR1)
        time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(LIMIT_S) == 75


def test_a_rank_that_does_not_come_back_to_python_is_ended() -> None:
    """A simulator in C that holds Python's lock stops every thread of the rank."""
    ended, said = run("guard.started()\nguard.beat(0.5)\nctypes.PyDLL(None).sleep(60)")
    assert ended == -signal.SIGKILL
    assert "rank 3 on " in said and "--log.stall-abort-s" in said


LAUNCHER = """if True:
    import ctypes, os, subprocess, sys, time
    ctypes.CDLL(None).prctl(15, b"mpirun")
    subprocess.Popen(sys.argv[1:]).wait()
    print("has not ended", file=sys.stderr, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("end", ["guard.announce(0)", "guard.end_job(1); time.sleep(9)"])
def test_a_launcher_that_does_not_end_is_killed(end: str) -> None:
    command = [sys.executable, "-c", LAUNCHER, *program(f"guard.started()\n{end}\nos._exit(0)")]
    since = time.monotonic()
    done = subprocess.run(command, env=LAUNCHED, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode in (-signal.SIGKILL, -signal.SIGTERM)
    assert time.monotonic() - since < 9
    if "announce" in end:
        assert "has not ended" in done.stderr and "the launcher does not end" in done.stderr


def test_guards_are_told_from_their_rank() -> None:
    """By what ps shows; and who looks for a rank by its variables finds the rank."""
    with running("guard.started()\nprint(os.getppid(), flush=True)\ntime.sleep(60)") as (process, (inner,)):
        for pid in (process.pid, inner):
            proc, deadline = Path(f"/proc/{pid}"), time.monotonic() + 10  # it may not have come to that yet
            while time.monotonic() < deadline and not (
                (proc / "comm").read_text() == "dppo-guard\n" and (proc / "cmdline").read_bytes().startswith(b"dppo: ")
            ):
                time.sleep(0.01)
            assert (proc / "comm").read_text() == "dppo-guard\n"  # without a space, which Slurm cannot read
            assert (proc / "cmdline").read_bytes().rstrip(b"\0").startswith(b"dppo: guard of rank 3 on ")
            assert b"PMIX_RANK" not in Path(f"/proc/{pid}/environ").read_bytes()
