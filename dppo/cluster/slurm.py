"""Reads what the batch system says about this job and this step: number, room, restarts, when it ends, tasks by node.
No other module reads Slurm's variables.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

from dppo.bounds import digits

MOST_RANKS = 10**6
"""The largest credible number in a launcher's variable; a variable with a larger one counts as not set."""
JOB_ID, TASKS, STEP_TASKS = "SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"
ASK_S = 10.0
"""Seconds to wait for an answer from Slurm, whose controller may be busy, or away."""
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
    """The number as in `squeue`; ARRAY_TASK for a task of a job array; None where there is no batch system."""
    restarts: int = 0
    """The number of times that Slurm has started the job again."""
    num_tasks: int = 1
    """The number of ranks that the job has room for."""


def this_allocation(environ: Mapping[str, str] = os.environ) -> Allocation:
    """Returns what Slurm has put into the environment; asks nobody."""
    number = environ.get(JOB_ID)
    if number is None:
        return Allocation()
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    job_id = number if array is None or task is None else f"{array}_{task}"
    return Allocation(
        job_id,
        restarts=_number(environ, "SLURM_RESTART_COUNT", 0),
        num_tasks=_number(environ, TASKS, 1),
    )


def tasks_of_one_node(environ: Mapping[str, str] = os.environ) -> int | None:
    """Returns the tasks that the job has on each node, if it has several nodes and its number of tasks follows from
    that; else None.
    """
    tasks, nodes, per_node = (
        digits(environ.get(name, ""), 10**9) for name in (TASKS, "SLURM_NNODES", "SLURM_NTASKS_PER_NODE")
    )
    if tasks is None or nodes is None or per_node is None:
        return None
    return per_node if tasks == nodes * per_node > per_node else None


def room() -> list[tuple[str, int]]:
    """Returns the nodes of this job and the number of tasks that each has room for; [] where Slurm does not say."""
    tasks = _tasks_per_node("SLURM_TASKS_PER_NODE")
    command = ["scontrol", "show", "hostnames", os.environ.get("SLURM_JOB_NODELIST", "")]
    try:
        asked = subprocess.run(
            command, capture_output=True, text=True, timeout=ASK_S, check=True, stdin=subprocess.DEVNULL
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
    hosts = asked.stdout.split()
    return list(zip(hosts, tasks, strict=True)) if len(hosts) == len(tasks) else []


def ends_at(environ: Mapping[str, str] = os.environ) -> float | None:
    """Returns when this job will be killed, in seconds since 1970; None: not known, or never.

    Asks Slurm's controller, which may take `ASK_S`, where the environment holds no such time (before Slurm 23.02), or
    a time that has passed, which is left over from another job.
    """
    number = environ.get(JOB_ID)
    if number is None:
        return None
    told: float = _number(environ, "SLURM_JOB_END_TIME", 0, 10**11)
    end = told if told > time.time() else _asked_end(number)
    return end if end is not None and end > time.time() else None


def _number(environ: Mapping[str, str], name: str, default: int, most: int = MOST_RANKS) -> int:
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
    """Returns whether Slurm has the job: running, or waiting to run. Returns False where nobody can be asked."""
    try:
        answer = _squeue(job_id, "%T")
    except (OSError, ValueError, subprocess.SubprocessError):  # no squeue, no answer, no such job
        return False
    return not set(answer.split()) <= _ENDED


# -- what srun says of its step --------------------


def tasks_of_step() -> str | None:
    """Returns the number of processes that srun has started, as it is written; None where srun has not started this."""
    return os.environ.get(STEP_TASKS)


def in_a_shell() -> bool:
    """Returns whether this step is the shell of `srun --pty`."""
    return "SLURM_PTY_PORT" in os.environ


def rank_in_step() -> str | None:
    """Returns this process's number in the step, as it is written."""
    return os.environ.get("SLURM_PROCID")


def nodes_of_step() -> int:
    """Returns the number of nodes that the step's tasks are on; 0 where Slurm does not say."""
    return len(_tasks_per_node())


def tasks_on_this_node() -> int:
    """Returns the number of the step's tasks on this node; 1 where Slurm does not say."""
    nodes, number = _tasks_per_node(), digits(os.environ.get("SLURM_NODEID", "0"), MOST_RANKS)
    return nodes[number] if number is not None and number < len(nodes) else 1


def _tasks_per_node(variable: str = "SLURM_STEP_TASKS_PER_NODE") -> list[int]:
    """Returns the step's tasks on each node, or the job's; [] where Slurm says nothing, or what cannot be. Slurm writes
    `4(x2),3` for [4, 4, 3].
    """
    counted: list[int] = []
    text = os.environ.get(variable, "")
    for part in text.split(",") if text else []:
        found = re.fullmatch(r"([0-9]+)(?:\(x([0-9]+)\))?", part)
        tasks, nodes = (digits(number or "1", MOST_RANKS) for number in found.groups()) if found else (None, None)
        if tasks is None or nodes is None or len(counted) + nodes > MOST_RANKS:
            return []
        counted += [tasks] * nodes
    return counted


def cores_on_this_node() -> int | None:
    """Returns the number of this node's cores that the job has; None where Slurm does not say."""
    return digits(os.environ.get("SLURM_CPUS_ON_NODE", ""), MOST_RANKS)
