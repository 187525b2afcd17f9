"""Names of the files and folders of a run directory, each once, as seen from there: `run_dir / paths.LATEST`."""

from __future__ import annotations

from dppo.settings.toml import CONFIG_FILE

CONFIG = CONFIG_FILE
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
VERSIONS = "versions.json"
SPACES = "spaces.json"
STARTS = "starts.jsonl"
"""Of python -m dppo.verdict: a line for each start of a batch job."""

CHECKPOINTS = "checkpoints"
LATEST = f"{CHECKPOINTS}/latest"
"""Holds the name of the newest checkpoint's folder."""
MANIFEST = "manifest.json"
"""In each checkpoint's folder."""

TRAJECTORIES = "trajectories"
ORPHANED = f"{TRAJECTORIES}/orphaned"
"""Segments that no checkpoint names."""
INDEX = f"{TRAJECTORIES}/index.h5"

STALLS = "stalls"
"""Stacks of ranks that made no progress."""
ENDED_BY_STALL = f"{STALLS}/ended.txt"
"""Written by a rank that ended itself because it made no progress."""
TENSORBOARD = "tensorboard"


def checkpoint_name(env_steps: int) -> str:
    """Name of a checkpoint's folder; the order of names is that of steps."""
    return f"step_{env_steps:09d}"


def rank_name(rank: int) -> str:
    """Name of what belongs to one rank: its file in a checkpoint, its folder of trajectories."""
    return f"rank_{rank:05d}"
