"""python -m dppo.trajectories export: writes a dump in the forms that other programs read."""

from __future__ import annotations

import argparse
from pathlib import Path

from dppo.errors import UsageError
from dppo.settings.commands import Range, integer, require, shown, within
from dppo.trajectories.export.as_d4rl import to_d4rl
from dppo.trajectories.export.as_minari import to_minari
from dppo.trajectories.export.as_tables import to_csv, to_parquet
from dppo.trajectories.export.selection import Exported, refuse_inside_dump
from dppo.trajectories.reader import open_trajectories

__all__ = ["Exported", "add_arguments", "output_path", "run", "to_csv", "to_d4rl", "to_minari", "to_parquet"]

_FILES = {"d4rl": (to_d4rl, ".hdf5"), "parquet": (to_parquet, ".parquet"), "csv": (to_csv, ".csv")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="the run's directory")
    parser.add_argument("--to", required=True, choices=["minari", *_FILES], help="the form")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=output_path,
        help="the file (default: RUN/trajectories.hdf5, .parquet, .csv); for Minari the folder of all its datasets"
        " (default: MINARI_DATASETS_PATH or ~/.minari/datasets). Nothing that exists is overwritten",
    )
    parser.add_argument("--dataset-id", metavar="ID", help="for Minari: namespace/name-vN (default: dppo/ENV-v0)")
    parser.add_argument("--author", metavar="NAME", help="for Minari: who made the dataset")
    parser.add_argument("--complete-only", action="store_true", help="leave out episodes that are not there as a whole")
    parser.add_argument("--last", metavar="N", type=integer, help="the last N episodes only")
    parser.add_argument("--min-return", metavar="R", type=float, help="episodes with at least this return only")
    parser.add_argument("--ranks", metavar="1,2", type=_ranks, help="what these ranks have written only")


def run(args: argparse.Namespace) -> list[str]:
    """Runs the export. Returns the lines to print. Raises UsageError for wrong use, with the repair."""
    for name in ("dataset_id", "author"):
        if args.to != "minari" and getattr(args, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} is for --to minari: leave it out with --to {args.to}")
    if args.last is not None:
        require("--last", args.last, Range(1, 1e12, "must be at least 1; leave it out for all episodes"))
    if args.min_return is not None:
        require("--min-return", args.min_return, within(-1e300, 1e300))
    if args.output is not None:
        refuse_inside_dump(args.output)
    trajectories = open_trajectories(
        args.run_dir,
        complete_only=args.complete_only,
        min_return=args.min_return,
        last=args.last,
        ranks=args.ranks,
    )
    if args.to == "minari":
        done = to_minari(trajectories, args.dataset_id, args.output, args.author)
    else:
        write, suffix = _FILES[args.to]
        done = write(trajectories, args.output or args.run_dir / f"trajectories{suffix}")
    lines = [f"{done.path}: {done.episodes} episodes, {done.steps} steps"]
    if done.dropped_steps:
        lines.append(
            f"{done.dropped_steps} last steps of unfinished episodes are not in it, because their next observation is"
            " not known (--complete-only leaves such episodes out)"
        )
    return lines


def output_path(text: str) -> Path:
    """Converts the value of -o to a path."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name; name what is to be written, or leave -o out")
    return Path(text)


def _ranks(text: str) -> list[int]:
    try:
        return [integer(rank) for rank in text.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{shown(text)} must be ranks, such as 1,2") from None
