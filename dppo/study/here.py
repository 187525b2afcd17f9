"""Runs a sweep or a search to its end: all of it on this machine, or the trials of one task of a job array."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dppo.cluster.slurm import this_allocation
from dppo.errors import EXIT_AGAIN, EXIT_FAILED, EXIT_FINISHED, UsageError
from dppo.study.board import Board
from dppo.study.journal import load_optuna
from dppo.study.local import Launch, Runs, Source
from dppo.study.lock import lock
from dppo.study.search import Search
from dppo.study.spec import Sweep
from dppo.study.tasks import Tasks
from dppo.study.trials import Trials, enlist

LOCK = "sweep.lock"
"""The file that `--run` locks for itself, and `--task` together with others."""
RANKS = 4
"""The ranks of each run, where neither the command nor the file says it: one server, three workers."""
HERE = "here"
"""The name of `--run` among a study's workers."""


def run_here(
    sweep: Sweep, search: Search | None, sweep_dir: Path, slots: int, ranks: int | None, enter: Callable[[], None]
) -> int:
    """Runs all that has not ended, `slots` runs at a time. Returns the exit code.

    Raises:
      UsageError: another process is at work in the folder, or there is no mpirun.
    """
    launch = _by_mpirun(ranks or sweep.ranks or RANKS)
    with _locks(sweep_dir, search, enter, None) as held:
        source = Tasks(sweep, sweep_dir) if search is None else Trials(sweep_dir, search, HERE)
        return _to_the_end(source, launch, slots, held)


def run_as_task(
    sweep: Sweep, search: Search, sweep_dir: Path, task: int, ranks: int | None, enter: Callable[[], None],
    *, is_asked: bool = False,
) -> int:  # fmt: skip
    """Runs trials, one at a time, until the study has its number, beside other tasks. In a job of Slurm's each is run
    by dppo.job, with the ranks of the job. Returns the exit code.

    Args:
      is_asked: whether the job was asked to save before this process could hear it.

    Raises:
      UsageError: another process is this task, `--run` is at work in the folder, or there is no mpirun.
    """
    is_job = this_allocation().job_id is not None
    if is_job and shutil.which("mpirun"):
        given = ["-n", str(ranks)] if ranks else []
        launch = Launch([sys.executable, "-m", "dppo.job", "mpirun", "--with-ft", "ulfm", *given], resumes=False)
    else:
        launch = _by_mpirun(ranks or sweep.ranks or RANKS)
    worker = f"task_{task:03}"
    with _locks(sweep_dir, search, enter, worker) as held:
        return _to_the_end(Trials(sweep_dir, search, worker), launch, 1, held, is_job=is_job, is_asked=is_asked)


def _by_mpirun(ranks: int) -> Launch:
    if ranks == 1:
        return Launch([])
    if (mpirun := shutil.which("mpirun")) is None:
        raise UsageError("there is no mpirun on the PATH: activate the environment that has it, or give --ranks 1")
    return Launch([mpirun, "-n", str(ranks)])


@contextmanager
def _locks(
    sweep_dir: Path, search: Search | None, enter: Callable[[], None], worker: str | None
) -> Iterator[list[int]]:
    """Yields the descriptors that keep others out of the folder. Raises UsageError where others are in it.

    Args:
      worker: the name of a worker beside others; None: nobody else may be at work in the folder.
    """
    if search is not None:
        load_optuna()
    with ExitStack() as closing:
        try:
            sweep_dir.mkdir(parents=True, exist_ok=True)
            held = [lock(sweep_dir / LOCK, shared=worker is not None)]
        except OSError as error:
            raise UsageError(f"{sweep_dir} cannot be written: {error.strerror}; choose another SWEEP_DIR") from error
        closing.callback(_close, held)
        if held[0] is None:
            raise UsageError(
                f"{sweep_dir}: another dppo.sweep is at work in it, or a run of one that has been killed still saves:"
                " wait for its end, or stop it by Ctrl-C"
            )
        enter()
        if search is not None:
            held.append(enlist(sweep_dir, worker or HERE))
        if None in held:
            raise UsageError(f"{sweep_dir}: another process is {worker} of this study: give each its own --task")
        yield [descriptor for descriptor in held if descriptor is not None]


def _close(held: list[int | None]) -> None:
    for descriptor in held:
        if descriptor is not None:
            os.close(descriptor)


def _to_the_end(
    source: Source, launch: Launch, slots: int, held: list[int], *, is_job: bool = False, is_asked: bool = False
) -> int:
    with Board(source.counts) as board:
        runs = Runs(source, launch, slots, board, held)
        if is_asked:
            runs.ask_to_stop()
        reason = runs.to_the_end()
        board.say(source.counts())
        by_reason: dict[str, list[str]] = {}
        for name, why in source.failed.items():
            by_reason.setdefault(why, []).append(name)
        for why, names in by_reason.items():
            board.say(f"{', '.join(names)}: {why}")
        left = source.left
        if reason and left:
            board.say(f"stopped by {reason}: {left} are left, and the same command goes on with them")
    if reason and left:
        if is_job and reason == "SIGUSR1" and not runs.is_job_over:  # it came between two runs
            return subprocess.call([sys.executable, "-m", "dppo.requeue"])
        return EXIT_AGAIN
    return EXIT_FAILED if source.failed else EXIT_FINISHED
