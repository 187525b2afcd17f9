"""A run that goes on keeps its settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dppo.config import Config
from dppo.errors import UsageError
from dppo.settings.resolve import resolve
from dppo.settings.toml import PER_START, load_config
from dppo.settings.values import as_dict, updated

RESUMABLE = ("total_steps", "target_return", "time_limit_s", "resume", "run_dir", "dry_run", "log", "checkpoint")
"""What may be given anew with --resume."""


def resumed(config: Config) -> Config:
    """What `Config(run_dir=R, resume=True)` means: all settings of the run in R, and what it gives anew. What equals
    its default cannot be told from what was not given, and is the run's.

    Raises:
      UsageError: no run is there, or what was given differs from the run's and may not.
    """
    if not config.run_dir:
        raise UsageError("--resume needs --run-dir, the directory of the run to go on with")
    stored = replace(
        load_config(Path(config.run_dir).expanduser()), **{name: getattr(config, name) for name in PER_START}
    )
    given = _given(as_dict(config), as_dict(Config()))
    try:
        changed = updated(stored, {name: value for name, value in given.items() if name not in PER_START})
        require_same(stored, changed)
        return resolve(changed)
    except ValueError as error:
        raise error if isinstance(error, UsageError) else UsageError(str(error)) from error


def _given(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """What is not as it is by default."""
    return {
        name: _given(value, defaults[name]) if isinstance(value, dict) else value
        for name, value in values.items()
        if value != defaults.get(name)
    }


def require_same(stored: Config, config: Config) -> None:
    """A resumed run keeps its settings. Raises UsageError that names the first that differs."""
    for key, before, now in _differences(as_dict(stored), as_dict(config)):
        if key.split(".")[0] not in RESUMABLE:
            raise UsageError(
                f"--{key.replace('_', '-')}={now} differs from the run's {before}: a resumed run keeps its settings"
                " (total-steps, target-return, time-limit-s, log.* and checkpoint.* may be given anew); leave it out,"
                " or start a new run in another --run-dir"
            )


def _differences(a: dict[str, Any], b: dict[str, Any], where: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key in {**a, **b}:
        if isinstance(a.get(key), dict) and isinstance(b.get(key), dict):
            yield from _differences(a[key], b[key], f"{where}{key}.")
        elif a.get(key) != b.get(key):
            yield where + key, a.get(key), b.get(key)
