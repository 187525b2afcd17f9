"""What environments were told of the share of the run that is done, by rows: what a replay tells them again.

Environments that do not ask have been told nothing: every list here is empty.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from dppo.data import EnvState, Told
from dppo.envs.curriculum import BEFORE_RESET


def told_before(told: Told, row: int) -> float:
    """Returns the fraction that held when the row before `row` was stepped, and so for an episode that begins in `row`,
    whose reset was a part of that step. `told` is not empty.
    """
    return next((fraction for at, fraction in reversed(told) if at < row), told[0][1])


def since(told: Told, first_row: int) -> Told:
    """Returns what an episode that began in `first_row` was told, with the fraction that held when it began."""
    begun = sum(at < first_row for at, _ in told)
    return told[max(0, begun - 1) :]


def merged(told: Told, more: Told) -> Told:
    """Returns both in the order of rows; where both speak of a row, the later word counts."""
    return sorted((dict(told) | dict(more)).items()) if more else told


def told_of(states: Iterable[EnvState], row: int) -> Told:
    """Returns what a worker's environments were told, from their saved states, with rows such that `row` is next."""
    longest = max(states, key=lambda state: len(state.told), default=None)
    if longest is None:
        return []
    return [(int(at) + row - longest.row, float(fraction)) for at, fraction in longest.told]


def as_array(told: Told) -> np.ndarray:
    """Returns [C, 2] float64, as `EnvState.told` has it."""
    return np.array(told, np.float64).reshape(-1, 2)


def plan_of(told: Told, first_row: int, num_actions: int) -> dict[int, float]:
    """Returns what a replay of the actions from `first_row` on tells an environment (envs/curriculum.py)."""
    if not told:
        return {}
    plan = {at - first_row: fraction for at, fraction in told if 0 <= at - first_row < num_actions}
    return {BEFORE_RESET: told_before(told, first_row)} | plan
