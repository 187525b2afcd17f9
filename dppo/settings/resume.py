"""Makes the settings of a resumed run, which keeps those that it had."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dppo.config import Config
from dppo.errors import UsageError
from dppo.settings.pairs import FLAG as PAIRS
from dppo.settings.pairs import as_case, as_pair
from dppo.settings.resolve import resolve
from dppo.settings.toml import PER_START, load_config
from dppo.settings.values import as_dict, updated

RESUMABLE = (
    "total_steps", "target_return", "time_limit_s", "device", "resume", "run_dir", "dry_run", "log", "eval",
    "checkpoint",
)  # fmt: skip
"""Settings and sections that may be given anew with --resume."""


def resumed(config: Config) -> Config:
    """Returns what `Config(run_dir=R, resume=True)` means: all settings of the run in R, and those given anew. A
    setting that equals its default counts as not given, because the two cannot be told apart: the run's value stays.

    Raises:
      UsageError: no run is there, or a given setting differs from the run's and must not.
    """
    stored = replace(settings_of(config.run_dir), dry_run=config.dry_run)
    given = _given(as_dict(config), as_dict(Config()))
    try:
        changed = updated(stored, {name: value for name, value in given.items() if name not in PER_START})
        return with_the_same(stored, changed)
    except ValueError as error:
        raise error if isinstance(error, UsageError) else UsageError(str(error)) from error


def settings_of(run_dir: str | None) -> Config:
    """Returns the settings of the run in `run_dir` for its next attempt. Raises UsageError where no run is there."""
    if not run_dir:
        raise UsageError("--resume needs --run-dir, the directory of the run to go on with")
    run_dir = os.path.expanduser(str(run_dir))
    return replace(load_config(Path(run_dir)), run_dir=run_dir, resume=True)


def _given(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Returns the values that differ from the defaults."""
    return {
        name: _given(value, defaults[name]) if isinstance(value, dict) and name in defaults else value
        for name, value in values.items()
        if value != defaults.get(name)
    }


def with_the_same(stored: Config, config: Config) -> Config:
    """Resolves `config` for a resumed run. Raises UsageError that names the first setting that differs and must not."""
    for key, before, now in _differences(as_dict(stored), as_dict(config)):
        if key.split(".")[0] not in RESUMABLE:
            raise UsageError(
                f"{_as_flag(key, now)} differs from the run's {before}: a resumed run keeps its settings"
                " (total-steps, target-return, time-limit-s, log.*, eval.* and checkpoint.* may be given anew, and"
                " device); leave it out, or start a new run in another --run-dir"
            )
    return resolve(config)


def _as_flag(key: str, value: Any) -> str:
    section, _, argument = key.partition(".")
    if section.startswith("cases["):
        return f"{key}={value}"
    return f"--{PAIRS} {as_pair(argument, value)}" if section == "env_kwargs" else f"--{key.replace('_', '-')}={value}"


def _differences(a: dict[str, Any], b: dict[str, Any], where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (name, value in a, value in b) of each setting that differs; an argument in env_kwargs is one setting."""
    for key in {**a, **b}:
        if isinstance(a.get(key), dict) and isinstance(b.get(key), dict) and where != "env_kwargs.":
            yield from _differences(a[key], b[key], f"{where}{key}.")
        elif f"{where}{key}" == "cases":
            texts = itertools.zip_longest(*(map(as_case, values[key]) for values in (a, b)), fillvalue="none")
            yield from ((f"cases[{i}]", mine, theirs) for i, (mine, theirs) in enumerate(texts) if mine != theirs)
        elif a.get(key) != b.get(key):
            yield where + key, a.get(key), b.get(key)
