"""The table [search] of a sweep.toml: what is drawn, from where, how often, and what is optimised."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from dppo.errors import UsageError
from dppo.settings.commands import shown
from dppo.settings.values import nearest
from dppo.study.spec import MOST_TASKS, Sweep, as_text, config_of, flatten

JOURNAL = "study.journal"
"""The file of the study, in the sweep's folder."""
SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("none", "median", "hyperband", "asha")
RETURN, BEST_RETURN, STEPS = "return", "best_return", "steps_to_target"
OBJECTIVES = (RETURN, BEST_RETURN, STEPS)
KEYS = ("trials", "sampler", "pruner", "optimise", "seeds", "seed", "space")
RANGE = ("low", "high", "log", "step")
RECORDER = "dppo.study.pruning:Pruning"
"""The recorder of runs that a pruner may stop."""

Value = int | float | str | bool


class Dimension(NamedTuple):
    """The values that a setting may have: from `low` to `high`, both included, or one of `choices`."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    choices: list[Any] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the values are whole numbers."""
        return type(self.low) is int and type(self.high) is int and type(self.step) in (int, type(None))

    @property
    def names(self) -> list[Value]:
        """The choices as a study keeps them: a list or a table as its text of JSON."""
        return [choice if isinstance(choice, Value) else json.dumps(choice) for choice in self.choices or ()]

    def setting(self, value: Value) -> Any:
        """Returns the setting that a study's value stands for."""
        return value if self.choices is None else self.choices[self.names.index(value)]

    def in_words(self) -> str:
        """Returns the range or the choices for a person."""
        if self.choices is not None:
            return " or ".join(map(as_text, self.choices))
        law = " in steps of " + str(self.step) if self.step else ", logarithmic" if self.log else ""
        return f"{self.low} to {self.high}{law}{', whole numbers' if self.is_whole else ''}"

    def ends(self) -> list[Value]:
        """Returns the values at which a setting is checked before a search begins."""
        if self.choices is not None:
            return self.names
        cells = self.cells() if self.step is not None else None
        return [self.low, self.high] if cells is None else [*cells[:2], cells[-1]]

    @property
    def last(self) -> float:
        """The largest value: `high`, or where the last step ends below it."""
        return self.high if self.step is None else float((self.cells() or [self.high])[-1])

    def cells(self) -> list[Value] | None:
        """Returns all values; None where there are infinitely many."""
        if self.choices is not None:
            return self.names
        step = self.step or (1 if self.is_whole else None)
        if step is None:
            return None
        numbers = (self.low + step * k for k in range(math.floor((self.high - self.low) / step + 1e-9) + 1))
        return [number if self.is_whole else float(f"{number:.12g}") for number in numbers]


class Search(NamedTuple):
    """A search, as the file has it."""

    fixed: dict[str, Any]
    space: dict[str, Dimension]
    """What is drawn, by flag's name."""
    trials: int
    sampler: str
    pruner: str
    optimise: str
    seeds: list[int]
    """The seeds with which each trial is run, one after another; its value is the mean over them."""
    seed: int
    """The seed of the sampler."""

    @property
    def minimises(self) -> bool:
        return self.optimise == STEPS

    def settings(self, params: dict[str, Value], seed: int) -> dict[str, Any]:
        """Returns all settings of a trial's run, by flag's name."""
        drawn = {name: self.space[name].setting(value) for name, value in params.items()}
        settings = self.fixed | drawn | {"seed": seed}
        if self.pruner != "none":
            given = settings.get("log.recorder", [])
            settings["log.recorder"] = [*(given if isinstance(given, list) else [given]), RECORDER]
        return settings

    def grid(self) -> list[dict[str, Value]]:
        """Returns all combinations of values; the last name varies fastest."""
        cells = {name: dimension.cells() or [] for name, dimension in self.space.items()}
        return [dict(zip(cells, cell, strict=True)) for cell in itertools.product(*cells.values())]


def read_search(sweep: Sweep, path: Path) -> Search:
    """Returns the search that the sweep in the file `path` describes. Raises UsageError where something is wrong. Only
    `check_settings` checks whether a setting exists and may have its values.
    """
    try:
        return _read(sweep.fixed, sweep.search or {})
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _read(fixed: dict[str, Any], table: dict[str, Any]) -> Search:
    for key in table:
        if key not in KEYS:
            raise UsageError(f"search.{key}: [search] has no such key{nearest(key, KEYS)}")
    if not isinstance(table.get("space"), dict) or not table["space"]:
        raise UsageError(
            "[search.space] is missing: it says what is drawn, such as optim.lr = {low = 1e-4, high = 1e-2}"
        )
    drawn = flatten(table["space"], "search.space.", is_value=_is_dimension)
    space = {name: _dimension(f"search.space.{name}", value) for name, value in drawn.items()}
    if twice := space.keys() & fixed.keys():
        raise UsageError(f"{min(twice)} is both in [fixed] and in [search.space]: leave one out")
    for own in ("resume", "run-dir", "dry-run", "seed"):
        if own in space:
            what = "seeds stand in search.seeds" if own == "seed" else "each trial has a run directory of its own"
            raise UsageError(f"search.space.{own}: {what}: leave it out")
    sampler = _one_of(table, "sampler", SAMPLERS)
    trials: Any = table.get("trials")
    seed: Any = table.get("seed", 0)
    if sampler == "grid":
        size = _grid_size(space)
        trials = size if trials is None else trials
        if _is_whole(trials, 1) and trials > size:
            raise UsageError(f"search.trials={trials} are more than the {size} combinations of the grid")
    if not _is_whole(trials, 1) or trials > MOST_TASKS:
        raise UsageError(f"search.trials={shown(trials)} must be a whole number from 1 to {MOST_TASKS}")
    if not _is_whole(seed, 0):
        raise UsageError(f"search.seed={shown(seed)} must be a whole number of at least 0: it seeds the sampler")
    return Search(
        {name: value for name, value in fixed.items() if name != "seed"}, space, trials, sampler,
        _one_of(table, "pruner", PRUNERS), _one_of(table, "optimise", OBJECTIVES), _seeds(fixed, table), seed,
    )  # fmt: skip


def _one_of(table: dict[str, Any], key: str, known: tuple[str, ...]) -> str:
    value = table.get(key, known[0])
    if value not in known:
        raise UsageError(f"search.{key}={shown(value)} must be one of {', '.join(known)}{nearest(str(value), known)}")
    return str(value)


def _is_whole(value: Any, least: int) -> bool:
    return type(value) is int and least <= value < 2**63


def _seeds(fixed: dict[str, Any], table: dict[str, Any]) -> list[int]:
    if "seeds" in table and "seed" in fixed:
        raise UsageError("seed is in [fixed], and search.seeds as well: leave one out")
    seeds = table.get("seeds", [fixed.get("seed", 1)])
    if not isinstance(seeds, list) or not seeds or not all(_is_whole(s, 0) for s in seeds):
        raise UsageError(f"search.seeds={shown(seeds)} must be a list of whole numbers, such as [1, 2, 3]")
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"search.seeds={shown(seeds)} holds a seed twice: the same run would be made again")
    return seeds


def _grid_size(space: dict[str, Dimension]) -> int:
    size = 1
    for name, dimension in space.items():
        if dimension.choices is None and dimension.step is None and not dimension.is_whole:
            raise UsageError(f'search.space.{name} needs a step, or choices, for sampler = "grid"')
        if (dimension.high - dimension.low) / (dimension.step or 1) > MOST_TASKS:
            size = MOST_TASKS + 1
            break
        size *= len(dimension.cells() or ())
    if size > MOST_TASKS:
        raise UsageError(f"the grid of [search.space] has more than {MOST_TASKS} combinations")
    return size


# -- what is drawn --------------------


def _is_dimension(table: dict[str, Any]) -> bool:
    """Returns whether a table is a range or a list of choices, perhaps a wrong one: some of its keys say so."""
    values = [table[key] for key in ("choices", *RANGE) if key in table]
    return bool(values) and all(isinstance(value, int | float | list | str | bool) for value in values)


def _dimension(name: str, table: Any) -> Dimension:
    wanted = "{low = a, high = b}, with log = true or step = s if you like, or {choices = [a, b, …]}"
    if not isinstance(table, dict):
        raise UsageError(f"{name}={shown(table)} must say what is drawn: {wanted}")
    known = ("choices", *RANGE)
    for key in table:
        if key not in known:
            raise UsageError(f"{name}.{key}: no such key{nearest(key, known)}; it must be {wanted}")
    if "choices" in table:
        return _choices(name, table)
    low, high, log, step = (table.get(key) for key in RANGE)  # type: Any, Any, Any, Any
    if not _is_number(low) or not _is_number(high):
        raise UsageError(f"{name}={shown(table)} must have two numbers, {wanted}")
    if not low < high:
        raise UsageError(f"{name}: low={shown(low)} must be below high={shown(high)}")
    if log not in (None, True, False):
        raise UsageError(f"{name}.log={shown(log)} must be true or false")
    if log and (low <= 0 or step is not None):
        raise UsageError(f"{name}: log = true needs a positive low, and no step")
    if step is not None and not (_is_number(step) and 0 < step <= high - low):
        raise UsageError(f"{name}.step={shown(step)} must be positive, and at most high - low")
    dimension = Dimension(low, high, bool(log), step)
    return dimension if dimension.is_whole else Dimension(float(low), float(high), bool(log), step and float(step))


def _choices(name: str, table: dict[str, Any]) -> Dimension:
    choices = table["choices"]
    if len(table) > 1:
        raise UsageError(
            f"{name} has choices, and {', '.join(sorted(table.keys() - {'choices'}))} as well: leave that out"
        )
    if not isinstance(choices, list) or len(choices) < 2:
        raise UsageError(f"{name}.choices={shown(choices)} must be a list of two values or more")
    names = Dimension(choices=choices).names
    if len(set(names)) < len(names):  # 1, 1.0 and true are equal
        raise UsageError(f"{name}.choices={shown(choices)} holds a value twice")
    return Dimension(choices=choices)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < 2**63


def check_settings(search: Search, path: Path) -> None:
    """Raises UsageError where a setting does not exist, or the ends of its range are not allowed with the others."""
    first = {name: dimension.ends()[0] for name, dimension in search.space.items()}
    try:
        config = config_of(search.settings(first, search.seeds[0]))
        for name, dimension in search.space.items():
            for value in dimension.ends()[1:]:
                config_of(search.settings(first | {name: value}, search.seeds[0]))
        if search.optimise == STEPS and config.target_return is None and config.eval.target_return is None:
            raise UsageError(
                f'optimise = "{STEPS}" needs a target: write target-return = …, or eval.target-return, under [fixed]'
            )
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
