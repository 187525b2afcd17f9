"""Makes a Config of the command line: of presets, TOML and flags, each overriding the one before."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NoReturn

from dppo.bounds import hints, is_whole, whole_number
from dppo.config import Config
from dppo.errors import EXIT_USAGE, HelpShown, UsageError
from dppo.settings.commands import VERSION, until_its_reader_leaves
from dppo.settings.pairs import FLAG as PAIRS
from dppo.settings.pairs import as_case, as_pair, is_pair, read_pairs, registry
from dppo.settings.resolve import resolve
from dppo.settings.resume import settings_of, with_the_same
from dppo.settings.toml import presets, read_toml, shortened
from dppo.settings.values import setting_names, suggestion, updated

USAGE = """usage: [mpirun -n N] python -m dppo.run [CONFIG.toml] [flags]

Without arguments it trains CartPole-v1 until the mean return of the last 100 episodes is 475.
`--version` says which dppo this is."""


OPEN_SWITCHES = ("vtrace", "optim.anneal")
"""Switches that can also be left open, which tyro does not know as switches."""


@until_its_reader_leaves
def answer(argv: Sequence[str], *, is_first: bool) -> int:
    """Answers --help and --version before MPI starts. Returns the exit code of all ranks; only the first one prints."""
    with contextlib.ExitStack() as silence:
        if not is_first:
            nowhere = silence.enter_context(open(os.devnull, "w"))
            silence.enter_context(contextlib.redirect_stdout(nowhere))
            silence.enter_context(contextlib.redirect_stderr(nowhere))
        try:
            parse(argv)
        except UsageError as error:
            print(f"dppo: {error}", file=sys.stderr)
            return EXIT_USAGE
        except HelpShown:
            pass
    return 0


def parse(argv: Sequence[str]) -> tuple[Config, list[str]]:
    """Returns the complete configuration, and lines that say where it comes from.

    Raises:
      UsageError: anything is wrong; the message has the repair.
      HelpShown: --help or --version was given.
    """
    args = list(argv)
    if "--version" in args:
        print(VERSION)
        raise HelpShown
    file_values: dict[str, Any] = {}
    notes = []
    if (place := file_at(args)) is not None:
        path = Path(args.pop(place))
        file_values = read_toml(path)
        notes.append(f"settings from {path}")
    _check_flags(args)
    try:
        if "-h" in args or "--help" in args:
            _show_help(args, file_values)
        if ("--resume" in args or file_values.get("resume")) and "--no-resume" not in args:
            return _resumed(args, file_values, notes)
        config, preset_note = _new(args, file_values)
        return config, [*preset_note, *notes]
    except ValueError as error:
        raise error if isinstance(error, UsageError) else UsageError(str(error)) from error


def file_at(args: list[str]) -> int | None:
    """Returns where CONFIG.toml is: first, or after a flag's value, as in a batch script that has flags of its own."""
    if args and not args[0].startswith("-"):
        return 0
    pairs = itertools.pairwise(args)
    behind = (i for i, (a, b) in enumerate(pairs, 1) if b.endswith(".toml") and not a.startswith("-"))
    arguments = _places_of_pairs(args)
    return next((i for i in behind if i not in arguments), None)


def from_values(values: dict[str, Any]) -> Config:
    """Returns the complete configuration that a TOML file with these values alone would give. Raises UsageError."""
    try:
        return _new([], values)[0]
    except ValueError as error:
        raise UsageError(str(error)) from error


def _new(args: list[str], file_values: dict[str, Any]) -> tuple[Config, list[str]]:
    base, preset_note = _with_preset(args, file_values)
    config = _apply_flags(updated(base, file_values), args)
    if config.cases and flag_value(args, "env") is None and "env" not in file_values:
        raise UsageError('cases are arguments of an environment, and none is named: write env = "…", or give --env')
    return resolve(config), preset_note


def _resumed(args: list[str], file_values: dict[str, Any], notes: list[str]) -> tuple[Config, list[str]]:
    stored = settings_of(flag_value(args, "run-dir") or file_values.get("run-dir") or file_values.get("run_dir"))
    config = _apply_flags(updated(stored, file_values), args)
    return with_the_same(stored, config), [f"settings from {stored.run_dir}/config.toml", *notes]


# -- presets --------------------


def _with_preset(args: list[str], file_values: dict[str, Any]) -> tuple[Config, list[str]]:
    """Returns the defaults with the preset of environment and loss. A preset's stopping rule is one unit: total-steps
    given by the user replaces its target-return as well."""

    def given(name: str) -> Any:
        value = flag_value(args, name)
        return value if value is not None else file_values.get(name, file_values.get(name.replace("-", "_")))

    env = given("env") or Config.env
    mode = given("mode") or Config.mode
    loss = given("loss") or ("a3c" if mode == "async" else "ppo")
    known, namespace = presets(), str(env).partition("/")[0]  # ALE.ppo.toml is for all of ALE/…
    name = next((f"{of}.{loss}.toml" for of in (env, namespace) if f"{of}.{loss}.toml" in known), None)
    if name is None:
        return Config(), [f"no preset for {env} with {loss}: the defaults"]
    file = known[name]
    values = tomllib.loads(file.read_text())
    if given("total-steps") is not None and given("target-return") is None:
        values.pop("target-return", None)
    return updated(Config(), values), [f"preset {name}"]


def _shown_preset(of: str) -> str:
    """Returns what a preset is for: an id, which ends in a version, or all ids of a namespace."""
    return of if "-v" in of else f"{of}/…"


# -- flags --------------------


def flag_names() -> list[str]:
    """Returns every flag without its dashes: total-steps, ppo.clip, …"""
    return [name.replace("_", "-") for name in setting_names()]


def _check_flags(args: list[str]) -> None:
    known = flag_names()
    for token in args:
        name = token[2:].split("=")[0].replace("_", "-")
        if token.startswith(f"--{PAIRS}."):
            argument = shortened(token.partition("=")[0].partition(".")[2])
            raise UsageError(f"--{PAIRS}.{argument}: no such flag; write --{PAIRS} {argument}=VALUE")
        if token.startswith("--") and name != "help" and _positive(name) not in known:
            no = "" if _positive(name) == name else "no-"
            meant = suggestion(_positive(name), write=lambda setting: f"--{no}{setting.replace('_', '-')}")  # noqa: B023
            raise UsageError(f"--{shortened(name)}: no such flag{meant}")


def _positive(name: str) -> str:
    """Removes a flag's negation: --no-log.tensorboard and --log.no-tensorboard both become --log.tensorboard."""
    section, dot, last = name.removeprefix("no-").rpartition(".")
    return section + dot + last.removeprefix("no-")


def _as_tyro_wants(token: str) -> str:
    """Puts a switch into the form that tyro knows: --no-log.tensorboard becomes --log.no-tensorboard."""
    name = token[2:]
    if _positive(name) in OPEN_SWITCHES:
        return f"--{_positive(name)}={_positive(name) == name}"
    if token.startswith("--no-") and "." in token:
        section, _, last = token.removeprefix("--no-").rpartition(".")
        return f"--{section}.no-{last}"
    return token


def _with_digits(args: list[str]) -> list[str]:
    """Writes 1e6 as 1000000 after the flags of whole numbers, as tyro knows it."""
    out: list[str] = []
    takes_whole_numbers = False
    for token in args:
        flag, equals, value = token.partition("=")
        if token.startswith("--"):
            takes_whole_numbers = _is_whole_number(flag[2:].replace("-", "_"))
        else:
            flag, equals, value = "", "", token
        number = whole_number(value) if takes_whole_numbers else None
        out.append(token if number is None else f"{flag}{equals}{number}")
    return out


def _is_flag_of_pairs(token: str) -> bool:
    return token.partition("=")[0].replace("_", "-") == f"--{PAIRS}"


def _places_of_pairs(args: list[str]) -> list[int]:
    """Returns where the values behind --env-kwargs are, without what follows them: CONFIG.toml, or the next flag."""
    places, takes_pairs = [], False
    for i, token in enumerate(args):
        if token.startswith("--"):
            takes_pairs = _is_flag_of_pairs(token)
        elif takes_pairs and (is_pair(token) or not token.endswith(".toml")):
            places.append(i)
    return places


def _split_pairs(args: list[str]) -> tuple[list[str], list[str]]:
    """Returns the arguments without --env-kwargs, and its values, of all places where it is given."""
    behind = _places_of_pairs(args)
    rest: list[str] = []
    pairs: list[str] = []
    for i, token in enumerate(args):
        if _is_flag_of_pairs(token):
            pairs += [token.partition("=")[2]] if "=" in token else []
        else:
            (pairs if i in behind else rest).append(token)
    return rest, pairs


def _is_whole_number(name: str) -> bool:
    *sections, last = name.split(".")
    part: Any = Config
    for section in sections:
        part = hints(part).get(section)
        if not is_dataclass(part):
            return False
    return is_whole(hints(part).get(last))


def flag_value(args: list[str], name: str) -> str | None:
    """Returns the last value of --name, before tyro parses the flags."""
    found = None
    for i, token in enumerate(args):
        key, equals, value = token.replace("_", "-", token.split("=")[0].count("_")).partition("=")
        if key == f"--{name}":
            found = value if equals else args[i + 1] if i + 1 < len(args) else None
    return found


def _show_help(args: list[str], file_values: dict[str, Any]) -> NoReturn:
    """Shows all flags, with the values that they have where they are not given: the defaults or, with an environment,
    the values of its preset and of the file.
    """
    env = flag_value(args, "env") or file_values.get("env")
    if env is None:
        config, tuned = Config(), sorted({_shown_preset(name.rsplit(".", 2)[0]) for name in presets()})
        note = (
            f"The defaults are shown. {Config.env}, the environment where no other is named, has a preset, which"
            f" replaces some of them, and so have {', '.join(e for e in tuned if e != Config.env)}; `--env ID --help`"
            " shows what is set with it."
        )
    else:
        config, notes = _with_preset(args, file_values)
        config = updated(config, file_values | {"env": env})
        note = f"What is shown is set with {env} ({'; '.join(notes)})."
    _apply_flags(config, ["--help"], f"{USAGE} {note}")
    raise HelpShown


def _apply_flags(base: Config, args: list[str], description: str = USAGE) -> Config:
    args, pairs = _split_pairs(args)
    base = updated(base, {PAIRS: read_pairs(pairs)})
    if not args:
        return base
    import tyro

    args = [_as_tyro_wants(token) for token in _with_digits(args)]
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                Config, args=args, default=base, description=description, prog="python -m dppo.run",
                registry=registry(),
            )  # fmt: skip
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise HelpShown from None
        raise UsageError(_one_message(complaint.getvalue())) from None


def _one_message(complaint: str) -> str:
    """Returns the text of tyro's framed message without its frame, its title, the help below its first rule, and the
    colours that it has under mpirun, on a pseudo-terminal.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", complaint)
    lines = [line.strip(" │╯┃┛") for line in plain.splitlines() if not line.startswith(("╭", "┏"))]
    said = itertools.takewhile(lambda line: not line.startswith(("──", "━━")), lines)
    # the message itself names a value out of range
    message = re.sub(r"^Error parsing \S+: (?=[\w.]+=|(--)?cases)", "", " ".join(line for line in said if line))
    return shortened(message) or "the flags cannot be understood; see --help"


def in_python(message: str) -> str:
    """Rewrites a message for callers of `dppo.train`: it names settings as Python does, not by their flags."""
    start, end = r"(?<![\w/-])", r"(?![\w-])"  # not a part of a path
    message = re.sub(
        rf"{start}--resume --run-dir (\S+?)(?=[,;.]?(\s|$))", r"Config(run_dir='\1', resume=True)", message
    )
    message = re.sub(rf"{start}--resume{end}", "resume=True", message)
    bare = "|".join(name for name in flag_names() if "-" in name and "." not in name)
    names = rf"{start}(?:--([a-z][a-z0-9.-]*[a-z0-9])|({bare}){end})"
    return re.sub(names, lambda found: found[found.lastindex or 0].replace("-", "_"), message)


def as_flags(settings: dict[str, Any]) -> list[str]:
    """Returns the arguments that give these settings (by flag's name): {"ppo.clip": 0.1} becomes --ppo.clip, 0.1, and
    {"env-kwargs.size": 5} becomes --env-kwargs, size=5.
    """
    args: list[str] = []
    for name, value in settings.items():
        if name == PAIRS:
            args += [f"--{PAIRS}", *(as_pair(key, part) for key, part in value.items())]
        elif name.startswith(f"{PAIRS}."):
            args += [f"--{PAIRS}", as_pair(name.partition(".")[2], value)]
        elif isinstance(value, bool):
            args.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list | tuple):
            args += [f"--{name}", *(as_case(part) if isinstance(part, dict) else str(part) for part in value)]
        elif str(value).startswith("-"):  # on its own it would be taken for a flag
            args.append(f"--{name}={value}")
        else:
            args += [f"--{name}", str(value)]
    return args
