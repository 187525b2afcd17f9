"""Describes a dump that has no segment yet: its run was killed before the first was sealed, or has just begun."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from dppo.rundir.checkpoint import checkpoint_folders, numbers_by_rank, read_manifest
from dppo.settings.toml import load_config
from dppo.trajectories.catalogue import SURPRISES
from dppo.trajectories.format import rank_folders, segment_files


class Unsealed(NamedTuple):
    """A dump that is enabled but has no segment."""

    text: str
    """A line that says all that is known."""
    missing_rows: dict[int, int]
    """rank -> number of rows that the newest checkpoint has seen and no segment holds."""
    is_lost: bool = False
    """Whether there were segments that somebody has removed."""


def unsealed(run_dir: Path) -> Unsealed | None:
    """Describes a run's empty dump; None where there is a segment, or where the settings do not enable trajectories."""
    if any(segment_files(folder) for folder in rank_folders(run_dir).values()):
        return None
    try:
        config = load_config(run_dir)
    except ValueError:
        return None
    if not config.trajectories.enabled:
        return None
    begun = f"{run_dir}: trajectories are enabled in its config.toml, but no segment has been sealed yet"
    for folder in checkpoint_folders(run_dir):
        try:
            manifest = read_manifest(folder)
            rows, missing = numbers_by_rank(manifest, "rows"), numbers_by_rank(manifest, "missing_rows")
            named = {rank: n for rank, n in numbers_by_rank(manifest, "next_segments").items() if n}
        except SURPRISES:
            continue
        if named:
            gone = ", ".join(f"{n} of rank {rank}" for rank, n in named.items())
            text = f"trajectories are enabled, but the segments that {folder.name} names are gone: {gone}"
            return Unsealed(f"{run_dir}: {text}", rows, is_lost=True)
        lost = ", ".join(f"rank {rank}: {n:,} rows of {config.num_envs} environments" for rank, n in missing.items())
        seen, steps = sum(rows.values()) * config.num_envs, sum(missing.values()) * config.num_envs
        what = f"its newest checkpoint, {folder.name}, has seen {seen:,} steps, {steps:,} of them are missing"
        return Unsealed(f"{begun}; {what}{f' ({lost})' if lost else ''}", missing)
    return Unsealed(f"{begun}, and it has no checkpoint that can be read", {})
