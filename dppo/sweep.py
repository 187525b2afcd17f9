"""python -m dppo.sweep: prints the tasks of a sweep as a table, or the flags of dppo.run for one of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dppo.console import escaped, markdown_table, say
from dppo.errors import EXIT_USAGE, UsageError
from dppo.files import TOML_BYTES, plain, read_regular, replacing
from dppo.rundir import paths
from dppo.settings.commands import Parser, integer
from dppo.settings.flags import as_flags
from dppo.study.spec import Sweep, as_text, config_of, numbers, read_sweep, submit_line, task_folder


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


def prepare(path: Path, sweep: Sweep, sweep_dir: Path, task: int) -> list[str]:
    """Keeps a copy of the file in `sweep_dir`. Returns the flags of the task. Raises UsageError where the task's
    settings are wrong, or the folder belongs to another sweep.
    """
    settings = sweep.settings(task)
    try:
        config_of(settings)
    except UsageError as error:
        raise UsageError(f"{path}: task {task}: {error}") from error
    try:
        _keep_copy(path, sweep, sweep_dir)
    except OSError as error:
        raise UsageError(f"{sweep_dir} cannot be written: {error.strerror}; choose another SWEEP_DIR") from error
    return [*as_flags(settings), "--run-dir", str(task_folder(sweep_dir, task))]


def _keep_copy(path: Path, sweep: Sweep, sweep_dir: Path) -> None:
    copy, content = sweep_dir / "sweep.toml", read_regular(path, max_bytes=TOML_BYTES)
    if copy.exists():
        if read_regular(copy, sweep_dir, TOML_BYTES) == content:
            return
        _refuse_another(path, sweep, copy)
    sweep_dir.mkdir(parents=True, exist_ok=True)
    with replacing(copy) as part:  # tasks that start together all write it
        part.write_bytes(content)


def _refuse_another(path: Path, sweep: Sweep, copy: Path) -> None:
    """Raises UsageError where the new file changes a task that has been run; repaired and added tasks are allowed."""
    before = read_sweep(copy)
    for task in range(len(before.varied)):
        folder = task_folder(copy.parent, task)
        if not (folder / paths.CONFIG).exists():
            continue
        now = sweep.settings(task) if task < len(sweep.varied) else {}
        then = before.settings(task)
        if now != then:
            changed = sorted(key for key in now.keys() | then if now.get(key) != then.get(key))
            what = ", ".join(f"{k} was {then.get(k, 'not set')}, is {now.get(k, 'not set')}" for k in changed)
            raise UsageError(
                f"{folder} is a run of another sweep.toml ({copy}): {what if now else 'it has no such task now'};"
                f" choose another SWEEP_DIR for {path}, or undo what changes tasks that have been run"
            )


def _parser() -> Parser:
    parser = Parser(
        prog="python -m dppo.sweep",
        description="Lists the tasks of a sweep, and the line that submits them; with TASK prints the flags of dppo.run"
        " for that task, one flag or value per line.",
    )
    parser.add_argument("file", metavar="SWEEP.toml", type=Path, help="what is varied")
    parser.add_argument("sweep_dir", metavar="SWEEP_DIR", type=Path, nargs="?", help="where the run directories go")
    parser.add_argument("task", metavar="TASK", type=integer, nargs="?", help="number of a task, from 0")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    try:
        args = _parser().parse_args(argv)
        sweep = read_sweep(args.file)
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
