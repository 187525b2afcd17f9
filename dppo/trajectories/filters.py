"""Chooses episodes of a dump."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions that the chosen episodes meet; None: no condition."""

    complete_only: bool | None = None
    min_return: float | None = None
    last: int | None = None
    ranks: Collection[int] | None = None
    policy_version: tuple[int | None, int | None] | None = None

    def __post_init__(self) -> None:
        if self.last is not None and self.last < 1:
            raise ValueError(f"last={self.last} must be at least 1; leave it out for all episodes")
        if self.policy_version is not None and len(self.policy_version) != 2:
            raise ValueError(f"policy_version={self.policy_version} must be (lowest, highest); None leaves an end open")

    def apply(self, chosen: np.ndarray, e: dict[str, np.ndarray], still_open: np.ndarray) -> np.ndarray:
        """Returns those of the indices `chosen` whose episodes pass, in their order."""
        passes = np.ones(len(chosen), bool)
        if self.complete_only:
            passes &= e["complete"][chosen]
        if self.min_return is not None:
            passes &= e["return"][chosen] >= self.min_return
        if self.ranks is not None:
            passes &= np.isin(e["rank"][chosen], list(self.ranks))
        lowest, highest = self.policy_version or (None, None)
        if lowest is not None:
            passes &= e["first_version"][chosen] >= lowest
        if highest is not None:
            passes &= e["last_version"][chosen] <= highest
        chosen = chosen[passes]
        if self.last is not None:
            order = np.lexsort((e["env"][chosen], e["last_row"][chosen], still_open[chosen]))
            chosen = np.sort(chosen[order[-self.last :]])
        return chosen
