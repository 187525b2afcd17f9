"""python -m dppo.trajectories: describes, checks, draws, indexes and exports a run's trajectory dump."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dppo.errors import EXIT_FAILED, EXIT_USAGE, UsageError
from dppo.files import plain
from dppo.rundir import paths
from dppo.settings.commands import Parser, until_its_reader_leaves
from dppo.trajectories.catalogue import SURPRISES, SegmentInfo
from dppo.trajectories.export import command as export
from dppo.trajectories.index import check_index, write_index
from dppo.trajectories.plots import plot
from dppo.trajectories.reader import TABLE, Trajectories, open_trajectories
from dppo.trajectories.unsealed import Unsealed, unsealed
from dppo.trajectories.validate import validate

QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}


def describe(dump: Trajectories | Unsealed, run_dir: Path) -> dict[str, Any]:
    """Collects what `info` prints about a dump: episodes (ended, complete, unfinished), steps, returns (quantiles over
    episodes that ended; {} if none did), ranks (segments, rows, steps, bytes, missing_rows of each), attempts, orphaned
    segments.
    """
    nothing = {"segments": 0, "rows": 0, "steps": 0, "bytes": 0, "missing_rows": 0}
    if isinstance(dump, Unsealed):
        segments, table = list[SegmentInfo](), dict.fromkeys(TABLE, np.zeros(0, bool))
        ranks = {rank: nothing | {"missing_rows": rows} for rank, rows in dump.missing_rows.items()}
    else:
        segments, table, ranks = dump.catalogue.segments, dump.table(), {}
    for s in segments:
        one = ranks.setdefault(s.rank, dict(nothing))
        one["segments"] += 1
        one["rows"] += s.num_rows
        one["bytes"] += s.num_bytes
        one["missing_rows"] = s.end_row - one["rows"]
    for rank, one in ranks.items():
        one["steps"] = int(table["length"][table["rank"] == rank].sum())
    ended = table["terminated"] | table["truncated"]
    returns = table["return"][ended]
    return {
        "episodes": {
            "ended": int(ended.sum()),
            "complete": int(table["complete"].sum()),
            "unfinished": int((~ended).sum()),
        },
        "steps": int(table["length"].sum()),
        "returns": {name: float(np.quantile(returns, q)) for name, q in QUANTILES.items()} if len(returns) else {},
        "ranks": ranks,
        "attempts": sorted({s.attempt for s in segments}),
        "orphaned": sum(1 for _ in (run_dir / paths.ORPHANED).glob("attempt_*/rank_*/seg_*.h5")),
    }


def _info(args: argparse.Namespace) -> int:
    if (empty := unsealed(args.run_dir)) is not None:
        out = describe(empty, args.run_dir)
        orphans = f"; {out['orphaned']} orphaned segment(s)" if out["orphaned"] else ""
        print(json.dumps(out) if args.json else f"{plain(empty.text)}{orphans}")
        return EXIT_FAILED if empty.is_lost else 0
    out = describe(open_trajectories(args.run_dir), args.run_dir)
    if args.json:
        print(json.dumps(out))
        return 0
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(markup=False, emoji=False)
    episodes, ranks = out["episodes"], out["ranks"]
    console.print(
        f"{plain(args.run_dir)}: {episodes['ended']:,} episodes that ended ({episodes['complete']:,} complete), "
        f"{episodes['unfinished']:,} unfinished; {out['steps']:,} steps",
        soft_wrap=True,
    )
    if out["returns"]:
        table = Table(
            *(Column(name, justify="right") for name in out["returns"]), title="returns", title_justify="left"
        )
        table.add_row(*(f"{value:.2f}" for value in out["returns"].values()))
        console.print(table)
    header = ("rank", "segments", "rows", "steps", "MB", "missing rows")
    table = Table(*(Column(name, justify="right") for name in header))
    for rank, one in ranks.items():
        counts = [f"{one[name]:,}" for name in ("segments", "rows", "steps", "missing_rows")]
        table.add_row(str(rank), *counts[:3], f"{one['bytes'] / 1e6:.1f}", counts[3])
    console.print(table)
    attempts = ", ".join(map(str, out["attempts"]))
    console.print(f"written in attempt(s) {attempts}; {out['orphaned']} orphaned segment(s)")
    return 0


def _validate(args: argparse.Namespace) -> int:
    violations = validate(args.run_dir)
    if args.json:
        print(json.dumps([asdict(v) for v in violations]))
        return EXIT_FAILED if violations else 0
    for violation in violations:
        print(plain(violation))
    if violations:
        print(f"{len(violations)} violation(s)")
    elif (empty := unsealed(args.run_dir)) is not None:
        print(plain(empty.text))
    else:
        print(f"{plain(args.run_dir)}: the trajectories are sound")
    return EXIT_FAILED if violations else 0


def _plot(args: argparse.Namespace) -> int:
    plot(open_trajectories(args.run_dir), args.output)
    print(plain(args.output))
    return 0


def _index(args: argparse.Namespace) -> int:
    if args.check:
        problems = check_index(args.run_dir)
        for problem in problems:
            _complain(problem)
        if not problems:
            print("every source of the index is there")
        return EXIT_FAILED if problems else 0
    path, missing = write_index(args.run_dir)
    for name in missing:
        _complain(f"{name}; the index goes on behind that (`validate` says more)")
    print(plain(path))
    return 0


def _export(args: argparse.Namespace) -> int:
    for line in export.run(args):
        print(plain(line))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m dppo.trajectories", description="Looks at trajectory dumps.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        added.set_defaults(run=run)
        return added

    def of_a_run(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = command(name, run, text)
        added.add_argument("run_dir", metavar="RUN", type=Path, help="directory of the run")
        return added

    info = of_a_run("info", _info, "what is there: episodes, steps, returns, segments and gaps of each rank")
    check = of_a_run("validate", _validate, "whether everything is as it should be; exit code 1 where it is not")
    for added in (info, check):
        added.add_argument("--json", action="store_true", help="JSON on standard output")
    picture = of_a_run("plot", _plot, "draw returns, lengths and policy lag over environment steps")
    picture.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=export.output_path,
        required=True,
        help="the picture: out.png, out.pdf, …",
    )
    index = of_a_run("index", _index, "write RUN/trajectories/index.h5, which shows all segments of a rank as one")
    index.add_argument("--check", action="store_true", help="check the one that is there: exit code 1 if it is stale")
    export.add_arguments(command("export", _export, "write a dump in the forms that other programs read"))
    return parser


@until_its_reader_leaves
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    try:
        args = _parser().parse_args(argv)
        code: int = args.run(args)
    except UsageError as error:
        _complain(error)
        return EXIT_USAGE
    except OSError as error:
        _complain(error)
        return EXIT_FAILED
    except SURPRISES as error:  # damaged files, or files that do not fit together
        _complain(
            f"this cannot be read: {type(error).__name__}: {error}; `python -m dppo.trajectories validate RUN` says"
            " what is damaged"
        )
        return EXIT_FAILED
    return code


def _complain(what: object) -> None:
    """Prints `what` as one line on standard error."""
    print(f"dppo: {plain(what)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
