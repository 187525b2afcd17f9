"""Names that a segment may have of its environments: those of a simulator's agents, and those of cases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dppo.files import parse_json

if TYPE_CHECKING:
    import h5py

AGENTS = "agents"
"""A text that only segments of simulators of agents have: JSON, the agents' names. Environment n is agent n % A."""
CASES = "cases"
"""A text that only segments of runs with cases have: JSON, the name of the case of each environment of the rank."""


def agents_in(file: h5py.File) -> tuple[str, ...]:
    """Returns the names of the agents of a simulator; () in a segment without agents. Raises ValueError where the text
    has no names for the segment's environments.
    """
    names, num_envs = _names_in(file, AGENTS)
    if len(set(names)) != len(names) or num_envs % max(1, len(names)):
        raise ValueError(f"{AGENTS} has {len(set(names))} names, and there are {num_envs} environments")
    return names


def cases_in(file: h5py.File) -> tuple[str, ...]:
    """Returns the name of each environment's case; () in a segment without cases. Raises ValueError as `agents_in`."""
    names, num_envs = _names_in(file, CASES)
    if names and len(names) != num_envs:
        raise ValueError(f"{CASES} has {len(names)} names, and there are {num_envs} environments")
    return names


def _names_in(file: h5py.File, label: str) -> tuple[tuple[str, ...], int]:
    """Returns the names in a text, () where there is none, and the number of environments."""
    num_envs = int(file["steps/rewards"].shape[1])
    if label not in file:
        return (), num_envs
    names = parse_json(file[label].asstr()[()])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not names:
        raise ValueError(f"{label} is no list of names")
    return tuple(names), num_envs
