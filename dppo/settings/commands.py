"""Parts that the flags of all commands share: parser, whole numbers, ranges, and how wrong use ends."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from dppo.bounds import Range as Range
from dppo.bounds import at_least as at_least
from dppo.bounds import not_negative as not_negative
from dppo.bounds import shown as shown
from dppo.bounds import whole_number
from dppo.bounds import within as within
from dppo.config import VERSION as NUMBER
from dppo.errors import EXIT_USAGE, UsageError
from dppo.files import plain as plain

VERSION = f"dppo {NUMBER}"


class Parser(argparse.ArgumentParser):
    """The parser of all commands except dppo.run. It says what is wrong in one line, as dppo.run does."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.add_argument("--version", action="version", version=VERSION, help="show dppo's version")

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} -h")


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
