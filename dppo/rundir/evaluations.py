"""Evaluations in a run directory: their results, the checkpoints that they are of, and which of these is the best.

    RUN/evaluations.jsonl
    RUN/checkpoints/evaluated/step_000050176/{manifest.json, state.safetensors}
    RUN/checkpoints/best

A checkpoint that waits for its evaluation holds the learner's state only: it is for playing, not for a resume. It is
removed once it is evaluated, except the best one.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from dppo.errors import OldFormError, UsageError
from dppo.files import parse_json, read_lines, read_regular, replace_atomically
from dppo.rundir import paths
from dppo.rundir.checkpoint import (
    Checkpoint,
    checkpoint_folders,
    newest_valid,
    number_of,
    read_checkpoint,
    remove_folder,
    write_folder,
)

BEST, LATEST = "best", "latest"
"""The names of checkpoints in commands; the others are numbers of environment steps."""
_BEST = re.compile(r"evaluated/step_\d{9,15}")


def read_evaluations(run_dir: Path) -> list[dict[str, Any]]:
    """Reads the lines of evaluations.jsonl, in the order of their steps. Leaves out a line that was cut or damaged."""
    lines: dict[int, dict[str, Any]] = {}
    with contextlib.suppress(OSError):
        for text in read_lines(run_dir / paths.EVALUATIONS, run_dir, skip_long=True):
            try:
                line = parse_json(text)
                steps, iteration = line["env_steps"], line["iteration"]
            except (ValueError, KeyError, TypeError):
                continue
            if type(steps) is int and type(iteration) is int and text.endswith(b"\n"):
                lines[steps] = line
    return [lines[steps] for steps in sorted(lines)]


def return_of(line: Mapping[str, Any]) -> float | None:
    """Returns the mean return of a line; None where no episode ended, or the line has no finite number."""
    value = line.get("return_mean")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None  # type: ignore[arg-type]


def best_of(lines: Sequence[Mapping[str, Any]]) -> int | None:
    """Returns the steps of the best evaluation, of several equal ones those of the newest: where the return has an
    upper end that all reach, more training is the better guess. None where no episode ended.
    """
    returns = [(value, line["env_steps"]) for line in lines if (value := return_of(line)) is not None]
    return max(returns)[1] if returns else None


# -- the evaluated checkpoints --------------------


def write_evaluated(run_dir: Path, state: dict[str, Any]) -> Path:
    """Writes a checkpoint for an evaluation, whole or not at all. Returns its folder."""
    numbers = state["numbers"]
    checkpoint = Checkpoint(numbers["env_steps"], numbers["iteration"], state, {}, {})
    return write_folder(run_dir / paths.EVALUATED, checkpoint, run_dir)


def evaluated(run_dir: Path) -> dict[int, Path]:
    """Returns {steps: folder} of the checkpoints that wait for their evaluation, or were kept as the best."""
    return {number_of(folder): folder for folder in reversed(checkpoint_folders(run_dir, paths.EVALUATED))}


def waiting(run_dir: Path, env_steps: int) -> dict[int, Path]:
    """Returns {steps: folder} of the checkpoints up to `env_steps` whose evaluation is missing."""
    done = {line["env_steps"] for line in read_evaluations(run_dir)}
    return {steps: folder for steps, folder in evaluated(run_dir).items() if steps <= env_steps and steps not in done}


def settle_best(run_dir: Path, lines: Sequence[Mapping[str, Any]], pending: Collection[int]) -> None:
    """Makes RUN/checkpoints/best name the best of `lines`, and removes the evaluated checkpoints that nobody needs.

    A resume goes back to an older checkpoint and undoes the evaluations since. So the best one as of each checkpoint
    that is still there is kept.

    Args:
      pending: steps of the checkpoints that wait for their evaluation.

    Raises:
      OSError: the disk refuses it.
    """
    there, path = evaluated(run_dir), run_dir / paths.BEST
    best = best_of(lines)
    if best not in there:
        path.unlink(missing_ok=True)
    else:
        name = f"{there[best].relative_to(run_dir / paths.CHECKPOINTS)}\n".encode()
        if not path.is_file() or path.read_bytes() != name:
            replace_atomically(path, name)
    ends = [number_of(folder) for folder in checkpoint_folders(run_dir)]
    kept = {best_of([line for line in lines if line["env_steps"] <= end]) for end in ends}
    for steps, folder in there.items():
        if steps not in {*kept, best, *pending}:
            remove_folder(folder)


# -- a checkpoint by its name --------------------


def find_checkpoint(
    run_dir: Path, which: str | int, check: Callable[[Checkpoint], None]
) -> tuple[Checkpoint, list[str]]:
    """Returns a checkpoint of a run, and a line for each newer one that was skipped.

    Args:
      which: `latest` (the newest valid one), `best` (that of the best evaluation while training), or a number of
        environment steps.
      check: raises ValueError for a checkpoint that the caller cannot use.

    Raises:
      UsageError: there is no such checkpoint, or it cannot be used.
    """
    if which == LATEST:
        newest, skipped = newest_valid(run_dir, check)
        if newest is None:
            raise UsageError(f"{run_dir} has no valid checkpoint: {'; '.join(skipped) or 'there is none'}")
        return newest, skipped
    folder = _best(run_dir) if which == BEST else _of_steps(run_dir, which)
    try:
        checkpoint = read_checkpoint(folder)
        check(checkpoint)
    except OldFormError as error:
        raise UsageError(f"{folder} is of an old form: {error}") from error
    except ValueError as error:
        raise UsageError(f"{folder} is damaged: {error}; {_what_there_is(run_dir)}") from error
    return checkpoint, []


def _best(run_dir: Path) -> Path:
    try:
        name = read_regular(run_dir / paths.BEST, run_dir).decode(errors="replace").strip()
    except FileNotFoundError:
        why = "has no best checkpoint, which --eval.every keeps while training"
        raise UsageError(f"{run_dir} {why}; {_what_there_is(run_dir)}") from None
    except OSError as error:
        raise UsageError(str(error)) from error
    folder = run_dir / paths.CHECKPOINTS / name
    if not _BEST.fullmatch(name) or not folder.is_dir():
        raise UsageError(f"{run_dir / paths.BEST} names {name[:60]!r}, which is not there; {_what_there_is(run_dir)}")
    return folder


def _of_steps(run_dir: Path, which: str | int) -> Path:
    text = str(which).removeprefix("step_")
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise UsageError(f"checkpoint {which!r:.60}: name best, latest or a number of steps; {_what_there_is(run_dir)}")
    for folder in (*evaluated(run_dir).values(), *checkpoint_folders(run_dir)):
        if number_of(folder) == int(text):
            return folder
    raise UsageError(f"{run_dir} has no checkpoint of {int(text):,} steps; {_what_there_is(run_dir)}")


def _what_there_is(run_dir: Path) -> str:
    steps = sorted({*map(number_of, checkpoint_folders(run_dir)), *evaluated(run_dir)})
    return f"there are those of {', '.join(map(str, steps))} steps" if steps else "there is none"
