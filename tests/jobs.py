"""A batch job without Slurm: programs that stand in for its own, a log of how they were called, and the job itself.

tests/test_job.py uses it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MPIRUN = ("mpirun", "--with-ft", "ulfm")
LIMIT_S = 30.0
STEPS = """
run=${RUN-runs/it}
save() { mkdir -p "$run/checkpoints"; echo "step_$1" >"$run/checkpoints/latest"; }       # a checkpoint of this step
finish() { mkdir -p "$run"; echo '{"env_steps": 64, "error": "KeyError: 1", "exit": "'"$1"'"}' >"$run/summary.json"; }
wait_for_ever() { echo "waits $$" >>"$LOG"; while :; do sleep 0.02; done; }
"""
"""What the shell's lines of a program may call."""


class Stage:
    """A folder with a virtual environment in which `python -m dppo.run` and the programs of the cluster are others.

    Args:
      folder: the job works there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._log = folder, folder / "log"
        self._bin = folder / "venv" / "bin"
        self._bin.mkdir(parents=True)
        self._started: list[subprocess.Popen[bytes]] = []
        (folder / "steps").write_text(STEPS)
        self.activate()
        for program in ("dry-run", "mpirun", "srun", "scontrol"):
            self.plays(program, "exit 0")
        self.plays("squeue", "exit 1")
        real = f'exec {sys.executable} "$@"'
        self._write("python", f'case "$*" in "-m dppo.run "*) exec dry-run "$@";; esac\n{real}\n')

    def activate(self, *lines: str) -> None:
        """Lets the virtual environment's script do this as well."""
        (self._bin / "activate").write_text("\n".join((f"export PATH={self._bin}:$PATH", *lines, "")))

    def plays(self, program: str, *lines: str) -> None:
        """Lets a program note how it is called, and do this."""
        begin = f'LOG={self._log}; echo "{program} $*" >>"$LOG"; . {self.folder}/steps'
        self._write(program, "\n".join((begin, *lines)))

    def _write(self, program: str, text: str) -> None:
        (self._bin / program).write_text(f"#!/bin/sh\n{text}\n")
        (self._bin / program).chmod(0o755)

    def train(
        self, *settings: str, options: Sequence[str] = (), launcher: Sequence[str] = MPIRUN, **variables: str
    ) -> Job:
        """`python -m dppo.job OPTIONS LAUNCHER python -m dppo.run SETTINGS`."""
        run = ("python", "-m", "dppo.run", *(settings or ("--run-dir", "runs/it")))
        return self.start("python", "-m", "dppo.job", *options, *launcher, *run, **variables)

    def start(self, *command: str, **variables: str) -> Job:
        environ = {
            "PATH": f"{self._bin}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "VENV": str(self.folder / "venv"),
            "SLURM_JOB_ID": "19", "SLURM_JOB_NAME": "dppo", "HOME": "/",
            "LC_ALL": "C.UTF-8",  # else Python puts a locale into its environment
        }  # fmt: skip
        output = self.folder / f"{len(self._started)}.out"  # no pipe, which what a job leaves behind would hold open
        with output.open("w") as file:
            started = subprocess.Popen(
                command, cwd=self.folder, env=environ | variables, stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._started.append(started)
        return Job(self, started, output)

    def log(self, program: str = "") -> list[str]:
        """Returns how the programs were called, or one of them, and what they have noted."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [line for line in lines if line.startswith(program)]

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.01)

    def verdicts(self, run_dir: str = "runs/it") -> list[Any]:
        """Returns that of each start; None where there is none yet."""
        path = self.folder / run_dir / "starts.jsonl"
        return [json.loads(line).get("verdict") for line in path.read_text().splitlines()] if path.exists() else []

    def close(self) -> None:
        """Ends what is left."""
        for job in self._started:
            if job.poll() is None:
                job.kill()
            job.wait(LIMIT_S)
        for pid in {int(line.split()[1]) for line in self.log("waits ")}:
            with contextlib.suppress(OSError):
                if str(self._bin).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():  # not another one by now
                    os.kill(pid, signal.SIGKILL)


class Job:
    """One start of a job."""

    def __init__(self, stage: Stage, process: subprocess.Popen[bytes], output: Path) -> None:
        self.stage, self.process, self._output = stage, process, output

    def waits(self) -> Job:
        """Returns once a program waits for ever."""
        self.stage.until(lambda: bool(self.stage.log("waits")))
        return self

    def send(self, number: int) -> Job:
        self.process.send_signal(number)
        return self

    def end(self) -> tuple[int, str]:
        """Returns exit code and output."""
        return self.process.wait(LIMIT_S), self._output.read_text()
