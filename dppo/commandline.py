"""From the command line to a Config: presets, TOML and flags, each winning over the one before.

Uses tyro and config.py; run.py calls it on rank 0 only, so that there is one message and one truth. The other commands
take from it how wrong use is said.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from dppo.config import Config, as_dict, nearest, resolve, updated
from dppo.reading import TOML_BYTES, RefusedFileError, read_regular

RESUMABLE = ("total_steps", "target_return", "time_limit_s", "resume", "run_dir", "dry_run", "log", "checkpoint")
"""What may be given anew with --resume."""

PER_START = ("resume", "run_dir", "dry_run")
"""What belongs to one start of the program, not to the run; config.toml leaves it out."""

USAGE = """usage: [mpirun -n N] python -m dppo.run [CONFIG.toml] [flags]

Without arguments it trains CartPole-v1 until the mean return of the last 100 episodes is 475."""


class UsageError(ValueError):
    """Wrong use: one message, exit code 2."""


class HelpShown(Exception):
    """--help was answered; nothing else is to be done."""


class Parser(argparse.ArgumentParser):
    """Of the other commands: says what is wrong in one line, as all of them do."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} -h")


def parse(argv: Sequence[str]) -> tuple[Config, list[str]]:
    """The complete configuration, and lines that say where it comes from.

    Raises:
      UsageError: for anything wrong, with the repair.
      HelpShown: after --help.
    """
    args = list(argv)
    file_values: dict[str, Any] = {}
    notes = []
    if (place := _file_at(args)) is not None:
        path = Path(args.pop(place))
        file_values = read_toml(path)
        notes.append(f"settings from {path}")
    _check_flags(args)
    try:
        if ("--resume" in args or file_values.get("resume")) and "--no-resume" not in args:
            return _resumed(args, file_values, notes)
        config, preset_note = _new(args, file_values)
        return config, [*preset_note, *notes]
    except ValueError as error:
        raise error if isinstance(error, UsageError) else UsageError(str(error)) from error


def _file_at(args: list[str]) -> int | None:
    """Where CONFIG.toml is: first, or, as in a batch script that has flags of its own, behind a flag's value."""
    if args and not args[0].startswith("-"):
        return 0
    pairs = itertools.pairwise(args)
    return next((i for i, (a, b) in enumerate(pairs, 1) if b.endswith(".toml") and not a.startswith("-")), None)


def from_values(values: dict[str, Any]) -> Config:
    """The complete configuration that a TOML file with these values alone would give. Raises UsageError."""
    try:
        return _new([], values)[0]
    except ValueError as error:
        raise UsageError(str(error)) from error


def _new(args: list[str], file_values: dict[str, Any]) -> tuple[Config, list[str]]:
    base, preset_note = _with_preset(args, file_values)
    return resolve(_apply_flags(updated(base, file_values), args)), preset_note


def read_toml(path: Path, root: Path | None = None) -> dict[str, Any]:
    """A TOML file's values.

    Args:
      root: the folder that it must lie in, as in `open_regular`.

    Raises:
      UsageError: that names the file and what is wrong with it.
    """
    try:
        return tomllib.loads(read_regular(path, root, TOML_BYTES).decode())
    except RefusedFileError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}; the first argument names a TOML file") from error
    except RecursionError as error:
        raise UsageError(f"{path}: is not valid TOML: it is nested too deeply") from error
    except ValueError as error:
        raise UsageError(f"{path}: is not valid TOML: {error}") from error


def load_config(run_dir: Path) -> Config:
    """The stored configuration of a run."""
    path = run_dir / "config.toml"
    if not os.path.lexists(path):
        raise UsageError(f"{run_dir} holds no run: there is no config.toml in it")
    return resolve(updated(Config(), read_toml(path, run_dir)))


def _resumed(args: list[str], file_values: dict[str, Any], notes: list[str]) -> tuple[Config, list[str]]:
    run_dir = _flag_value(args, "run-dir") or file_values.get("run-dir") or file_values.get("run_dir")
    if not run_dir:
        raise UsageError("--resume needs --run-dir, the directory of the run to go on with")
    stored = replace(load_config(Path(str(run_dir))), run_dir=str(run_dir), resume=True)
    config = resolve(_apply_flags(updated(stored, file_values), args))
    for key, before, now in _differences(as_dict(stored), as_dict(config)):
        if key.split(".")[0] not in RESUMABLE:
            raise UsageError(
                f"--{key.replace('_', '-')}={now} differs from the run's {before}: a resumed run keeps its settings"
                " (total-steps, target-return, time-limit-s, log.* and checkpoint.* may be given anew); leave it out,"
                " or start a new run in another --run-dir"
            )
    return config, [f"settings from {run_dir}/config.toml", *notes]


def _differences(a: dict[str, Any], b: dict[str, Any], where: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key in {**a, **b}:
        if isinstance(a.get(key), dict) and isinstance(b.get(key), dict):
            yield from _differences(a[key], b[key], f"{where}{key}.")
        elif a.get(key) != b.get(key):
            yield where + key, a.get(key), b.get(key)


# -- presets --------------------


def _with_preset(args: list[str], file_values: dict[str, Any]) -> tuple[Config, list[str]]:
    """The defaults with the preset of environment and loss. A preset's stopping rule is a whole: total-steps given by
    the user replaces its target-return as well."""

    def given(name: str) -> Any:
        value = _flag_value(args, name)
        return value if value is not None else file_values.get(name, file_values.get(name.replace("-", "_")))

    env = given("env") or Config.env
    mode = given("mode") or Config.mode
    loss = given("loss") or ("a3c" if mode == "async" else "ppo")
    name = f"{env}.{loss}.toml"
    file = resources.files("dppo") / "presets" / name
    if "/" in str(env) or not file.is_file():
        return Config(), [f"no preset for {env} with {loss}: the defaults"]
    values = tomllib.loads(file.read_text())
    if given("total-steps") is not None and given("target-return") is None:
        values.pop("target-return", None)
    return updated(Config(), values), [f"preset {name}"]


# -- flags --------------------


def flag_names(cls: Any = Config, prefix: str = "") -> list[str]:
    """Every flag without its dashes: total-steps, ppo.clip, …"""
    names: list[str] = []
    instance = cls()
    for f in fields(cls):
        name = prefix + f.name.replace("_", "-")
        value = getattr(instance, f.name)
        names += flag_names(type(value), name + ".") if is_dataclass(value) else [name]
    return names


def _check_flags(args: list[str]) -> None:
    known = flag_names()
    for token in args:
        name = token[2:].split("=")[0].replace("_", "-")
        if token.startswith("--") and name != "help" and _positive(name) not in known:
            raise UsageError(f"--{name}: no such flag{nearest(name, known).replace('mean ', 'mean --')}")


def _positive(name: str) -> str:
    """A flag's name without its negation: --no-log.tensorboard and --log.no-tensorboard are both --log.tensorboard."""
    section, dot, last = name.removeprefix("no-").rpartition(".")
    return section + dot + last.removeprefix("no-")


def _as_tyro_wants(token: str) -> str:
    """A switch in the form that tyro knows: --no-log.tensorboard becomes --log.no-tensorboard."""
    if token in ("--vtrace", "--no-vtrace"):
        return f"--vtrace={token == '--vtrace'}"
    if token.startswith("--no-") and "." in token:
        section, _, last = token.removeprefix("--no-").rpartition(".")
        return f"--{section}.no-{last}"
    return token


def _flag_value(args: list[str], name: str) -> str | None:
    """The last value of --name, before the flags are parsed in earnest."""
    found = None
    for i, token in enumerate(args):
        key, equals, value = token.replace("_", "-", token.split("=")[0].count("_")).partition("=")
        if key == f"--{name}":
            found = value if equals else args[i + 1] if i + 1 < len(args) else None
    return found


def _apply_flags(base: Config, args: list[str]) -> Config:
    if not args:
        return base
    import contextlib
    import io

    import tyro

    args = [_as_tyro_wants(token) for token in args]
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(Config, args=args, default=base, description=USAGE, prog="python -m dppo.run")
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise HelpShown from None
        raise UsageError(_one_message(complaint.getvalue())) from None


def _one_message(complaint: str) -> str:
    """What tyro's framed message says, without its frame, its title, the help below its first rule, and the colours
    that it has under mpirun, on a pseudo-terminal.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", complaint)
    lines = [line.strip(" │╯┃┛") for line in plain.splitlines() if not line.startswith(("╭", "┏"))]
    said = itertools.takewhile(lambda line: not line.startswith(("──", "━━")), lines)
    return " ".join(line for line in said if line) or "the flags cannot be understood; see --help"


def as_flags(settings: dict[str, Any]) -> list[str]:
    """The arguments that give these settings, by flag's name: {"ppo.clip": 0.1} becomes --ppo.clip, 0.1."""
    args: list[str] = []
    for name, value in settings.items():
        if isinstance(value, bool):
            args.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list | tuple):
            args += [f"--{name}", *map(str, value)]
        elif str(value).startswith("-"):  # on its own it would be taken for a flag
            args.append(f"--{name}={value}")
        else:
            args += [f"--{name}", str(value)]
    return args


# -- config.toml --------------------


def to_toml(config: Config) -> str:
    """Everything that is set, as a TOML file that `python -m dppo.run FILE` reads."""
    values = {k: v for k, v in as_dict(config).items() if k not in PER_START}
    lines = [f"{k.replace('_', '-')} = {_toml_value(v)}" for k, v in values.items() if not isinstance(v, dict)]
    for section, content in values.items():
        if isinstance(content, dict):
            lines += ["", f"[{section}]"]
            lines += [f"{k.replace('_', '-')} = {_toml_value(v)}" for k, v in content.items()]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    return repr(value)
