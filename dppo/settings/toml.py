"""Reads and writes TOML files of settings."""

from __future__ import annotations

import os
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w

from dppo.config import Config
from dppo.errors import RefusedFileError, UsageError
from dppo.files import TOML_BYTES, read_regular
from dppo.settings.resolve import resolve
from dppo.settings.values import as_dict, updated

CONFIG_FILE = "config.toml"
PER_START = ("resume", "run_dir", "dry_run")
"""Settings that belong to one start of the program, not to the run; config.toml leaves them out."""

LONGEST_MESSAGE = 600


def read_toml(path: Path, root: Path | None = None) -> dict[str, Any]:
    """Reads a TOML file's values.

    Args:
      root: the folder that the file must lie in, as in `open_regular`.

    Raises:
      UsageError: the file cannot be read or is no TOML; the message names it and what is wrong.
    """
    try:
        content = read_regular(path, root, TOML_BYTES)
    except RefusedFileError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        why = error.strerror or error
        raise UsageError(f"{path}: cannot be read: {why}; the first argument names a TOML file") from error
    except ValueError as error:  # a name that no file can have
        raise UsageError(f"{str(path)!r}: cannot be read: {error}") from error
    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or thousands of digits or of brackets
        raise UsageError(f"{path}: is not valid TOML: {shortened(str(error))}") from error


def load_config(run_dir: Path) -> Config:
    """Reads the stored configuration of a run. Raises UsageError where that fails."""
    path = run_dir / CONFIG_FILE
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{run_dir} holds no run: there is no {CONFIG_FILE} in it") from error
    except (OSError, ValueError):
        pass  # read_toml says what is wrong
    values = read_toml(path, run_dir)
    try:
        return resolve(updated(Config(), values))
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error


def shortened(text: str) -> str:
    """Shortens a message of another library, of which a part may be the content of a file."""
    return text if len(text) <= LONGEST_MESSAGE else f"{text[: LONGEST_MESSAGE - 3]}..."


def to_toml(config: Config) -> str:
    """Returns all settings as a TOML file that `python -m dppo.run FILE` reads."""
    values = {name: value for name, value in as_dict(config).items() if name not in PER_START}
    table = values.pop("env_kwargs")  # its names are those of a constructor, which have no dashes
    cases = [{"name": case["name"], "env-kwargs": case["env_kwargs"]} for case in values.pop("cases")]
    return tomli_w.dumps(_with_dashes(values) | {"env-kwargs": table} | ({"cases": cases} if cases else {}))


def _with_dashes(values: dict[str, Any]) -> dict[str, Any]:
    return {k.replace("_", "-"): _with_dashes(v) if isinstance(v, dict) else v for k, v in values.items()}


def presets() -> dict[str, Any]:
    """Returns the files of all presets, by their names: ENV.LOSS.toml."""
    return {
        file.name: file
        for file in (resources.files("dppo.settings") / "presets").iterdir()
        if file.name.endswith(".toml")
    }
