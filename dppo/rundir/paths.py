"""Names of the files and folders of a run directory, each once, relative to it: `run_dir / paths.LATEST`."""

from __future__ import annotations

from dppo.settings.toml import CONFIG_FILE

CONFIG = CONFIG_FILE
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
EVALUATIONS = "evaluations.jsonl"
VERSIONS = "versions.json"
SPACES = "spaces.json"
STARTS = "starts.jsonl"
"""The file of python -m dppo.verdict: a line for each start of a batch job."""

OUTPUT = "output.log"
"""The file of what a run prints that `dppo.sweep --run` has started."""

CHECKPOINTS = "checkpoints"
LATEST = f"{CHECKPOINTS}/latest"
"""The file that holds the name of the newest checkpoint's folder."""
BEST = f"{CHECKPOINTS}/best"
"""The file that holds the name of the best checkpoint's folder, below that of checkpoints."""
EVALUATED = f"{CHECKPOINTS}/evaluated"
"""The folder of the checkpoints that wait for their evaluation, and of the best one."""
STATES_IN_CHECKPOINT = "states"
STATES = f"{CHECKPOINTS}/{STATES_IN_CHECKPOINT}"
"""The folders of states that environments have saved themselves: in a checkpoint's folder, and before."""
MANIFEST = "manifest.json"
"""The file in each checkpoint's folder that lists its contents."""

TRAJECTORIES = "trajectories"
ORPHANED = f"{TRAJECTORIES}/orphaned"
"""The folder of segments that no checkpoint names."""
INDEX = f"{TRAJECTORIES}/index.h5"

ENVS = "envs"
"""The folder of the environments' own folders (envs/given.py)."""

STALLS = "stalls"
"""The folder of stacks of ranks that made no progress."""
ENDED_BY_STALL = f"{STALLS}/ended.txt"
"""The file of a rank that ended itself because it made no progress."""
TENSORBOARD = "tensorboard"
REPORT = "report.html"
"""The page of python -m dppo.report, also of a folder of runs."""
TRACE, TRACE_PARTS = "trace.json", "trace"
"""The timeline of all ranks, and the folder of each rank's own part of it."""


def checkpoint_name(env_steps: int) -> str:
    """Returns the name of a checkpoint's folder; the order of names is the order of steps."""
    return f"step_{env_steps:09d}"


def rank_name(rank: int) -> str:
    """Returns the name of what belongs to one rank: its file in a checkpoint, its folder of trajectories."""
    return f"rank_{rank:05d}"
