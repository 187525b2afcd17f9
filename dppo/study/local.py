"""Starts many runs on this machine, some at a time, each as a job of its own, and sees each to its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from dppo.cluster import processes
from dppo.cluster.signals import Preemption
from dppo.cluster.startup import mpi_parameters, own_cores
from dppo.config import Config
from dppo.errors import EXIT_AGAIN, EXIT_FINISHED, EXIT_USAGE
from dppo.files import plain, read_lines
from dppo.rundir import paths
from dppo.rundir.summary import ENDED, FAILED, read_summary
from dppo.settings.flags import as_flags

LOOK_S = 0.2
"""Seconds between two looks at the runs."""
KILL_AFTER_S = 80.0
"""Seconds that a run gets to end beyond its own checkpoint.grace-s once it was asked to save; later it is stuck."""
STALL, STALL_ABORT_S = "log.stall-abort-s", 600
"""The setting that ends a rank that makes no progress, and its value in runs that nobody watches."""
AGAIN = "again"
"""The reason to stop where a run's own process wants its whole job to be started again."""

EXIT_CANCELLED = 128 + signal.SIGTERM
"""The exit code of dppo.job where its job ends."""

DONE, BROKEN, CUT = "done", "failed", "cut short"


class Job(NamedTuple):
    """A run that is to be made, or to be resumed."""

    name: str
    """The run's name in messages: task 3."""
    folder: Path
    settings: dict[str, Any]
    """All settings that are given, by flag's name."""
    varied: dict[str, Any]
    """Those of them in which the runs differ."""
    config: Config


class Outcome(NamedTuple):
    """The end of a run's process."""

    state: str
    """done; failed: the run itself failed, and would again; cut short: it can be resumed."""
    text: str = ""
    """The reason, where it is not done."""


class Source(Protocol):
    """What is to be run. `next` is asked whenever there is room for a run."""

    failed: dict[str, str]
    """The reason for each run that has not ended by itself."""

    @property
    def left(self) -> int:
        """The number of runs that wait to be started or resumed."""

    def counts(self) -> str:
        """Returns how many runs have ended, and the like."""

    def alive(self) -> None:
        """Is called all the time."""

    def next(self) -> Job | None:
        """Returns the next run; None where there is none at present."""

    def ended(self, job: Job, outcome: Outcome) -> None:
        """Takes note of a run's end."""

    def stopped(self, job: Job) -> None:
        """Takes note of a run that was stopped, and can be resumed."""


class Board(Protocol):
    """What shows how far the runs are."""

    def began(self, job: Job) -> None: ...
    def ended(self, job: Job, outcome: Outcome) -> None: ...
    def draw(self, running: Sequence[Job]) -> None: ...
    def stopping(self, running: int) -> None: ...


class Launch(NamedTuple):
    """How a run is started."""

    launcher: list[str]
    """The words before `python -m dppo.run`; empty where one process trains."""
    resumes: bool = True
    """Whether a run that is there is given --resume; dppo.job does that itself."""

    def command(self, job: Job) -> list[str]:
        """Returns the command that starts or resumes a run."""
        limit = {} if STALL in job.settings else {STALL: STALL_ABORT_S}
        flags = [*as_flags(limit | job.settings), "--run-dir", str(job.folder)]
        again = ["--resume"] if self.resumes and os.path.lexists(job.folder / paths.CONFIG) else []
        return [*self.launcher, sys.executable, "-m", "dppo.run", *flags, *again]


class _Running(NamedTuple):
    job: Job
    process: subprocess.Popen[bytes]
    slot: int
    checkpoint: str
    """The newest checkpoint's name at the start."""


class Runs:
    """Runs what a source gives, `slots` at a time.

    Each run's process is in a session of its own, so that a Ctrl-C does not reach mpirun, which would kill its ranks
    at once; SIGUSR1 has them save. If this process is killed, the kernel sends that signal.

    Args:
      keep: descriptors that the programs inherit; a lock lives as long as any of them.
    """

    def __init__(self, source: Source, launch: Launch, slots: int, board: Board, keep: Sequence[int] = ()) -> None:
        self._source, self._launch, self._board, self._keep = source, launch, board, keep
        self._cores = shares(sorted(own_cores()), slots)
        self._free = list(range(slots))
        self._running: list[_Running] = []
        self._stop = Preemption(KILL_AFTER_S, None, leave=self._kill)
        self._asked = False
        self.is_job_over = False
        """Whether a run's own dppo.job has had Slurm start the whole job again, or has been told that it ends."""

    def to_the_end(self) -> str:
        """Runs until there is nothing left to run, or this process is asked to stop. Returns the reason to stop: the
        name of a signal, or AGAIN; else "".
        """
        self._stop.install()
        try:
            while True:
                self._source.alive()
                self._look()
                if self._stop.requested:
                    self._ask()
                else:
                    self._fill()
                if not self._running:
                    return self._stop.reason
                self._board.draw([running.job for running in self._running])
                time.sleep(LOOK_S)
        finally:
            self._kill(0)
            self._stop.uninstall()

    def ask_to_stop(self) -> None:
        """Asks to stop as SIGUSR1 does."""
        self._stop.request("SIGUSR1")

    def _fill(self) -> None:
        while self._free and (job := self._source.next()) is not None:
            slot = self._free.pop(0)
            self._board.began(job)
            self._running.append(_Running(job, self._start(job, slot), slot, newest_checkpoint(job.folder)))

    def _start(self, job: Job, slot: int) -> subprocess.Popen[bytes]:
        job.folder.mkdir(parents=True, exist_ok=True)
        cores, parent = self._cores[slot], os.getpid()

        def prepare() -> None:  # in the child
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, cores)
            processes.prctl(processes.SET_PDEATHSIG, signal.SIGUSR1)
            if os.getppid() != parent:
                os._exit(EXIT_AGAIN)

        with open(job.folder / paths.OUTPUT, "ab") as output:
            return subprocess.Popen(
                self._launch.command(job), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, pass_fds=self._keep, preexec_fn=prepare, env=mpi_parameters() | os.environ,
            )  # fmt: skip

    def _look(self) -> None:
        """Takes the runs that have ended."""
        for running in [running for running in self._running if running.process.poll() is not None]:
            self._running.remove(running)
            self._free = sorted((*self._free, running.slot))
            job, code = running.job, running.process.returncode
            outcome = judge(job.folder, code)
            if outcome.state == CUT and not self._launch.resumes and code in (EXIT_AGAIN, EXIT_CANCELLED):
                self._stop.request(AGAIN)
                self.is_job_over = True
            if outcome.state == CUT and self._stop.requested:
                self._source.stopped(job)
            elif outcome.state == CUT and newest_checkpoint(job.folder) != running.checkpoint:
                self._resume(running)
            else:
                self._source.ended(job, outcome)
                self._board.ended(job, outcome)

    def _resume(self, running: _Running) -> None:
        """Starts a run again that was cut short, and had made progress."""
        self._free.remove(running.slot)
        again = running._replace(
            process=self._start(running.job, running.slot), checkpoint=newest_checkpoint(running.job.folder)
        )
        self._running.append(again)

    def _ask(self) -> None:
        """Asks all runs to save and leave; kills those that do not in time."""
        if not self._asked:
            self._asked = True
            self._stop.grace_s = KILL_AFTER_S + max((r.job.config.checkpoint.grace_s for r in self._running), default=0)
            self._board.stopping(len(self._running))
            is_end = self._stop.reason == "SIGTERM" and not self._launch.resumes  # dppo.job does not save then
            number = signal.SIGTERM if is_end else signal.SIGUSR1
            for running in self._running:
                processes.kill(running.process.pid, number)
        if self._stop.past(1.0):
            self._kill(0)

    def _kill(self, code: int) -> None:
        """Kills the launchers that still run; the guards of their ranks end these."""
        for running in self._running:
            if running.process.poll() is None:
                running.process.kill()


def shares(cores: Sequence[int], slots: int) -> list[list[int]]:
    """Returns the cores of each of `slots` runs: as many for each as there are, and none for two runs where there are
    enough.
    """
    if slots >= len(cores):
        return [[cores[slot % len(cores)]] for slot in range(slots)]
    return [list(cores[slot * len(cores) // slots : (slot + 1) * len(cores) // slots]) for slot in range(slots)]


def judge(folder: Path, code: int) -> Outcome:
    """Returns what became of a run whose process has ended with `code`."""
    summary = read_summary(folder)
    state = summary.get("exit")
    if state in ENDED and code in (EXIT_FINISHED, EXIT_AGAIN):
        return Outcome(DONE)
    if code == EXIT_USAGE:
        return Outcome(BROKEN, said_last(folder) or "wrong use")
    if state == FAILED and not summary.get("stalled"):
        error = str(summary.get("error") or "").strip().rpartition("\n")[2]
        return Outcome(BROKEN, error or said_last(folder))
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return Outcome(CUT, f"{how}: {said_last(folder)}".rstrip(": "))


def said_last(folder: Path) -> str:
    """Returns the last message of dppo's in a run's output, or its last line."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = [line.decode(errors="replace").strip() for line in read_lines(folder / paths.OUTPUT, skip_long=True)]
    of_dppo = [line.removeprefix("dppo: ") for line in lines if line.startswith("dppo: ")]
    return plain((of_dppo or [line for line in lines if line] or [""])[-1])[:500]


def newest_checkpoint(folder: Path) -> str:
    """Returns the name of a run's newest checkpoint; "" where it has none."""
    with contextlib.suppress(OSError):
        return (folder / paths.LATEST).read_text(errors="replace").strip()
    return ""
