"""A run's settings, those that differ from the preset marked, how to repeat it, and what it ran on."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from dppo.config import Config
from dppo.files import plain
from dppo.rundir import paths
from dppo.rundir.runs import Run
from dppo.settings.flags import from_values
from dppo.settings.values import as_dict
from dppo.study.history import History
from dppo.study.page import Cell, Code, Details, Table, Text
from dppo.study.spec import as_text, flatten


def usual(config: Config) -> Config | None:
    """Returns what a run of the same environment, mode and loss has by preset and defaults; None: that cannot be."""
    try:
        return from_values({"env": config.env, "mode": config.mode, "loss": config.loss})
    except ValueError:
        return None


def differing(config: Config) -> dict[str, tuple[Any, Any]]:
    """Returns the settings that differ from preset and defaults: (value, usual value) by flag's name."""
    base = usual(config)
    if base is None:
        return {}
    mine, theirs = flatten(as_dict(config)), flatten(as_dict(base))
    names = [name for name in dict.fromkeys((*mine, *theirs)) if name not in ("run-dir", "resume", "dry-run")]
    return {n: (mine.get(n), theirs.get(n)) for n in names if mine.get(n) != theirs.get(n)}


def settings_parts(config: Config | None) -> Iterable[Any]:
    """Yields the settings that differ from the preset, and all of them."""
    if config is None:
        return
    changed = differing(config)
    header = ("setting", "value", "preset or default")
    rows = [[Cell(n), Cell(_value(a), None, "strong"), Cell(_value(b))] for n, (a, b) in changed.items()]
    if rows:
        yield Table(header, rows, "Settings that differ from the preset or the default", num_left=3)
    else:
        yield Text(["All settings are those of the preset, or the defaults."])
    everything = {n: v for n, v in flatten(as_dict(config)).items() if n not in ("run-dir", "resume", "dry-run")}
    all_rows = [
        [Cell(n), Cell(_value(v), None, "strong" if n in changed else "")] for n, v in sorted(everything.items())
    ]
    yield Details("All settings", [Table(header[:2], all_rows, num_left=2)])


def _value(value: Any) -> str:
    return "–" if value is None else as_text(value)


def repeat_parts(run: Run, history: History) -> Iterable[Any]:
    """Yields the command of the run's start, one that repeats it, and versions and machines of each attempt."""
    commands = [
        shlex.join(map(str, command)) for attempt in history.attempts
        if isinstance(command := attempt.get("command"), list) and command
    ]  # fmt: skip
    if commands:
        ranks = history.attempts[0].get("world_size")
        yield Text([f"Started on {ranks} rank(s) as:"])
        yield Code(commands[0])
    if run.config is not None:
        ranks = run.number("world_size") or 1
        start = f"mpirun -n {ranks:.0f} " if ranks > 1 else ""
        copy = shlex.quote(plain(run.folder / paths.CONFIG))
        yield Text(["The same settings again, or with another seed:"])
        yield Code(f"{start}python -m dppo.run {copy} --run-dir runs/again --seed {run.config.seed}")
    if history.attempts:
        yield Details("Versions and machines", [_versions(history.attempts)])


def _versions(attempts: Sequence[dict[str, Any]]) -> Table:
    """A column for each attempt."""
    told = []
    for attempt in attempts:
        packages = attempt.get("packages")
        packages = packages if isinstance(packages, dict) else {}
        told.append(
            {key: value for key, value in attempt.items() if key not in ("packages", "hosts", "command")}
            | {f"package {name}": version for name, version in packages.items()}
        )
    names = list(dict.fromkeys(name for one in told for name in one))
    rows = [[Cell(name), *(Cell(_value(one.get(name))) for one in told)] for name in names]
    header = ["", *(f"attempt {number}" for number in range(1, len(told) + 1))]
    return Table(header, rows, num_left=len(header))
