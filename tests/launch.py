"""Starts programs on MPI ranks, under a time limit, and leaves no process behind.

Uses the standard library only; everything in tests/ that needs processes goes through the fixture `launch`.

mpirun puts every rank into a process group of its own, but all of them stay in mpirun's session: a session per job is
what finds them again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAMS = Path(__file__).parent / "mpi" / "programs"
"""Programs to start on ranks, and modules that register environments for them."""

LIMIT_S = 180.0
"""What a job, or what a test waits for, gets by default. It ends what hangs and measures nothing: several jobs run at
once, on a machine that may be slow.
"""

LEFT_BEHIND_S = 5.0
"""What a job's processes get to disappear after mpirun has."""

_OF_A_LAUNCHER = ("OMPI_COMM", "PMIX_", "PRTE_", "SLURM_")
OF_DPPO = ("OMPI_MCA_btl", "OMPI_MCA_pml")
"""Variables that dppo sets where no launcher has started it: with them, ranks would not find each other."""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Ended:
    """A job that came to its end by itself."""

    code: int
    stdout: str
    stderr: str
    wall_s: float

    @property
    def messages(self) -> list[str]:
        """The lines on standard error that are dppo's own."""
        return [line for line in self.stderr.splitlines() if line.startswith("dppo: ")]

    def __str__(self) -> str:
        return f"code {self.code} after {self.wall_s:.1f} s\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"


def flags(settings: dict[str, Any], section: str = "") -> list[str]:
    """Nested settings as flags of dppo.run: {"ppo": {"clip": 0.1}} is --ppo.clip 0.1."""
    out: list[str] = []
    for name, value in settings.items():
        if isinstance(value, dict):
            out += flags(value, f"{name}.")
        elif isinstance(value, bool):
            out.append(f"--{section}{'' if value else 'no-'}{name}")
        else:
            out += [f"--{section}{name}", str(value)]
    return out


class Job:
    """A program on some ranks.

    Args:
      command: what to start.
      folder: working directory.
      temporary: for MPI's own files; what killed processes leave behind goes with it.
    """

    def __init__(self, command: list[str], folder: Path, temporary: str, **variables: str) -> None:
        self._out, self._err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115 (closed by close)
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            command, cwd=folder, env=_environment(temporary) | variables, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=self._out, stderr=self._err,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        """Of mpirun, or of the one rank that runs without it; it is the session's number too."""
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def rank_pid(self, rank: int) -> int:
        """The process of a rank of an mpirun job."""
        wanted = f"OMPI_COMM_WORLD_RANK={rank}".encode()
        for seconds in (0.05, 0.0):  # its guard may have given its variables up before the rank was there to be seen
            for pid in sorted(self._pids()):  # a rank's own children have its variables, too
                try:
                    if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                        return pid
                except OSError:
                    continue
            time.sleep(seconds)
        raise AssertionError(f"rank {rank} is not running\n{self._output()}")

    def has_rank(self, rank: int) -> bool:
        """Whether the launcher has started this rank."""
        try:
            return self.rank_pid(rank) > 0
        except AssertionError:
            return False

    def send(self, number: signal.Signals, rank: int | None = None) -> None:
        """A signal to one rank, or to mpirun (None), which passes it on to all."""
        os.kill(self.pid if rank is None else self.rank_pid(rank), number)

    def until(self, condition: Callable[[], bool], timeout: float = LIMIT_S) -> None:
        """Waits for something that the running job brings about."""
        deadline = time.monotonic() + timeout
        while not condition():
            if not self.running or time.monotonic() > deadline:
                if condition():
                    return
                what = "is too slow" if self.running else f"has ended with {self._process.returncode}"
                raise AssertionError(f"the job {what}\n{self._output()}")
            time.sleep(0.01)

    def wait(self, timeout: float = LIMIT_S) -> Ended:
        """The job's end. One that does not come in time, or leaves processes behind, fails the test."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the job was still running after {timeout} s\n{self._output()}") from None
        wall_s = time.monotonic() - self._started
        deadline = time.monotonic() + LEFT_BEHIND_S
        while left := list(self._pids()):
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"the job has ended, but left processes {left} behind\n{self._output()}")
            time.sleep(0.02)
        return Ended(code, *self._output_parts(), wall_s)

    def kill(self) -> None:
        """SIGKILL to everything that the job has started."""
        while pids := list(self._pids()):
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.02)
        self._process.wait()

    def close(self) -> None:
        self.kill()
        self._out.close()
        self._err.close()

    def _pids(self) -> Iterator[int]:
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended meanwhile
                continue
            state, session = fields[0], int(fields[3])
            if session == self.pid and state != "Z":
                yield int(folder.name)

    def _output_parts(self) -> tuple[str, str]:
        parts = []
        for file in (self._out, self._err):
            file.seek(0)
            parts.append(file.read().decode(errors="replace").replace("\r\n", "\n"))
        return parts[0], parts[1]

    def _output(self) -> str:
        out, err = self._output_parts()
        return f"--- stdout\n{out}\n--- stderr\n{err}"


def _environment(temporary: str) -> dict[str, str]:
    """This process's, without what a launcher or an import of dppo.run has put into it."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_OF_A_LAUNCHER) and k not in (*_THREADS, *OF_DPPO)}
    return kept | {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "TMPDIR": temporary,
        "OMPI_MCA_btl_sm_backing_directory": temporary,
        "PYTHONPATH": f"{PROGRAMS.parents[2]}:{PROGRAMS}",  # the code beside these tests, wherever it is installed from
    }


class Launcher:
    """Starts jobs in a folder and, at its end, kills those that are left."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._temporary = tempfile.TemporaryDirectory(prefix="dppo-", ignore_cleanup_errors=True)
        self._jobs: list[Job] = []

    def start(
        self,
        ranks: int | None,
        *arguments: object,
        program: str | None = None,
        survives: bool = False,
        beside: Sequence[Sequence[object]] = (),
        **variables: str,
    ) -> Job:
        """Starts `python -m dppo.run arguments`, or a program of tests/mpi/programs.

        Args:
          ranks: under `mpirun -n ranks`; None: without mpirun.
          survives: with `--with-ft ulfm`.
          beside: the ranks and the words of each further program of the same mpirun.
          variables: added to the environment.
        """
        python = Path(sys.executable)
        what = ["-m", "dppo.run"] if program is None else [str(PROGRAMS / program)]
        mpirun = [] if ranks is None else [str(python.parent / "mpirun"), "--oversubscribe", "-n", str(ranks)]
        if survives:
            mpirun[1:1] = ["--with-ft", "ulfm"]
        others = [str(word) for count, *words in beside for word in (":", "-n", count, *words)]
        command = [*mpirun, str(python), *what, *map(str, arguments), *others]
        job = Job(command, self._folder, self._temporary.name, **variables)
        self._jobs.append(job)
        return job

    def run(
        self,
        ranks: int | None,
        *arguments: object,
        program: str | None = None,
        timeout: float = LIMIT_S,
        code: int | None = 0,
        survives: bool = False,
        beside: Sequence[Sequence[object]] = (),
        **variables: str,
    ) -> Ended:
        """The same, to its end, which must come with `code`; None: any."""
        job = self.start(ranks, *arguments, program=program, survives=survives, beside=beside, **variables)
        ended = job.wait(timeout)
        assert code is None or ended.code == code, str(ended)
        return ended

    def close(self) -> None:
        for job in self._jobs:
            job.close()
        self._temporary.cleanup()


def train_in_one_start(folder: Path, ranks: int, runs: dict[str, tuple[object, ...]], timeout: float) -> None:
    """Runs of all those flags, one after another, in folders of their names; starts are what takes the time."""
    jobs = [
        {"ranks": ranks, "flags": [str(flag) for flag in (*given, "--run-dir", folder / name)]}
        for name, given in runs.items()
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    launcher = Launcher(folder)
    try:
        launcher.run(ranks, folder / "jobs.json", program="train_layouts.py", timeout=timeout)
    finally:
        launcher.close()
