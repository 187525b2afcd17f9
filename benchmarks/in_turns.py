"""Two trainings in time slices: each runs while the other one stands still, in turn, until both have ended.

A machine shared with others is at times twice as slow for seconds, so that whole runs, one after the other, differ by
a fifth where they are equal. Slices of a second meet the same machine. Used by evaluation.py and trace.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import MPIRUN

from dppo.seams import Recorder, RunInfo

SLICE_S = 0.3
CLOCK = "clock.json"


class Clock(Recorder):
    """Writes in RUN/clock.json when each iteration ended, by the machine's clock, and the steps done until then."""

    def start(self, run: RunInfo) -> None:
        self._path = run.run_dir / CLOCK
        self._ends: list[tuple[float, int]] = []

    def iteration(self, line: dict[str, Any]) -> None:
        self._ends.append((time.monotonic(), line["env_steps"]))

    def end(self, summary: dict[str, Any]) -> None:
        self._path.write_text(json.dumps(self._ends))


def steps_per_s(
    runs: Mapping[str, tuple[Path, Sequence[str]]], ranks: int, timeout_s: float = 3600.0
) -> dict[str, float]:
    """Trains several times in turn. Returns for each run its steps per second, from the first iteration's end to the
    last one's, of the time in which it was let run.

    Args:
      runs: name -> (run directory, flags of dppo.run).
    Raises:
      RuntimeError: a run fails.
      TimeoutError: they take longer than `timeout_s`.
    """
    started = time.monotonic()
    jobs = {name: _start(ranks, path, flags) for name, (path, flags) in runs.items()}
    stood: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    try:
        for job in jobs.values():
            _send(job, signal.SIGSTOP)
        since = dict.fromkeys(jobs, time.monotonic())
        while any(job.poll() is None for job in jobs.values()):
            for name, job in jobs.items():
                if job.poll() is None:
                    stood[name].append((since[name], time.monotonic()))
                    _send(job, signal.SIGCONT)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        job.wait(SLICE_S)
                    since[name] = time.monotonic()
                    _send(job, signal.SIGSTOP)
            if time.monotonic() - started > timeout_s:
                raise TimeoutError(f"runs in turn took longer than {timeout_s:.0f} s")
    finally:
        for job in jobs.values():
            _send(job, signal.SIGKILL)
            job.wait()
    for name, job in jobs.items():
        if job.returncode:
            raise RuntimeError(f"the run {name!r} ended with code {job.returncode}: {runs[name]}")
    return {name: speed(json.loads((path / CLOCK).read_text()), stood[name]) for name, (path, _) in runs.items()}


def _start(ranks: int, run_dir: Path, flags: Sequence[str]) -> subprocess.Popen[bytes]:
    command = [str(MPIRUN), "--oversubscribe", "-n", str(ranks), sys.executable, "-m", "dppo.run", *flags]
    command += ["--run-dir", str(run_dir), "--log.recorder", "in_turns:Clock"]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, start_new_session=True, **quiet)


def _send(job: subprocess.Popen[bytes], number: int) -> None:
    """Sends a signal to all processes of a job; once more, as some may have been born meanwhile."""
    for _ in range(2):
        for pid in _session(job.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _session(leader: int) -> Iterator[int]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if int(Path(entry.path, "stat").read_text().rpartition(")")[2].split()[3]) == leader:
                    yield int(entry.name)


def speed(ends: Sequence[tuple[float, int]], stood: Sequence[tuple[float, float]]) -> float:
    """Steps per second between the first end and the last, without the intervals in which the run stood still."""
    (first, before), (last, after) = ends[0], ends[-1]
    still = sum(max(0.0, min(end, last) - max(begin, first)) for begin, end in stood)
    return (after - before) / (last - first - still)
