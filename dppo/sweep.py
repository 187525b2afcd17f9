"""python -m dppo.sweep: lists the tasks of a sweep, prints the flags of dppo.run for one of them, or runs all."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dppo.console import escaped, markdown_table, plain, say
from dppo.errors import EXIT_USAGE, UsageError
from dppo.settings.commands import Parser, integer, require, until_its_reader_leaves, within
from dppo.settings.flags import as_flags
from dppo.study.kept import keep_copy
from dppo.study.search import Search, check_settings, read_search
from dppo.study.spec import (
    MOST_RANKS,
    MOST_TASKS,
    SEARCH_DEFAULTS,
    Sweep,
    as_text,
    config_of,
    numbers,
    read_sweep,
    submit_line,
    task_folder,
)


def show(path: Path, sweep: Sweep, sweep_dir: Path | None) -> int:
    """Prints the tasks, what is wrong with some, and the line that runs the others. Returns the exit code."""
    if sweep.fixed:
        print("fixed:", plain(", ".join(f"{key}={as_text(value)}" for key, value in sweep.fixed.items())), end="\n\n")
    keys = list(sweep.varied[0])
    rows = [[str(task), *(escaped(as_text(varied[key])) for key in keys)] for task, varied in enumerate(sweep.varied)]
    print("\n".join(markdown_table(["task", *map(escaped, keys)], rows)))
    wrong: dict[str, list[int]] = {}
    for task in range(len(sweep.varied)):
        try:
            config_of(sweep.settings(task))
        except UsageError as error:
            wrong.setdefault(str(error), []).append(task)
    bad = {task for tasks in wrong.values() for task in tasks}
    good = [task for task in range(len(sweep.varied)) if task not in bad]
    print(f"\n{len(sweep.varied)} task(s)" + (f", {len(bad)} of them wrong" if bad else ""))
    if good:
        print(submit_line(good, path, sweep_dir))
    sys.stdout.flush()
    for message, tasks in wrong.items():
        say(f"task {numbers(tasks)}: {plain(message)}")
    return EXIT_USAGE if wrong else 0


def show_search(path: Path, search: Search, sweep_dir: Path | None) -> int:
    """Prints what a search draws, and the lines that run it. Returns the exit code."""
    if search.fixed:
        fixed = ", ".join(f"{key}={as_text(value)}" for key, value in search.fixed.items())
        print("fixed:", plain(fixed), end="\n\n")
    rows = [[escaped(name), escaped(dimension.in_words())] for name, dimension in search.space.items()]
    print("\n".join(markdown_table(["setting", "drawn from"], rows, left=2)))
    each = f", each with the seeds {', '.join(map(str, search.seeds))}" if len(search.seeds) > 1 else ""
    print(
        f"\n{search.trials} trial(s){each}; sampler {search.sampler}, pruner {search.pruner}, best by {search.optimise}"
    )
    folder = shlex.quote(str(sweep_dir or SEARCH_DEFAULTS["SWEEP_DIR"]))
    print(f"python -m dppo.sweep {shlex.quote(str(path))} {folder} --run")
    print(submit_line(range(min(4, search.trials)), path, sweep_dir, SEARCH_DEFAULTS))
    return 0


def prepare(path: Path, sweep: Sweep, sweep_dir: Path, task: int) -> list[str]:
    """Keeps a copy of the file in `sweep_dir`. Returns the flags of the task. Raises UsageError where the task's
    settings are wrong, or the folder belongs to another sweep.
    """
    settings = sweep.settings(task)
    try:
        config_of(settings)
    except UsageError as error:
        raise UsageError(f"{path}: task {task}: {error}") from error
    keep_copy(path, sweep, sweep_dir)
    return [*as_flags(settings), "--run-dir", str(task_folder(sweep_dir, task))]


def run(args: argparse.Namespace, sweep: Sweep) -> int:
    """Runs the sweep or the search on this machine, or as a task of an array. Returns the exit code."""
    from dppo.study.here import run_as_task, run_here

    path = args.file
    search = None if sweep.search is None else _search_in(path, sweep)
    for number in range(len(sweep.varied)):
        try:
            config_of(sweep.settings(number))
        except UsageError as error:
            raise UsageError(f"{path}: task {number}: {error}") from error

    def enter() -> None:
        keep_copy(path, sweep, args.sweep_dir)

    if args.as_task is None:
        return run_here(sweep, search, args.sweep_dir, args.jobs or 1, args.ranks, enter)
    if search is None:
        raise UsageError("--task is for a file with a [search]; give TASK without it, and it prints that task's flags")
    return run_as_task(sweep, search, args.sweep_dir, args.as_task, args.ranks, enter, is_asked=args.asked)


def _search_in(path: Path, sweep: Sweep) -> Search:
    search = read_search(sweep, path)
    check_settings(search, path)
    return search


def _parser() -> Parser:
    parser = Parser(
        prog="python -m dppo.sweep",
        description="Lists the tasks of a sweep, and the line that submits them; with TASK prints the flags of dppo.run"
        " for that task, one flag or value per line; with --run runs all on this machine. A file with a [search] has"
        " trials in place of tasks.",
    )
    parser.add_argument("file", metavar="SWEEP.toml", type=Path, help="what is varied")
    parser.add_argument("sweep_dir", metavar="SWEEP_DIR", type=Path, nargs="?", help="where the run directories go")
    parser.add_argument("task", metavar="TASK", type=integer, nargs="?", help="number of a task, from 0")
    parser.add_argument("--run", action="store_true", help="run or resume all that has not ended; Ctrl-C stops")
    parser.add_argument("--jobs", type=integer, help="with --run: so many runs at a time (default: 1)")
    parser.add_argument("--ranks", type=integer, help="ranks of each run (default: as the file says, or 4)")
    parser.add_argument(
        "--task", dest="as_task", type=integer, metavar="I", help="run trials of a [search] as task I of a job array"
    )
    parser.add_argument("--asked", action="store_true", help="with --task: the job was asked to save before this began")
    return parser


def _check(args: argparse.Namespace) -> None:
    """Raises UsageError where arguments do not go together."""
    runs = args.run or args.as_task is not None
    if runs and (args.sweep_dir is None or args.task is not None or (args.run and args.as_task is not None)):
        raise UsageError(
            "--run and --task I need SWEEP.toml and SWEEP_DIR, and go neither with each other nor with TASK"
        )
    if (args.jobs is not None and not args.run) or (args.ranks is not None and not runs):
        raise UsageError("--jobs needs --run, and --ranks needs --run or --task")
    for flag, value, bounds in (
        ("--jobs", args.jobs, within(1, MOST_RANKS)),
        ("--ranks", args.ranks, within(1, MOST_RANKS)),
        ("--task", args.as_task, within(0, MOST_TASKS)),
    ):
        if value is not None:
            require(flag, value, bounds)


@until_its_reader_leaves
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    try:
        args = _parser().parse_args(argv)
        _check(args)
        sweep = read_sweep(args.file)
        if args.run or args.as_task is not None:
            return run(args, sweep)
        if sweep.search is not None and args.task is None:
            return show_search(args.file, _search_in(args.file, sweep), args.sweep_dir)
        if args.task is None:
            return show(args.file, sweep, args.sweep_dir)
        flags = prepare(args.file, sweep, args.sweep_dir, args.task)
    except UsageError as error:
        say(plain(error))
        return EXIT_USAGE
    print("\n".join(flags))
    return 0


if __name__ == "__main__":
    sys.exit(main())
