"""A rank that makes no progress is noticed: its stacks are written, and the process ends if that was asked for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import pytest

from dppo.cluster.watchdog import Watchdog
from dppo.errors import EXIT_STALLED


def wait_for(path: Path, text: str = "test_watchdog.py") -> str:
    """The report; fails the test where none comes."""
    deadline = time.monotonic() + 10
    while not path.exists() or text not in path.read_text():
        assert time.monotonic() < deadline, "no report was written"
        time.sleep(0.01)
    return path.read_text()


@contextmanager
def stderr_in(folder: Path) -> Iterator[Path]:
    """A file that takes what is said on stderr. capfd empties its own after it has read it: what a thread writes
    between the two is lost.
    """
    path = folder / "stderr"
    with path.open("w") as file, redirect_stderr(file):
        yield path


@contextmanager
def stuck_in_c(folder: Path, after_s: float, abort_s: float) -> Iterator[subprocess.Popen[str]]:
    """A process, rank 7, that was in phase collect for a while and then never again lets go of the GIL."""
    code = f"""if True:
        import ctypes, pathlib, time
        from dppo.cluster.watchdog import Watchdog
        def step_of_a_simulator():
            ctypes.PyDLL(None).sleep(60)
        watchdog = Watchdog(pathlib.Path({str(folder)!r}), 7, {after_s}, {abort_s})
        watchdog.heartbeat("collect")
        time.sleep(0.5)  # two of the thread's looks
        print("stuck from here", flush=True)
        step_of_a_simulator()
    """
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "stuck from here\n"
            yield process
        finally:
            process.kill()


def test_a_stall_is_reported_with_rank_phase_and_stack(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    watchdog = Watchdog(tmp_path / "stalls", rank=3, after_s=0.05, abort_s=0.0)
    watchdog.heartbeat("collect")
    report = wait_for(tmp_path / "stalls" / "rank_00003.txt")
    watchdog.stop()
    assert "rank 3 on " in report and "in phase collect" in report
    assert "in wait_for" in report  # where this thread is
    said = capfd.readouterr().err
    assert "no progress for" in said and "rank_00003.txt" in said


@pytest.mark.timeout(20)
@pytest.mark.parametrize("limit", [1e10, 1e300, float("inf"), 1e-300, 1e-9])
def test_a_limit_that_no_clock_knows_does_not_end_the_watch(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], limit: float
) -> None:
    watchdog = Watchdog(tmp_path / "stalls", rank=0, after_s=limit, abort_s=0.0)
    if limit < 1:
        wait_for(tmp_path / "stalls" / "rank_00000.txt")
    time.sleep(0.05)
    assert any(thread.name == "watchdog" for thread in threading.enumerate())
    watchdog.stop()
    assert "Traceback" not in capfd.readouterr().err


def test_a_stall_is_reported_once(tmp_path: Path) -> None:
    watchdog = Watchdog(tmp_path / "stalls", rank=0, after_s=0.04, abort_s=0.0)
    wait_for(tmp_path / "stalls" / "rank_00000.txt")
    time.sleep(0.2)
    watchdog.stop()
    assert (tmp_path / "stalls" / "rank_00000.txt").read_text().count("no progress for") == 1


def test_progress_keeps_it_quiet(tmp_path: Path) -> None:
    """For longer than the limit of two seconds."""
    watchdog = Watchdog(tmp_path / "stalls", rank=0, after_s=2.0, abort_s=0.0)
    for _ in range(50):
        watchdog.heartbeat("update")
        time.sleep(0.05)
    watchdog.stop()
    assert not (tmp_path / "stalls").exists()


def test_progress_puts_the_timer_off(tmp_path: Path) -> None:
    """It is armed for 1.5 seconds."""
    watchdog = Watchdog(tmp_path / "stalls", rank=0, after_s=1.0, abort_s=0.0)
    for _ in range(50):
        watchdog.heartbeat("update")
        time.sleep(0.05)
    assert (tmp_path / "stalls" / "rank_00000.txt").read_text() == ""
    watchdog.stop()
    watchdog.stop()  # as run/command.py does
    time.sleep(1.6)
    assert not (tmp_path / "stalls").exists()


def test_a_stall_is_written_again_after_progress(tmp_path: Path) -> None:
    """And what the first watchdog wrote is kept by the next."""
    path = tmp_path / "stalls" / "rank_00000.txt"
    for phases in (("collect", "update"), ("exchange", "checkpoint")):
        watchdog = Watchdog(path.parent, rank=0, after_s=0.04, abort_s=0.0)
        for phase in phases:
            watchdog.heartbeat(phase)
            wait_for(path, f" s in phase {phase}")
        watchdog.stop()
    assert " s in phase collect" in path.read_text()


def test_the_process_ends_where_that_was_asked_for(tmp_path: Path) -> None:
    code = f"""if True:
        import pathlib, time
        from dppo.cluster.watchdog import Watchdog
        Watchdog(pathlib.Path({str(tmp_path)!r}) / "stalls", 0, 0.0, 0.1)
        time.sleep(60)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == EXIT_STALLED
    assert "no progress for" in done.stderr
    assert 'File "<string>", line 5' in (tmp_path / "stalls" / "rank_00000.txt").read_text()


@pytest.mark.parametrize("after_s", [0.0, 0.05, 5.0])
def test_how_the_process_ends_can_be_chosen(tmp_path: Path, after_s: float) -> None:
    ended = threading.Event()
    watchdog = Watchdog(tmp_path / "stalls", rank=0, after_s=after_s, abort_s=0.1, end=ended.set)
    assert ended.wait(10)
    watchdog.stop()
    assert "no progress for" in (tmp_path / "stalls" / "rank_00000.txt").read_text()


def test_without_limits_there_is_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    watchdog = Watchdog(tmp_path, rank=0, after_s=0.0, abort_s=0.0)
    watchdog.heartbeat("collect")
    assert threading.active_count() == before
    watchdog.stop()


def test_a_folder_that_cannot_be_made_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "stalls").write_text("a file")
    with stderr_in(tmp_path) as stderr:
        watchdog = Watchdog(tmp_path / "stalls", rank=3, after_s=0.05, abort_s=0.0)
        said = wait_for(stderr)
        watchdog.stop()
    assert "rank 3 on " in said
    assert (tmp_path / "stalls").read_text() == "a file"


def test_a_child_that_was_forked_can_exit(tmp_path: Path) -> None:
    """With its parent's timer it would wait for a thread that it does not have."""
    code = f"""if True:
        import os, pathlib, sys
        from dppo.cluster.watchdog import Watchdog
        watchdog = Watchdog(pathlib.Path({str(tmp_path)!r}) / "stalls", 0, 60.0, 0.0)
        if child := os.fork():
            os.waitpid(child, 0)
            watchdog.stop()
        sys.exit()
    """
    subprocess.run([sys.executable, "-c", code], timeout=30, check=True)
    assert not (tmp_path / "stalls").exists()


@pytest.mark.parametrize(("after_s", "abort_s"), [(1.0, 0.0), (0.0, 1.0), (1.0, 2.0), (2.0, 1.0)])
def test_a_stall_that_holds_the_gil_is_written_by_the_timer(tmp_path: Path, after_s: float, abort_s: float) -> None:
    path = tmp_path / "stalls" / "rank_00007.txt"
    with stuck_in_c(path.parent, after_s, abort_s) as process:
        report = wait_for(path, "step_of_a_simulator")
        assert process.poll() is None
    assert f"rank 7 on {socket.gethostname()}, pid {process.pid}: last seen in phase collect" in report
    assert report.count("Timeout") == 1


def test_a_killed_process_leaves_an_empty_file_which_the_next_attempt_removes(tmp_path: Path) -> None:
    path = tmp_path / "stalls" / "rank_00007.txt"
    with stuck_in_c(path.parent, 60.0, 0.0) as process:
        process.kill()
    assert path.read_text() == ""
    Watchdog(path.parent, rank=7, after_s=60.0, abort_s=0.0).stop()
    assert not path.parent.exists()


def test_before_there_is_a_folder_stacks_go_to_stderr(tmp_path: Path) -> None:
    """An environment that does not come back from its import or constructor: nothing may be written yet."""
    with stderr_in(tmp_path) as stderr:
        watchdog = Watchdog(None, rank=3, after_s=0.05, abort_s=0.0)
        watchdog.heartbeat("start: making environments")
        said = wait_for(stderr)
        assert not watchdog.has_folder and list(tmp_path.iterdir()) == [stderr]
        watchdog.write_to(tmp_path / "stalls")
        watchdog.heartbeat("collect")
        assert "in phase collect" in wait_for(tmp_path / "stalls" / "rank_00003.txt")
        watchdog.stop()
    assert "rank 3 on " in said and "in phase start: making environments; its stack follows" in said


@pytest.mark.parametrize("after_s", [0.2, 0.0])
def test_a_process_that_can_never_come_back_is_killed(after_s: float) -> None:
    code = f"""if True:
        import time
        from dppo.cluster.watchdog import Watchdog
        Watchdog(None, 2, {after_s}, 0.0, is_lost=lambda: "its environment has ended MPI")
        time.sleep(60)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == -9
    assert "rank 2 on " in done.stderr and "its environment has ended MPI" in done.stderr


def test_beats_tell_the_guard_that_python_runs() -> None:
    beats: list[float] = []
    watchdog = Watchdog(None, 0, 0.0, 0.4, end=lambda: None, beat=beats.append)
    for _ in range(50):
        watchdog.heartbeat("collect")
        time.sleep(0.01)
    watchdog.stop()
    assert len(beats) > 2 and set(beats[:-1]) == {0.4} and beats[-1] == 0.0


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/full")], ids=["pipe", "link"])
def test_what_lies_in_the_place_of_its_file_is_left_alone(make: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "stalls").mkdir()
    make(tmp_path / "stalls" / "rank_00000.txt")
    with stderr_in(tmp_path) as stderr:
        watchdog = Watchdog(None, rank=0, after_s=0.05, abort_s=0.0)
        watchdog.write_to(tmp_path / "stalls")
        assert "no progress for" in wait_for(stderr)
        watchdog.stop()
