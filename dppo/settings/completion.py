"""Completion of all commands in a shell. tyro writes it, from the settings of a run and the parsers of the others."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from dppo.config import Config
from dppo.errors import UsageError
from dppo.settings.commands import Parser, wrong_use
from dppo.settings.pairs import registry

NAME = "completion"
"""Of the command."""
SHELLS = ("bash", "zsh", "fish")


def completion_parser() -> Parser:
    """Returns the parser of `dppo completion`."""
    parser = Parser(
        prog="dppo completion",
        description="Prints the completion of dppo for your shell. bash: write `source <(dppo completion bash)` into"
        ' ~/.bashrc. zsh: dppo completion zsh > "${fpath[1]}/_dppo". fish: dppo completion fish >'
        " ~/.config/fish/completions/dppo.fish",
    )
    shells = parser.add_subparsers(metavar="SHELL", dest="shell", required=True)
    for shell in SHELLS:
        shells.add_parser(shell, help=f"for {shell}")
    return parser


def main(words: Sequence[str], parsers: Callable[[], Mapping[str, argparse.ArgumentParser]]) -> int:
    """Runs `dppo completion`. Returns the exit code.

    Args:
      parsers: makes those of all commands except `run`, which takes seconds.
    """
    try:
        shell = completion_parser().parse_args(words).shell
    except UsageError as error:
        return wrong_use(error)
    print(script({**parsers(), NAME: completion_parser()}, shell))
    return 0


def script(parsers: Mapping[str, argparse.ArgumentParser], shell: str, run: str = "run") -> str:
    """Returns what a shell is to read: the completion of `dppo`.

    Args:
      parsers: of all commands except `run`, by their names.
      shell: one of `SHELLS`.
    """
    import tyro

    of = tyro.conf.subcommand
    parts: list[Any] = [Annotated[Config, of(run, prefix_name=False)]]
    parts += [Annotated[_as_type(parser), of(name, prefix_name=False)] for name, parser in parsers.items()]
    commands: Any = Union[tuple(parts)]  # noqa: UP007 (of a list)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        tyro.cli(commands, prog="dppo", args=["--tyro-print-completion", shell], registry=registry())
    # where no flag fits, the word is the name of a file or of a run's folder
    text = out.getvalue().replace("complete --no-files --command", "complete --command")
    text = text.replace("complete -F", "complete -o bashdefault -o default -F")
    return text.replace('if [[ "$completions" == "__T', 'if [[ -z "$completions" || "$completions" == "__T')


def _as_type(parser: argparse.ArgumentParser) -> Any:
    """Returns a dataclass with the options of `parser`, or the union of those of its subcommands."""
    import tyro

    fields: list[Any] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            of = tyro.conf.subcommand
            inner = [Annotated[_as_type(p), of(n, prefix_name=False)] for n, p in action.choices.items()]
            return Union[tuple(inner)]  # noqa: UP007 (of a list)
        long = [option for option in action.option_strings if option.startswith("--") and option != "--help"]
        if not long or isinstance(action, argparse._HelpAction):
            continue
        name, is_switch, kind = long[0].removeprefix("--"), _kind(action) is bool, _kind(action)
        if is_switch and not isinstance(action, argparse.BooleanOptionalAction):
            kind = tyro.conf.FlagCreatePairsOff[bool]
        help_text = str(action.help or "").replace("%%", "%")
        aliases = tuple(option for option in action.option_strings if option != long[0] and "--no-" not in option)
        fields.append((
            name.replace("-", "_"),
            Annotated[kind, tyro.conf.arg(name=name, help=help_text, aliases=aliases)],
            field(default=False if is_switch else None),
        ))  # fmt: skip
    return make_dataclass("Options", fields)


def _kind(action: argparse.Action) -> Any:
    if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
        return bool
    if action.choices:
        return Literal[tuple(action.choices)] | None
    return (Path if action.type is Path else str) | None
