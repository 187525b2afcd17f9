"""Parts that the flags of all commands share: parser, whole numbers, ranges, and how wrong use ends."""

from __future__ import annotations

import argparse
import functools
import os
import select
import sys
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec

from dppo.bounds import Range as Range
from dppo.bounds import at_least as at_least
from dppo.bounds import not_negative as not_negative
from dppo.bounds import shown as shown
from dppo.bounds import whole_number
from dppo.bounds import within as within
from dppo.config import VERSION as NUMBER
from dppo.errors import EXIT_FAILED, EXIT_USAGE, UsageError
from dppo.files import plain as plain

VERSION = f"dppo {NUMBER}"
Given = ParamSpec("Given")


class Parser(argparse.ArgumentParser):
    """The parser of all commands except dppo.run. It says what is wrong in one line, as dppo.run does."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.add_argument("--version", action="version", version=VERSION, help="show dppo's version")

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} -h")


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that says which checkpoint of a run is meant."""
    parser.add_argument(
        "--checkpoint",
        default="latest",
        metavar="best|latest|STEP",
        help="that of the best evaluation while training (dppo.run --eval.every), the newest one, or the one of so many"
        " environment steps (default: %(default)s)",
    )


def until_its_reader_leaves(main: Callable[Given, int]) -> Callable[Given, int]:
    """Ends a command without a traceback where nobody reads its output any more, as in `dppo | head -1`."""

    @functools.wraps(main)
    def command(*args: Given.args, **kwargs: Given.kwargs) -> int:
        try:
            code = main(*args, **kwargs)
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            if not _is_left(output := sys.stdout.fileno()):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), output)  # Python flushes once more when it ends
            return EXIT_FAILED

    return command


def _is_left(descriptor: int) -> bool:
    look = select.poll()
    look.register(descriptor, 0)
    return any(events & select.POLLERR for _, events in look.poll(0))


def wrong_use(message: object, *, is_shown: bool = True) -> int:
    """Prints the message, where this process is the one that does. Returns the exit code."""
    if is_shown:
        print(f"dppo: {message}", file=sys.stderr)
    return EXIT_USAGE


def integer(text: str) -> int:
    """Converts 1000, 1_000 or 1e3 to an integer; a type for argparse."""
    number = whole_number(text)
    if number is None:
        raise argparse.ArgumentTypeError(f"invalid int value: {shown(text)}")
    return number


def require(flag: str, value: float, bounds: Range) -> None:
    """Raises UsageError where the value of a flag is out of its range."""
    if value not in bounds:
        raise UsageError(f"{flag} {value} {bounds.said}")


def complain(message: object) -> None:
    """Prints a message of a command on standard error, as one line."""
    print(f"dppo: {plain(message)}", file=sys.stderr)
