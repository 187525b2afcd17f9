"""Puts whole episodes together from their pieces in the segments of a dump."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np

from dppo.trajectories.catalogue import Catalogue, opened, read
from dppo.trajectories.format import held_steps

_NUMBERS = ("rank", "env", "id", "first_row", "attempt", "length")


@dataclass(frozen=True, slots=True)
class Episode:
    """The recorded steps of an episode, L of them without a gap; the whole episode where `complete`."""

    rank: int
    env: int
    """Global number of the environment."""
    id: int
    """Number of the episode in its environment; the row it began in, where the environment has no seeds of its own."""
    seed: int | None
    """The seed that the environment was reset with; None where it has no seed of its own."""
    first_row: int
    """The row of the first recorded step; the others follow row by row."""
    attempt: int
    """The run's attempt that wrote the last step."""
    observations: np.ndarray
    """[L + 1, *obs] if the episode ended, with the true last observation; else [L, *obs]. Raw. Those of a Dict or a
    Tuple are one structured array, with a field for each part (of a Tuple: "0", "1", …), as are such actions.
    """
    actions: np.ndarray
    """[L, *act] as sent to the environment."""
    actions_raw: np.ndarray | None
    """[L, *act] as sampled, float32 or, in a Dict or a Tuple, the policy's own types; where that may differ."""
    rewards: np.ndarray
    """[L] float32, raw."""
    terminations: np.ndarray
    """[L] bool."""
    truncations: np.ndarray
    """[L] bool."""
    log_probs: np.ndarray
    """[L] float32, of the actions as sampled, under the policy that acted."""
    values: np.ndarray
    """[L] float32, in units of the normalised return."""
    policy_version: np.ndarray
    """[L] int64, version of the parameters that acted."""
    episode_return: float
    """Sum of the episode's raw rewards since it began, including steps that are not recorded."""
    length: int
    """The number of recorded steps, L."""
    terminated: bool
    truncated: bool
    complete: bool
    """Whether all steps of the episode are recorded, from the first to the end."""
    action_mask: np.ndarray | None = None
    """[L, M] bool: the legal actions, where the environment has masks; M choices of the discrete parts of an action."""
    agent: str | None = None
    """The name of the agent, where several share a simulator."""
    case: str | None = None
    """The name of the environment's case, where the run has cases."""
    others: dict[str, np.ndarray] = field(default_factory=dict)
    """Columns [L, …] of the format that have no field of their own."""

    @property
    def steps(self) -> dict[str, np.ndarray]:
        """All recorded columns [L, …] of the format, by name."""
        held = {column.name: self.others.get(column.name, getattr(self, column.name, None)) for column in held_steps()}
        return {name: values[: self.length] for name, values in held.items() if values is not None}


def read_episodes(catalogue: Catalogue, chosen: np.ndarray) -> Iterator[Episode]:
    """Reads the episodes `chosen` (ascending indices into the catalogue's episodes), segment by segment."""
    wanted = np.zeros(len(catalogue.episodes["id"]), bool)
    wanted[chosen] = True
    p = catalogue.pieces
    pieces = np.flatnonzero(wanted[p["episode"]])
    held: dict[int, list[dict[str, np.ndarray]]] = {}
    for number in np.unique(p["segment"][pieces]).tolist():
        here = pieces[p["segment"][pieces] == number]
        with opened(catalogue.segments[number].path) as file:
            for episode, steps in _steps(file, {name: p[name][here] for name in p}):
                held.setdefault(episode, []).append(steps)
            ends = np.sort(p["episode"][here[p["is_last"][here]]])
            finals = _finals(file, catalogue, ends)
        for episode in ends.tolist():
            yield _assembled(catalogue.episodes, episode, held.pop(episode), finals.get(episode))


def _steps(file: h5py.File, p: dict[str, np.ndarray]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yields (episode, its steps in this segment) for pieces of one segment. Reads one environment at a time, because
    each chunk holds one.
    """
    held = [column for column in held_steps() if column.name in file["steps"]]
    for index in np.unique(p["index"]).tolist():
        mine = np.flatnonzero(p["index"] == index)
        starts, stops = p["start"][mine], p["start"][mine] + p["length"][mine]
        first, last = int(starts.min()), int(stops.max())
        columns = {}
        for column in held:
            rows = slice(first, last)
            columns[column.name] = read(file, f"steps/{column.name}", rows if column.axes == "T" else (rows, index))
        for episode, start, stop in zip(p["episode"][mine].tolist(), starts - first, stops - first, strict=True):
            yield episode, {name: values[start:stop].copy() for name, values in columns.items()}


def _finals(file: h5py.File, catalogue: Catalogue, ends: np.ndarray) -> dict[int, np.ndarray]:
    """Returns {episode: its true last observation} for the episodes among `ends` that ended, all in this segment."""
    e = catalogue.episodes
    ended = ends[e["terminated"][ends] | e["truncated"][ends]]
    if not len(ended):
        return {}
    first_env = catalogue.segments[int(e["last_segment"][ended[0]])].first_env
    rows, envs = read(file, "steps/row")[read(file, "final/row")], read(file, "final/env") + first_env
    places = {key: i for i, key in enumerate(zip(rows.tolist(), envs.tolist(), strict=True))}
    wanted = [places[key] for key in zip(e["last_row"][ended].tolist(), e["env"][ended].tolist(), strict=True)]
    first = min(wanted)
    observations = read(file, "final/observations", slice(first, max(wanted) + 1))
    return {episode: observations[i - first] for episode, i in zip(ended.tolist(), wanted, strict=True)}


def _assembled(
    e: dict[str, np.ndarray], number: int, pieces: list[dict[str, np.ndarray]], final: np.ndarray | None
) -> Episode:
    def joined(name: str) -> np.ndarray:
        parts = [piece[name] for piece in pieces]
        if name == "observations" and final is not None:
            parts.append(final[None])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    seed = int(e["seed"][number])
    values: dict[str, Any] = {name: int(e[name][number]) for name in _NUMBERS}
    values |= {name: bool(e[name][number]) for name in ("terminated", "truncated", "complete")}
    columns = {name: joined(name) for name in pieces[0] if all(name in piece for piece in pieces)}
    fields = [column.name for column in held_steps() if column.name in Episode.__slots__]
    values |= {name: columns.pop(name, None) for name in fields} | {"others": columns}
    values["agent"] = str(e["agent"][number]) if "agent" in e else None
    values["case"] = str(e["case"][number]) if "case" in e else None
    return Episode(**values, seed=None if seed == -1 else seed, episode_return=float(e["return"][number]))
