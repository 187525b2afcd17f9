"""Reads and writes arguments of an environment's constructor as a command line has them: KEY=VALUE, values in TOML."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time
from typing import Any, get_args, get_origin

from dppo.bounds import as_name, shown
from dppo.config import Config
from dppo.errors import UsageError

FLAG = "env-kwargs"
"""The flag that takes these pairs, and the table in files."""
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_TEXT_IN_PYTHON = {"True": "true", "False": "false", "None": None}


def is_pair(text: str) -> bool:
    """Returns whether `text` has the form KEY=VALUE."""
    key, equals, _ = text.partition("=")
    return bool(equals) and key.replace("-", "_").isidentifier()


def read_pairs(texts: Iterable[str]) -> dict[str, Any]:
    """Returns {KEY: value} of texts KEY=VALUE. Raises UsageError, with the repair, where one is wrong."""
    out: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--{FLAG} {as_name(text)} must have the form KEY=VALUE, without spaces around the =")
        keyword = key.replace("-", "_")
        if not keyword.isidentifier():
            raise UsageError(
                f"--{FLAG} {as_name(text)}: {as_name(key) or 'nothing'} is no name of an argument, which has letters,"
                " digits and _ only; give a table as KEY={name=value}"
            )
        if keyword in out:
            raise UsageError(f"--{FLAG} {keyword} is there twice: leave one out")
        out[keyword] = _value(keyword, value.strip())
    return out


def as_pair(key: str, value: Any) -> str:
    """Returns the text KEY=VALUE that `read_pairs` reads back as this value."""
    return f"{key}={as_toml(value)}"


def in_words(config: Config) -> str:
    """Returns the environment with its arguments, wrappers and number of cases, for a person."""
    pairs = (as_pair(key, value) for key, value in config.env_kwargs.items())
    around = [f"in {wrapper}" for wrapper in config.wrappers]
    cases = [f"in {len(config.cases)} case{'s' if len(config.cases) > 1 else ''}"] if config.cases else []
    return " ".join([config.env, *pairs, *around, *cases])


def read_cases(texts: Iterable[str]) -> tuple[dict[str, Any], ...]:
    """Returns the tables of texts as {name="cold",env-kwargs={…}}. Raises UsageError where one is no table."""
    out = []
    for text in texts:
        try:
            out.append(tomllib.loads(f"it = {text}")["it"])
        except (ValueError, RecursionError) as error:
            raise UsageError(
                f"--cases {shown(text)} is no table of TOML: {error}; write '{{name=\"…\",env-kwargs={{KEY=VALUE}}}}',"
                " in the shell's quotes, or [[cases]] into a file"
            ) from error
    return tuple(out)


def as_case(case: Mapping[str, Any]) -> str:
    """Returns the text that `read_cases` reads back as this case."""
    return as_toml({key.replace("_", "-"): value for key, value in case.items()})


def as_toml(value: Any) -> str:
    """Returns a plain value as TOML in one line."""
    if isinstance(value, Mapping):
        parts = (f"{k if _BARE_KEY.fullmatch(k) else _quoted(k)} = {as_toml(v)}" for k, v in value.items())
        return f"{{{', '.join(parts)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    # a text of JSON is one of TOML, except that TOML wants this character escaped
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(key: str, text: str) -> Any:
    """Returns the value of TOML's `text`. A word without quotes is a text, unless it looks like another value."""
    try:
        read = tomllib.loads(f"it = {text}")
    except (ValueError, RecursionError) as error:
        _refuse_what_is_no_word(key, text, error)
        return text
    if read.keys() != {"it"}:  # line breaks, and further keys behind them
        raise UsageError(f"--{FLAG} {key}={shown(text)} holds more than one value: quote a text of several lines")
    value = read["it"]
    return text if isinstance(value, date | datetime | time) else value


def _refuse_what_is_no_word(key: str, text: str, error: Exception) -> None:
    """Raises UsageError for what was hardly meant as a text."""
    quoted = as_pair(key, text)
    if not text:
        raise UsageError(f"--{FLAG} {key}= has no value; '{quoted}' is the empty text")
    if text in _TEXT_IN_PYTHON:
        written = _TEXT_IN_PYTHON[text]
        repair = f"write {key}={written}" if written else "TOML has no None: leave it out"
        raise UsageError(f"--{FLAG} {key}={text} is Python, not TOML: {repair}, or '{quoted}' for the text")
    if text[0] in "[{\"'":
        raise UsageError(f"--{FLAG} {key}={shown(text)} is no TOML: {error}; put the whole in the shell's quotes")
    try:
        number = float(text)
    except ValueError:
        return
    raise UsageError(f"--{FLAG} {key}={text} is no number of TOML: write {key}={number:g}, or '{quoted}' for the text")


# -- tyro --------------------


def registry() -> Any:
    """Returns the rules by which tyro reads and shows a table of arguments, and a list of cases."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    rules = ConstructorRegistry()

    @rules.primitive_rule
    def table(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[dict[str, Any]] | None:
        if info.type_origin is not dict:
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="[KEY=VALUE [KEY=VALUE ...]]",
            instance_from_str=read_pairs,
            is_instance=lambda value: isinstance(value, dict),
            str_from_instance=lambda table: [as_pair(key, value) for key, value in table.items()],
        )

    @rules.primitive_rule
    def cases(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[tuple[dict[str, Any], ...]] | None:
        if info.type_origin is not tuple or get_origin(get_args(info.type)[0]) is not dict:
            return None
        return PrimitiveConstructorSpec(
            nargs="*", metavar="[{name=…,env-kwargs={…}} …]", instance_from_str=read_cases,
            is_instance=lambda value: isinstance(value, tuple), str_from_instance=lambda found: [*map(as_case, found)],
        )  # fmt: skip

    return rules
