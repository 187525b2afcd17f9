"""What the batch system says of this job: its number, room, restarts, and when it ends.

How many ranks share a node is in startup.py.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

from dppo.bounds import digits as digits

ASK_S = 10.0
"""How long an answer from Slurm is waited for: its controller may be busy, or away."""
_ENDED = {
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
    "REVOKED",
}


@dataclass(frozen=True, slots=True)
class Allocation:
    """The part of a cluster that this process runs in."""

    job_id: str | None = None
    """As in `squeue`; of a task of a job array ARRAY_TASK; None where there is no batch system."""
    restarts: int = 0
    """How often Slurm has started the job again."""
    num_tasks: int = 1
    """Ranks that the job has room for."""


def this_allocation(environ: Mapping[str, str] = os.environ) -> Allocation:
    """What Slurm has put into the environment; nobody is asked."""
    number = environ.get("SLURM_JOB_ID")
    if number is None:
        return Allocation()
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    job_id = number if array is None or task is None else f"{array}_{task}"
    return Allocation(
        job_id,
        restarts=_number(environ, "SLURM_RESTART_COUNT", 0),
        num_tasks=_number(environ, "SLURM_NTASKS", 1),
    )


def ends_at(environ: Mapping[str, str] = os.environ) -> float | None:
    """When this job will be killed, in seconds since 1970; None: not known, or never.

    Where Slurm has not put it into the environment (before 23.02), or a time that has passed is left over there from
    another job, its controller is asked, which may take `ASK_S`.
    """
    number = environ.get("SLURM_JOB_ID")
    if number is None:
        return None
    told: float = _number(environ, "SLURM_JOB_END_TIME", 0, 10**11)
    end = told if told > time.time() else _asked_end(number)
    return end if end is not None and end > time.time() else None


def _number(environ: Mapping[str, str], name: str, default: int, most: int = 10**6) -> int:
    number = digits(environ.get(name, ""), most)
    return default if number is None else number


def _asked_end(number: str) -> float | None:
    try:
        return time.mktime(time.strptime(_squeue(number, "%e"), "%Y-%m-%dT%H:%M:%S"))
    except (OSError, subprocess.SubprocessError, ValueError):  # no squeue here, no answer, or no limit
        return None


def _squeue(job_id: str, form: str) -> str:
    return subprocess.run(
        ["squeue", "--noheader", "--jobs", job_id, "--format", form],
        capture_output=True, text=True, timeout=ASK_S, check=True, stdin=subprocess.DEVNULL,
        env=os.environ | {"SLURM_TIME_FORMAT": "standard"},
    ).stdout.strip()  # fmt: skip


def in_queue(job_id: str) -> bool:
    """Whether Slurm has the job: running, or waiting to. False where nobody can be asked."""
    try:
        answer = _squeue(job_id, "%T")
    except (OSError, ValueError, subprocess.SubprocessError):  # no squeue, no answer, no such job
        return False
    return not set(answer.split()) <= _ENDED
