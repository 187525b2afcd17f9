"""dppo, or python -m dppo: lists the commands, and starts one of them as `python -m` does."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from dppo.settings.commands import VERSION, until_its_reader_leaves


class Command(NamedTuple):
    """A command and its module."""

    module: str
    text: str


COMMANDS = {
    "run": Command("dppo.run", "train, on all ranks of mpirun or on one"),
    "evaluate": Command("dppo.evaluate", "play episodes with a trained policy, or record videos"),
    "report": Command("dppo.report", "draw and sum up runs, and say which need attention"),
    "sweep": Command("dppo.sweep", "list or start the tasks of a sweep or a search"),
    "trajectories": Command("dppo.trajectories", "look at recorded steps, check, draw and export them"),
    "export": Command("dppo.export", "write a policy as ONNX, for other programs"),
    "job": Command("dppo.job", "do a batch script's work, or copy the batch scripts"),
}
"""In the order in which they are shown."""
COMPLETION = "completion"


def commands() -> dict[str, Command]:
    """Returns the commands whose modules are there."""
    return {name: command for name, command in COMMANDS.items() if find_spec(command.module) is not None}


def overview() -> str:
    """Returns the list of commands, one a line."""
    lines = {name: command.text for name, command in commands().items()}
    lines[COMPLETION] = "print the completion of commands and flags for bash, zsh or fish"
    width = max(map(len, lines))
    return "\n".join([
        "usage: [mpirun -n N] dppo COMMAND …",
        "",
        *(f"  {name:{width}}  {text}" for name, text in lines.items()),
        "",
        "dppo COMMAND --help says more; dppo --version says which dppo this is.",
        "The first run, on 4 ranks: mpirun -n 4 dppo run",
    ])  # fmt: skip


@until_its_reader_leaves
def main(argv: Sequence[str] | None = None) -> int:
    """Starts the command. Returns the exit code where the command returns."""
    words = list(sys.argv[1:] if argv is None else argv)
    name, *rest = words or ["--help"]
    if name in ("-h", "--help", "help"):
        print(overview())
        return 0
    if name == "--version":
        print(VERSION)
        return 0
    if name == COMPLETION:
        from dppo.settings import completion

        return completion.main(rest, _parsers)
    if (command := commands().get(name)) is None:
        return _unknown(name)
    if not sys.flags.safe_path and (folder := os.getcwd()) not in sys.path:
        sys.path.insert(0, folder)  # of a script, Python puts the script's folder there
    sys.argv[1:] = rest
    # a run's first lines depend on being the main module, and so does what multiprocessing starts
    runpy.run_module(command.module, run_name="__main__", alter_sys=True)
    return 0


def _unknown(name: str) -> int:
    from dppo.cluster.launcher import is_first
    from dppo.settings.commands import wrong_use
    from dppo.settings.values import as_name, nearest

    if name.startswith("-") or name.endswith(".toml"):
        meant = f"; did you mean dppo run {as_name(name)}?"
    else:
        meant = nearest(name, [*commands(), COMPLETION])
    return wrong_use(f"{as_name(name)}: no such command{meant or '; dppo lists them'}", is_shown=is_first())


def _parsers() -> dict[str, Any]:
    return {name: _parser_of(command.module) for name, command in commands().items() if name != "run"}


def _parser_of(name: str) -> Any:
    module = import_module(name)
    return (import_module(f"{name}.__main__") if hasattr(module, "__path__") else module)._parser()


if __name__ == "__main__":
    sys.exit(main())
