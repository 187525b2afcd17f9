"""Checks settings against their types and ranges: makes a value plain, or refuses it with the setting's name."""

from __future__ import annotations

import numbers
import operator
import os
import re
from dataclasses import is_dataclass
from decimal import Decimal, InvalidOperation
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

SHOWN = 80
"""The largest number of characters of a value that a message shows."""
LONGEST_TEXT = 4096
LONGEST_S = 1e9
"""The largest number of seconds, 31 years: a larger one overflows somewhere, and means never."""


class Range(NamedTuple):
    """Numbers from `low` to `high`; NaN is in no range."""

    low: float
    high: float
    said: str
    """The words of a message after the name and the value."""
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int | float):
            return False
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)


def within(low: float, high: float, *, open_low: bool = False, open_high: bool = False) -> Range:
    left, right = "(" if open_low else "[", ")" if open_high else "]"
    return Range(low, high, f"must lie in {left}{low:g}, {high:g}{right}", open_low, open_high)


def positive(most: float, *, otherwise: str = "") -> Range:
    """Returns the range of positive numbers up to `most`.

    Args:
      otherwise: the message's words for what else is allowed, as ", or left out".
    """
    return Range(0, most, f"must be positive{otherwise}, and at most {most:g}", open_low=True)


def at_least(least: float, most: float) -> Range:
    return Range(least, most, f"must be at least {least:g}, and at most {most:g}")


def not_negative(most: float, *, zero: str = "") -> Range:
    """Returns the range from 0 to `most`.

    Args:
      zero: the meaning of 0, where it is more than a number.
    """
    said = f"must be 0 ({zero}) or positive" if zero else "must not be negative"
    return Range(0, most, f"{said}, and at most {most:g}")


class Section:
    """The base of dataclasses of settings: however one is made, each value has its type and lies in its range."""

    def __post_init__(self) -> None:
        # the section PPOConfig has the name ppo in messages; Config itself has none
        section: Any = type(self)
        name = section.__name__.removesuffix("Config").lower()
        for key, hint in hints(section).items():
            value = settled(hint, getattr(self, key), f"{name}.{key}" if name else key)
            object.__setattr__(self, key, value)


@cache
def hints(section: Any) -> dict[str, Any]:
    """Returns the settings of a section, with their types and ranges."""
    return get_type_hints(section, include_extras=True)


def settled(hint: Any, value: Any, name: str) -> Any:
    """Returns `value` as the plain type that `hint` asks for.

    A whole number is accepted for a float and the other way round (1e6 is an int), a list for a tuple, a path for a
    text. Numbers and arrays of NumPy and torch become Python's. Nothing else is converted.

    Raises:
      ValueError: the type is wrong, or the value is out of its range.
    """
    kind = _kind(hint)
    if value is None and kind.is_optional:
        return None
    if kind.is_section:
        if not isinstance(value, kind.plain):
            raise ValueError(f"{name}={shown(value)} must be a {kind.plain.__name__}")
        return value
    given, value = value, _plain(value)
    if kind.choices:
        if type(value) is not str or value not in kind.choices:
            raise ValueError(f"{name}={shown(given)} must be one of {', '.join(kind.choices)}")
        return value
    if kind.each is not None:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name}={shown(given)} must be a list")
        return tuple(settled(kind.each, v, name) for v in value)
    if kind.plain is int and type(value) is float and value.is_integer():
        value = int(value)
    if kind.plain is float and type(value) is int:
        # what is too large for a float is out of every range
        value = float(value) if abs(value) < 2**1000 else float("inf")
    if type(value) is not kind.plain:
        raise ValueError(f"{name}={shown(given)} must be of type {kind.plain.__name__}")
    if kind.plain is str:
        _require_text(value, name)
    if kind.bounds is not None and value not in kind.bounds:
        raise ValueError(f"{name}={shown(_plain(given))} {kind.bounds.said}")
    return value


class _Kind(NamedTuple):
    """The parts of a type hint."""

    plain: Any
    is_optional: bool
    is_section: bool
    choices: tuple[str, ...]
    each: Any
    """The hint of a tuple's values."""
    bounds: Range | None


@cache
def _kind(hint: Any) -> _Kind:
    bounds = None
    if get_origin(hint) is Annotated:
        hint, bounds = get_args(hint)
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    plain = next(o for o in options if o is not NoneType)
    choices = get_args(plain) if get_origin(plain) is Literal else ()
    each = get_args(plain)[0] if get_origin(plain) is tuple else None
    return _Kind(plain, NoneType in options, is_dataclass(plain), choices, each, bounds)


def is_whole(hint: Any) -> bool:
    """Returns whether a setting of this type is a whole number, or several."""
    return hint is int or any(map(is_whole, get_args(hint)))


def _plain(value: Any) -> Any:
    """Turns numbers, texts and lists of NumPy, torch and other libraries into Python's own."""
    if type(value) in (bool, int, float, str):
        return value
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if callable(getattr(value, "tolist", None)):  # NumPy's and torch's
        value = value.tolist()
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return operator.index(value)
    if isinstance(value, numbers.Real):
        return float(value)
    return str.__str__(value) if isinstance(value, str) else value


def _require_text(value: str, name: str) -> None:
    """Refuses a text that cannot go into config.toml and into names of files."""
    if len(value) > LONGEST_TEXT:
        raise ValueError(f"{name}={shown(value)} is too long: {len(value)} characters, at most {LONGEST_TEXT}")
    if "\0" in value:
        raise ValueError(f"{name}={shown(value)} holds a NUL character: leave it out")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{name}={shown(value)} holds bytes that are no UTF-8: give it another name")


def shown(value: object) -> str:
    """Returns a value as messages show it: one line of at most `SHOWN` characters, whatever the value is."""
    try:
        text = repr(value)
    except Exception:  # integers of thousands of digits, lists in lists in lists …, other people's classes
        text = f"<{type(value).__name__} that cannot be shown>"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def as_name(key: str) -> str:
    """Returns a key of somebody's file as messages show it."""
    return key if key.isprintable() and len(key) <= SHOWN else shown(key)


def whole_number(text: str) -> int | None:
    """Reads 1000, 1_000 and 1e3 as an int. Returns None for other texts, and for more than 30 digits."""
    try:
        number = Decimal(text.strip())
        return int(number) if number.is_finite() and number.adjusted() < 30 and number == number.to_integral() else None
    except InvalidOperation:
        return None


def digits(text: str, most: int) -> int | None:
    """Returns the number in an environment variable; None where there is none, or one above `most`."""
    is_number = re.fullmatch("[0-9]{1,18}", text) is not None
    return int(text) if is_number and int(text) <= most else None
