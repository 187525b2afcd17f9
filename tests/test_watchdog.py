"""A rank that makes no progress is noticed: its stacks are written, and the process ends if that was asked for."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dppo.watchdog import EXIT_STALLED, Watchdog


def wait_for(path: Path) -> str:
    """The report; fails the test where none comes."""
    deadline = time.monotonic() + 10
    while not path.exists() or "test_watchdog.py" not in path.read_text():
        assert time.monotonic() < deadline, "no report was written"
        time.sleep(0.01)
    return path.read_text()


def test_a_stall_is_reported_with_rank_phase_and_stack(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    watchdog = Watchdog(tmp_path / "stalls", rank=3, after_s=0.05, abort_s=0.0)
    watchdog.progress("collect")
    report = wait_for(tmp_path / "stalls" / "rank_00003.txt")
    watchdog.stop()
    assert "rank 3 on " in report and "in phase collect" in report
    assert "in wait_for" in report  # where this thread is
    said = capfd.readouterr().err
    assert "no progress for" in said and "rank_00003.txt" in said


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
        watchdog.progress("update")
        time.sleep(0.05)
    watchdog.stop()
    assert not (tmp_path / "stalls").exists()


def test_the_process_ends_where_that_was_asked_for(tmp_path: Path) -> None:
    code = f"""if True:
        import pathlib, time
        from dppo.watchdog import Watchdog
        Watchdog(pathlib.Path({str(tmp_path)!r}) / "stalls", 0, 0.0, 0.1)
        time.sleep(60)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == EXIT_STALLED
    assert "no progress for" in done.stderr
    assert 'File "<string>", line 5' in (tmp_path / "stalls" / "rank_00000.txt").read_text()


def test_without_limits_there_is_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    watchdog = Watchdog(tmp_path, rank=0, after_s=0.0, abort_s=0.0)
    watchdog.progress("collect")
    assert threading.active_count() == before
