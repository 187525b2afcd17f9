"""The tasks of a sweep: the settings of each run of a sweep.toml, the same on every machine and each time."""

from __future__ import annotations

import itertools
import math
import os
import random
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from dppo.config import Config
from dppo.errors import UsageError
from dppo.settings.commands import shown
from dppo.settings.flags import from_values
from dppo.settings.pairs import FLAG as PAIRS
from dppo.settings.pairs import as_toml
from dppo.settings.toml import PER_START, read_toml, shortened
from dppo.settings.values import as_name, nearest

COPY = "sweep.toml"
"""The copy of the file in the sweep's folder."""
TABLES = ("fixed", "grid", "random", "search")
LAWS = ("uniform", "log", "integer", "choice")
DEFAULTS = {"script": "jobs/sweep.sbatch", "SWEEP": "jobs/sweep.toml", "SWEEP_DIR": "runs/sweep"}
SEARCH_DEFAULTS = {"script": "jobs/search.sbatch", "SWEEP": "jobs/search.toml", "SWEEP_DIR": "runs/search"}
"""The scripts of an array, and their defaults."""
MOST_TASKS = 10_000
"""The most tasks of a sweep; Slurm's arrays end earlier, at 1001 tasks by default."""
MOST_RANKS = 10_000
"""The most ranks of a run on one machine."""
DIGITS = 6
"""Digits of a drawn number: it stays readable, and shows no rounding of another machine's logarithm."""


class Sweep(NamedTuple):
    """The settings of a sweep by flag's name ("ppo.clip"), as the file has them."""

    fixed: dict[str, Any]
    """Settings that are the same in every task."""
    varied: list[dict[str, Any]]
    """The settings that vary, one dict for each task; [] where a search draws them."""
    ranks: int | None = None
    """The ranks of each run on one machine, as the file says."""
    search: dict[str, Any] | None = None
    """The table [search], as the file has it (study/search.py reads it); None where there is none."""

    def settings(self, task: int) -> dict[str, Any]:
        """Returns all settings that are given for a task. Raises UsageError where there is no such task."""
        if not 0 <= task < len(self.varied):
            if self.search is not None:
                raise UsageError("a [search] has no tasks of its own: give --task, which runs what the study asks for")
            raise UsageError(f"there is no task {task}: the sweep has {len(self.varied)}, 0 to {len(self.varied) - 1}")
        return self.fixed | self.varied[task]


def read_sweep(path: Path, root: Path | None = None) -> Sweep:
    """Reads the sweep that a file describes. Only `config_of` checks whether a setting exists and may have its value.

    Task number = sample · (size of the grid) + place in the grid, whose last key varies fastest. What a sample draws
    for a key depends on `random.seed`, the sample and the key alone. Raises UsageError where the file cannot be read,
    or is no sweep.
    """
    values = read_toml(path, root)
    try:
        ranks = _ranks(values.pop("ranks", None))
        for name, table in values.items():
            if name not in TABLES:
                raise UsageError(
                    f"{as_name(name)}: a sweep has the tables fixed, grid, random and search only"
                    f"{nearest(name, TABLES)}"
                )
            if not isinstance(table, dict):
                raise UsageError(f"{name}={shown(table)} must be a table, [{name}]")
        fixed, grid = flatten(values.get("fixed", {}), "fixed."), flatten(values.get("grid", {}), "grid.")
        samples, seed, laws = _random(values.get("random", {}))
        _refuse_doubles(fixed, grid, laws)
        if "search" in values:
            if drawn := grid.keys() | laws.keys():
                raise UsageError(
                    f"{min(drawn)} is in [grid] or [random], and there is a [search], which draws all that varies:"
                    " move it to [search.space] or, as for seed, to search.seeds"
                )
            return Sweep(fixed, [], ranks, values["search"])
        for key, listed in grid.items():
            _check_list(f"grid.{key}", listed, once=True)
        for key, law in laws.items():
            _check_law(f"random.{key}", law)
        tasks = samples * math.prod(map(len, grid.values()))
        if tasks > MOST_TASKS:  # before they are made
            sizes = [f"{samples} samples"] * (samples > 1) + [f"{len(listed)} values" for listed in grid.values()]
            parts = shortened(" x ".join(sizes))
            raise UsageError(f"{shown(tasks)} tasks ({parts}), and a sweep has at most {MOST_TASKS}")
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except RecursionError as error:
        raise UsageError(f"{path}: its tables lie in one another too deeply") from error
    draws = [{key: _draw(law, f"{seed}/{sample}/{key}") for key, law in laws.items()} for sample in range(samples)]
    cells = [dict(zip(grid, cell, strict=True)) for cell in itertools.product(*grid.values())]
    return Sweep(fixed, [drawn | cell for drawn in draws for cell in cells], ranks)


def config_of(settings: dict[str, Any]) -> Config:
    """Returns the configuration of a task with these settings, its preset included. Raises UsageError where a setting
    does not exist, or cannot have its value, alone or with the others.
    """
    for key, value in settings.items():
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(text, str) and "\n" in text for text in texts):
            raise UsageError(f"{key}={shown(value)} holds a line break")
    return from_values(_nested(settings))


def _never(table: dict[str, Any]) -> bool:
    return False


def flatten(
    values: dict[str, Any], where: str = "", *, is_value: Callable[[dict[str, Any]], bool] = _never
) -> dict[str, Any]:
    """Converts {"ppo": {"target_kl": 1}} and {"ppo.target_kl": 1} to {"ppo.target-kl": 1}. An argument of the
    environment, {"env-kwargs": {"its_name": {…}}}, is one value, whatever it is, under the name that it has in Python.

    Args:
      where: the text before names in messages.
      is_value: says whether a table is a value, not a section.
    """
    out: dict[str, Any] = {}
    for key, value in values.items():
        name = _dashed(key)
        inner = {name: value}
        if name == PAIRS and isinstance(value, dict) and not is_value(value):
            inner = {_dashed(f"{name}.{k}"): v for k, v in value.items()}
        elif isinstance(value, dict) and not is_value(value):
            inner = {f"{name}.{k}": v for k, v in flatten(value, f"{where}{name}.", is_value=is_value).items()}
        if twice := out.keys() & inner:
            raise UsageError(f"{where}{min(twice)} is there twice")
        out |= inner
    return out


def _dashed(key: str) -> str:
    section, dot, argument = key.partition(".")
    if dot and section.replace("_", "-") == PAIRS:
        return f"{PAIRS}.{argument.replace('-', '_')}"
    return key.replace("_", "-")


def as_text(value: Any) -> str:
    """Returns a setting's value as a person writes it on the command line."""
    if isinstance(value, dict):
        return as_toml(value)
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def numbers(tasks: Iterable[int]) -> str:
    """Writes the numbers of tasks as sbatch --array takes them: 0-3,7."""
    parts: list[list[int]] = []
    for task in sorted(tasks):
        if parts and parts[-1][-1] == task - 1:
            parts[-1] = [parts[-1][0], task]
        else:
            parts.append([task])
    return ",".join("-".join(map(str, part)) for part in parts)


def submit_line(
    tasks: Iterable[int], file: Path, sweep_dir: Path | None = None, defaults: dict[str, str] = DEFAULTS
) -> str:
    """Returns the line that runs or resumes these tasks of the sweep in `file`; sweep_dir None: the script's own.

    Args:
      defaults: the script, and its own values of its variables.
    """
    given = {"SWEEP": file, "SWEEP_DIR": sweep_dir or Path(defaults["SWEEP_DIR"])}
    variables = "".join(
        f"{name}={shlex.quote(str(path))} "
        for name, path in given.items()
        if os.path.normpath(path) != os.path.normpath(defaults[name])
    )
    return f"{variables}sbatch --array={numbers(tasks)} {defaults['script']}"


def task_folder(sweep_dir: Path, task: int) -> Path:
    """Returns the run directory of a task."""
    return sweep_dir / f"task_{task:03}"


def _nested(settings: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, name = key.split(".")
        table = out
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise UsageError(f"{section} is a section, but {shown(table)} was given")
        if isinstance(table.get(name), dict):
            raise UsageError(f"{name} is a section, but {shown(value)} was given")
        table[name] = value
    return out


def is_law(table: dict[str, Any]) -> bool:
    return [key in LAWS and type(value) is list for key, value in table.items()] == [True]


def _ranks(value: Any) -> int | None:
    if value is not None and (type(value) is not int or not 1 <= value <= MOST_RANKS):
        raise UsageError(f"ranks={shown(value)} must be a whole number of at least 1, and at most {MOST_RANKS}")
    return value


def _random(table: dict[str, Any]) -> tuple[int, int, dict[str, Any]]:
    """Reads samples, seed, and the law of each key."""
    laws = flatten({k: v for k, v in table.items() if k not in ("samples", "seed")}, "random.", is_value=is_law)
    samples, seed = table.get("samples", 0 if laws else 1), table.get("seed", 0)
    samples, seed = (int(n) if isinstance(n, float) and n.is_integer() else n for n in (samples, seed))
    for name, value, least in (("samples", samples, 1), ("seed", seed, 0)):
        if type(value) is not int or not least <= value < 2**63:
            raise UsageError(
                f"random.{name}={shown(value)} must be a whole number of at least {least}, below 2**63"
                + (" (it seeds what is drawn; seeds of runs stand in [grid])" if name == "seed" else "")
            )
    if samples > 1 and not laws:
        raise UsageError(f"random.samples={samples} needs something to draw, such as optim.lr = {{log = [1e-4, 1e-2]}}")
    return samples, seed, laws


def _refuse_doubles(*tables: dict[str, Any]) -> None:
    for (one, a), (two, b) in itertools.combinations(zip(TABLES, tables, strict=False), 2):
        if twice := a.keys() & b.keys():
            raise UsageError(f"{min(twice)} is both in [{one}] and in [{two}]: leave one out")
    for own in PER_START:
        name = own.replace("_", "-")
        if any(name in table for table in tables):
            raise UsageError(f"{name} is not for a sweep, whose tasks have run directories of their own: leave it out")


def _check_list(name: str, listed: Any, *, once: bool = False) -> None:
    if not isinstance(listed, list) or not listed:
        raise UsageError(f"{name}={shown(listed)} must be a list of values, [a, b, …]")
    if len(listed) > MOST_TASKS:
        raise UsageError(f"{name} holds {len(listed)} values, and a sweep has at most {MOST_TASKS} tasks")
    seen: set[Any] = set()
    for value in listed if once else []:
        key = str(value) if isinstance(value, list | dict) else value  # 1 and 1.0 are the same
        if key in seen:
            raise UsageError(f"{name}={shown(listed)} holds {shown(value)} twice: the same runs would be made again")
        seen.add(key)


def _check_law(name: str, law: Any) -> None:
    if not isinstance(law, dict):
        raise UsageError(
            f"{name}={shown(law)} must say how it is drawn: {{uniform = [a, b]}}, or {', '.join(LAWS[1:])}"
        )
    ((kind, bounds),) = law.items()
    if kind == "choice":
        _check_list(f"{name}.choice", bounds)
        return
    types = (int,) if kind == "integer" else (int, float)
    right = len(bounds) == 2 and all(type(b) in types and abs(b) < 2**63 for b in bounds) and bounds[0] <= bounds[1]
    if not right or (kind == "log" and bounds[0] <= 0):
        what = {"integer": "whole numbers", "log": "positive numbers"}.get(kind, "numbers")
        raise UsageError(f"{name}.{kind}={shown(bounds)} must be [a, b], two {what}, the smaller one first")


def _draw(law: dict[str, Any], stream: str) -> Any:
    """Draws a value by the law. Only Random(text).random() is the same in every version of Python."""
    ((kind, values),) = law.items()
    u = random.Random(stream).random()
    if kind == "choice":
        return values[math.floor(u * len(values))]
    low, high = values
    if kind == "integer":
        return low + math.floor(u * (high - low + 1))
    if kind == "log":
        drawn = math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
    else:
        drawn = low + u * (high - low)
    return min(max(float(f"{drawn:.{DIGITS}g}"), float(low)), float(high))
