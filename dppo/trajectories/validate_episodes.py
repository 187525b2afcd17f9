"""Checks a segment's table of episodes, which must follow from the steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from dppo.data import EpisodeProgress
from dppo.trajectories.format import EPISODES, episode_table, merged_tables


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that docs/trajectories.md rules out."""

    file: str
    """The path, relative to the run's directory."""
    dataset: str | None
    row: int | None
    """Index of the first value that is wrong, along the dataset's first axis."""
    what: str

    def __str__(self) -> str:
        place = "".join(f", {part}" for part in (self.dataset, None if self.row is None else f"row {self.row}") if part)
        return f"{self.file}{place}: {self.what}"


@dataclass(frozen=True, slots=True)
class Findings:
    """Adds violations of one file to a list."""

    file: str
    violations: list[Violation]

    def add(self, dataset: str | None, row: int | None, what: str) -> None:
        self.violations.append(Violation(self.file, dataset, row, what))


@dataclass(frozen=True, slots=True)
class Ends:
    """The state of the environments' episodes after the last row of a segment, [N] each."""

    end_row: int
    progress: EpisodeProgress
    seeds: np.ndarray
    """The seeds of the present episodes."""


@dataclass(slots=True)
class Inspected:
    """Facts about a segment that others are compared with; None where one is unknown."""

    attrs: dict[str, Any] = field(default_factory=dict)
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """Empty where they are unknown, as `versions`."""
    versions: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    num_envs: int | None = None
    shapes: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """(type, shape) of one observation and of one action."""
    ends: Ends | None = None
    is_enabled: bool = False
    """Whether the segment's settings say that trajectories are written."""


def _episodes(data: dict[str, np.ndarray], findings: Findings, found: Inspected, before: Ends | None) -> None:
    """Compares the table with what follows from the steps."""
    rewards, terminations, truncations, valid, rows = (
        data[f"steps/{name}"] for name in ("rewards", "terminations", "truncations", "valid", "row")
    )
    table = {name: data[f"episodes/{name}"] for name in EPISODES}
    if not len(rows):
        return
    known, num_envs = before, rewards.shape[1]
    if before is None and not rows[0]:  # the beginning of the run
        zeros = np.zeros(num_envs, np.int64)
        known = Ends(0, EpisodeProgress(zeros - 1, zeros, np.zeros(num_envs)), zeros - 1)
    goes_on = known is not None and known.end_row == rows[0]
    cuts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    expected: list[dict[str, np.ndarray]] = []
    for start, stop in pairwise(cuts):
        part = slice(start, stop)
        begun = (table["start"] >= start) & (table["start"] < stop)
        here = {name: values[begun] for name, values in table.items()}
        progress = _progress(here, start, rewards[part], known if goes_on and start == 0 else None)
        one, after = episode_table(rewards[part], terminations[part], truncations[part], valid[part], progress)
        one["start"] += start
        expected.append(one)
    _compare(table, merged_tables(expected), np.abs(rewards.astype(np.float64)), findings)
    last, seeds = _numbers(table, known, goes_on, findings), np.full(num_envs, -1, np.int64)
    for n in range(num_envs):
        after.episodes[n], seeds[n], piece = last.get(n, (-1, -1, None))
        if piece is not None and after.lengths[n]:  # the table's own return, so that roundings do not add up
            after.returns[n] = table["return"][piece]
    found.ends = Ends(int(rows[-1]) + 1, after, seeds)


def _progress(here: dict[str, np.ndarray], first: int, rewards: np.ndarray, known: Ends | None) -> EpisodeProgress:
    """Returns the progress before the rows of `rewards`, whose first index is `first`. An episode that continues has
    the progress `known` from the segment before or, without that, the table's. An environment that could not be brought
    back begins anew.
    """
    num_envs = rewards.shape[1]
    progress = EpisodeProgress(np.zeros(num_envs, np.int64), np.zeros(num_envs, np.int64), np.zeros(num_envs))
    for n in range(num_envs):
        mine = np.flatnonzero(here["env"] == n)
        if not len(mine) or not here["offset"][mine[0]]:
            continue
        if known is not None:
            progress.lengths[n], progress.returns[n] = known.progress.lengths[n], known.progress.returns[n]
            continue
        one = mine[0]
        start = int(here["start"][one]) - first
        progress.lengths[n] = here["offset"][one]
        steps = rewards[start : start + int(here["length"][one]), n]
        progress.returns[n] = here["return"][one] - steps.astype(np.float64).sum()
    return progress


def _compare(
    table: dict[str, np.ndarray], expected: dict[str, np.ndarray], sizes: np.ndarray, findings: Findings
) -> None:
    if len(table["env"]) != len(expected["env"]):
        findings.add("episodes", None, f"lists {len(table['env'])} pieces; the steps have {len(expected['env'])}")
        return
    for name in ("env", "start", "length", "offset", "terminated", "truncated", "complete"):
        for i in np.flatnonzero(table[name] != expected[name])[:1].tolist():
            findings.add(f"episodes/{name}", i, f"is {table[name][i]}; by the steps it is {expected[name][i]}")
            if name in ("env", "start", "length"):
                return
    spans = zip(expected["env"].tolist(), expected["start"].tolist(), expected["length"].tolist(), strict=True)
    moved = np.array([sizes[start : start + length, n].sum() for n, start, length in spans])
    got, want = table["return"], expected["return"]
    # rewards are stored as float32: where they cancel each other, the sum is less exact than they are
    is_right = np.abs(got - want) <= 1e-4 * np.abs(want) + 1e-6 * moved + 1e-6
    for i in np.flatnonzero(~is_right)[:1].tolist():
        findings.add("episodes/return", i, f"is {got[i]}; the rewards sum up to {want[i]}")


def _numbers(
    table: dict[str, np.ndarray], known: Ends | None, goes_on: bool, findings: Findings
) -> dict[int, tuple[int, int, int | None]]:
    """Checks that an episode keeps its number and its seed, and that the next one has a higher number.

    Returns:
      {environment: (number and seed of its last episode, index of its last piece)}; no index where the segment before
      has that piece.
    """
    last: dict[int, tuple[int, int, int | None]] = {}
    if known is not None:
        numbers, seeds = known.progress.episodes.tolist(), known.seeds.tolist()
        last = {n: (*episode, None) for n, episode in enumerate(zip(numbers, seeds, strict=True))}
    ended = table["terminated"] | table["truncated"]
    for i in np.lexsort((table["start"], table["env"])).tolist():
        env, number, seed = (int(table[name][i]) for name in ("env", "id", "seed"))
        if env in last:
            before, its_seed, piece = last[env]
            if not table["offset"][i] or (piece is not None and ended[piece]):
                if number <= before:
                    findings.add("episodes/id", i, f"is {number}, after {before} in the same environment")
            elif number < before or (piece is None and goes_on and number != before):
                findings.add("episodes/id", i, f"is {number}; the episode that goes on is {before}")
            elif number == before and seed != its_seed:
                findings.add("episodes/seed", i, f"is {seed}; the episode began with {its_seed}")
        last[env] = number, seed, i
    return last


def _finals(data: dict[str, np.ndarray], findings: Findings) -> None:
    rows, envs = data["final/row"], data["final/env"]
    ended = data["steps/terminations"] | data["steps/truncations"]
    expected = {(int(t), int(n)) for t, n in np.argwhere(ended & data["steps/valid"])}
    seen: set[tuple[int, int]] = set()
    for i, key in enumerate(zip(rows.tolist(), envs.tolist(), strict=True)):
        if key not in expected:
            findings.add("final/row", i, f"step {key[0]} of environment {key[1]} ended no episode")
        elif key in seen:
            findings.add("final/row", i, f"step {key[0]} of environment {key[1]} is listed twice")
        seen.add(key)
    missing = sorted(expected - seen)
    if missing:
        row, env = missing[0]
        more = f"; {len(missing)} are missing in all" if len(missing) > 1 else ""
        findings.add("final/row", None, f"lacks the end at step {row} of environment {env}{more}")
