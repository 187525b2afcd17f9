"""The states of a run, the exit code of each, and RUN/summary.json."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dppo.errors import EXIT_AGAIN, EXIT_FINISHED
from dppo.files import overwrite
from dppo.rundir import paths
from dppo.rundir.recorders import json_bytes, read_json, write_json

RUNNING, PREEMPTED, FAILED = "running", "preempted", "failed"
FINISHED, TARGET = "finished", "target"
ENDED = (FINISHED, TARGET)
"""States of a run that reached its own end: all steps are done, or the target return is reached."""
STATES = (*ENDED, PREEMPTED, FAILED, RUNNING)
EXIT_CODES = {FINISHED: EXIT_FINISHED, TARGET: EXIT_FINISHED, PREEMPTED: EXIT_AGAIN}
"""The program's exit code for each state in which all results of a run are saved; others have EXIT_FAILED."""

ERROR_CHARS = 1000
"""The number of an error's last characters that are kept where there is no room for more."""


@dataclass(slots=True)
class Summary:
    """The result of a run; RUN/summary.json holds the same."""

    env_steps: int = 0
    steps_learnt_from: int = 0
    updates: int = 0
    episodes: int = 0
    return_mean_100: float | None = None
    wall_s: float = 0.0
    train_s: float = 0.0
    steps_per_s: float = 0.0
    exit: str = RUNNING
    """One of STATES."""
    attempt: int = 1
    world_size: int = 1
    env: str = ""
    run_dir: str = ""
    error: str | None = None
    """The error, where exit is failed."""
    preempted_by: str | None = None
    """The event that made the run save and leave, where exit is preempted."""
    stopped_by: str | None = None
    """Where exit is finished or target because of it: the recorder that asked the run to end, or the setting of
    evaluations, `eval.target-return` or `eval.patience`."""
    stalled: bool = False
    """Whether the run failed because ranks made no progress or did not answer: starting again may help."""


def read_summary(run_dir: Path) -> dict[str, Any]:
    """Reads RUN/summary.json; returns {} where there is none that can be read."""
    return read_json(run_dir / paths.SUMMARY)


def write_summary(run_dir: Path, summary: dict[str, Any]) -> None:
    """Replaces RUN/summary.json. Where the disk has no room for a second file, overwrites the present one, if need be
    with the end of a long error only.
    """
    path = run_dir / paths.SUMMARY
    try:
        write_json(path, summary)
    except OSError as refused:
        error = summary.get("error")
        for shorter in (summary, summary | {"error": error and error[-ERROR_CHARS:]}):
            with contextlib.suppress(OSError):
                overwrite(path, json_bytes(shorter))
                return
        raise refused
