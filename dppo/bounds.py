"""Checks settings against their types and ranges: makes a value plain, or refuses it with the setting's name."""

from __future__ import annotations

import itertools
import numbers
import operator
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from decimal import Decimal, InvalidOperation
from functools import cache
from math import isfinite
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

SHOWN = 80
"""The largest number of characters of a value that a message shows."""
LONGEST_TEXT = 4096
DEEPEST = 16
"""The largest number of levels of tables and lists in one another."""
LONGEST_S = 1e9
"""The largest number of seconds, 31 years: a larger one overflows somewhere, and means never."""
MOST_WEIGHTS = 10**8
"""Between the hidden layers of a network."""
_CASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""The names of cases, which are parts of names of files and of keys."""


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
    text. Numbers and arrays of NumPy and torch become Python's, in tables as well. Nothing else is converted.

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
    if kind.is_table:
        if not isinstance(value, Mapping):
            raise ValueError(f"{name}={shown(given)} must be a table of names and values")
        return _table(value, name)
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
    is_table: bool
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
    return _Kind(plain, NoneType in options, is_dataclass(plain), get_origin(plain) is dict, choices, each, bounds)


def _table(values: Mapping[Any, Any], name: str) -> dict[str, Any]:
    """Returns a table of keyword arguments as a new dict of plain values. A dash in a name means an underscore."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        keyword = key.replace("-", "_") if isinstance(key, str) else ""
        if not keyword.isidentifier():
            raise ValueError(f"{name}: {shown(key)} is no name of an argument: letters, digits and _ only")
        if keyword in out:
            raise ValueError(f"{name}: {keyword} is there twice: leave one out")
        out[keyword] = _settled_part(value, f"{name}.{keyword}")
    return out


def settled_cases(tables: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    """Returns the cases of a run, each with a `name` and `env_kwargs`. Raises ValueError with the repair."""
    out: dict[str, dict[str, Any]] = {}
    for number, table in enumerate(tables):
        if "name" not in table:
            raise ValueError(f'cases[{number}] has no name: write name = "…" into this table [[cases]]')
        name = table["name"]
        if not isinstance(name, str) or not _CASE.fullmatch(name):
            raise ValueError(
                f"cases[{number}].name={shown(name)} must have 1 to 64 characters: letters, digits, _, - and . only,"
                " the first a letter or a digit"
            )
        if unknown := sorted(table.keys() - {"name", "env_kwargs"}):
            raise ValueError(
                f"cases.{name}.{as_name(unknown[0])}: a case has name and env-kwargs only; arguments of the environment"
                " go into its table [cases.env-kwargs]"
            )
        if name in out:
            raise ValueError(f"cases: the name {name} is there twice: each case needs a name of its own")
        kwargs = settled(dict[str, Any], table.get("env_kwargs", {}), f"cases.{name}.env_kwargs")
        out[name] = {"name": name, "env_kwargs": kwargs}
    return tuple(out.values())


def settle_schedule(optim: Any) -> None:
    """Brings the older name of an OptimConfig's schedule to the newer one. Raises ValueError where they are at odds."""
    if optim.anneal is None:
        return
    meant = "linear" if optim.anneal else "constant"
    require(
        optim.schedule in (None, meant),
        f"optim.anneal={str(optim.anneal).lower()} means optim.schedule={meant}, and optim.schedule={optim.schedule} is"
        " set: leave optim.anneal out",
    )
    object.__setattr__(optim, "schedule", meant)
    object.__setattr__(optim, "anneal", None)  # so that a later schedule is not at odds with it


def require_places(setting: str, names: Sequence[str]) -> None:
    """Raises ValueError where one of the names is no `module:callable`."""
    for name in names:
        require(":" in name, f"{setting}={name!r} must have the form module:callable")


def check_network(model: Any) -> None:
    """Raises ValueError where settings of the section `model` rule each other out."""
    require(
        all(1 <= n <= 8192 for n in model.hidden) and len(model.hidden) <= 16,
        f"model.hidden={shown(model.hidden)} must hold positive sizes of at most 8192, and at most 16 of them",
    )
    weights = sum(a * b for a, b in itertools.pairwise(model.hidden))
    require(
        weights <= MOST_WEIGHTS,
        f"model.hidden={shown(model.hidden)} makes {weights:,} weights between these layers, and at most"
        f" {MOST_WEIGHTS:,} can be trained: choose smaller ones",
    )
    require(
        model.factory is None or ":" in model.factory,
        f"model.factory={model.factory!r} must have the form module:function",
    )
    require(
        not (model.factory and model.backend == "numpy"),
        "model.backend=numpy cannot run model.factory, which is a torch network: leave model.backend at auto",
    )
    require(
        not (model.core and model.backend == "numpy"),
        f"model.backend=numpy has no memory, and model.core={model.core} is a torch network: leave model.backend at"
        " auto",
    )
    for field in fields(model):
        if field.name not in ("sequence", "core_size"):
            continue
        value, default, name = getattr(model, field.name), field.default, field.name
        require(
            bool(model.core or model.factory) or value == default,
            f"model.{name}={value} is for networks with memory, and this one has none: set model.core to gru or"
            " lstm, or leave it out",
        )
    require(
        not (model.core and model.factory),
        f"model.core={model.core} is of dppo's own network, which model.factory replaces: leave one of them out",
    )


def _settled_part(value: Any, name: str, depth: int = 0) -> Any:
    """Returns a value of a table as TOML and JSON hold it. Raises ValueError where they cannot."""
    given, value = value, _plain(value)
    if depth > DEEPEST:
        raise ValueError(f"{name} is nested too deeply: at most {DEEPEST} levels")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{name}: the key {shown(key)} must be a text")
            _require_text(key, name)
        return {str(key): _settled_part(part, f"{name}.{as_name(key)}", depth + 1) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_settled_part(part, name, depth + 1) for part in value]
    if type(value) is str:
        _require_text(value, name)
    elif type(value) is int and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name}={shown(given)} must lie in [-2**63, 2**63)")
    elif type(value) is float and not isfinite(value):
        raise ValueError(f"{name}={shown(given)} must be finite")
    elif type(value) not in (bool, int, float):
        raise ValueError(f"{name}={shown(given)} must be a number, a text, true or false, or a list or table of these")
    return value


def require(condition: bool, message: str) -> None:
    """Raises ValueError with this message unless the condition is true."""
    if not condition:
        raise ValueError(message)


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
