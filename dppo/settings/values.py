"""Converts settings to plain values and back; names settings in files, flags and messages."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from dppo.bounds import as_name as as_name
from dppo.bounds import (
    hints,
    require,
    settled,
    shown,
)
from dppo.config import Config

C = TypeVar("C")


def as_dict(config: Any) -> dict[str, Any]:
    """Returns nested plain values, in the order of the fields; None is left out (TOML has none)."""
    out: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            out[f.name] = as_dict(value)
        elif value is not None:
            out[f.name] = list(value) if isinstance(value, tuple) else value
    return out


def updated(config: C, values: dict[str, Any], where: str = "") -> C:
    """Returns `config` with nested `values` put in; keys are field names with - or _. What is not named stays, also of
    a table of arguments.

    Raises:
      ValueError: a key is unknown (the message has the nearest one), or a value has the wrong type; names `where`.
    """
    section: Any = type(config)
    known = hints(section)
    changes: dict[str, Any] = {}
    for key, value in values.items():
        name, called = key.replace("-", "_"), f"{where}{as_name(key)}"
        if name not in known:
            raise ValueError(f"{called}: no such setting{suggestion(called, known)}")
        require(name not in changes, f"{called} is there twice: leave one out")
        current = getattr(config, name)
        if is_dataclass(current) and not isinstance(current, type):
            require(isinstance(value, dict), f"{called} is a section, but {shown(value)} was given")
            changes[name] = updated(current, value, f"{called}.")
        elif isinstance(current, dict):
            changes[name] = current | settled(known[name], value, called)
        else:
            changes[name] = settled(known[name], value, called)
    return replace(config, **changes)  # type: ignore[type-var]


def setting_names(cls: type = Config, prefix: str = "") -> list[str]:
    """Returns the full names of all settings: total_steps, ppo.clip, …"""
    names: list[str] = []
    for key, hint in hints(cls).items():
        names += setting_names(hint, f"{key}.") if is_dataclass(hint) else [prefix + key]  # type: ignore[arg-type]
    return names


def suggestion(name: str, known: Iterable[str] = (), write: Callable[[str], str] = str) -> str:
    """Returns `; did you mean X?`, or "" where no setting is near. Both lr and server.lr lead to optim.lr.

    Args:
      known: names to look among, instead of those of all settings.
      write: writes a setting's name as the place writes it in which it was looked for.
    """
    last = name.replace("-", "_").rpartition(".")[2]
    meant = [full for full in setting_names() if full.rpartition(".")[2] == last and "." in full]
    if meant:
        return f"; did you mean {' or '.join(map(write, meant))}?"
    return nearest(last if known else name, known or map(write, setting_names()))


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `; did you mean X?`, or "" where no known name is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
