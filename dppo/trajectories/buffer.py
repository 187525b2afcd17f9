"""A worker's rollouts that wait to be written to a segment."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dppo.data import EpisodeProgress, Rollout
from dppo.envs.leaves import as_leaves
from dppo.trajectories.format import Column


@dataclass(slots=True)
class Part:
    """The part of a rollout that a segment stores."""

    first_row: int
    end_row: int
    num_bytes: int
    progress: EpisodeProgress
    steps: dict[str, np.ndarray]
    """The columns of the steps, by dataset name in steps/. The leaves of a Dict or a Tuple are views of one array."""
    final: dict[str, np.ndarray]
    """The final observations, by dataset name in final/; rows count from the rollout's first row."""

    @classmethod
    def of(cls, rollout: Rollout, columns: Sequence[Column]) -> Part:
        assert rollout.progress is not None
        end_row = rollout.first_row + rollout.num_rows
        computed = {"row": np.arange(rollout.first_row, end_row)}
        whole = {c.name: getattr(rollout, c.rollout) if c.rollout else computed[c.name] for c in columns}
        for column in columns:
            if column.is_optional and not whole[column.name].size:
                del whole[column.name]
        final = {"row": rollout.final_rows, "env": rollout.final_envs, "observations": rollout.final_observations}
        num_bytes = sum(values.nbytes for values in whole.values()) + final["observations"].nbytes
        steps = _datasets(whole)
        for name, raw in steps.items():
            if name.partition("/")[0] == "actions_raw":  # policies sample vectors, whatever the action's axes are
                steps[name] = raw.reshape(steps[name.replace("actions_raw", "actions", 1)].shape)
        return cls(rollout.first_row, end_row, num_bytes, rollout.progress, steps, _datasets(final))


def _datasets(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns {name: array} of the datasets that hold the columns: instead of a structured array, those of its leaves.
    Its bytes themselves are never written: NumPy does not keep those between the fields.
    """
    return {
        f"{name}/{leaf}".removesuffix("/"): values
        for name, column in columns.items()
        for leaf, values in as_leaves(column).items()
    }


class RolloutBuffer:
    """A queue of parts in the order of their rows; no part is in it twice.

    Args:
      columns: the columns that are kept of each step.
      every: of each `every` rollouts, only the first is kept.
    """

    def __init__(self, columns: Sequence[Column], every: int) -> None:
        self._columns, self._every = columns, every
        self._parts: deque[Part] = deque()
        self._rollouts = 0
        self._is_stopped = False
        self.num_bytes = 0
        self.next_row = 0
        """The row after the last rollout that was added, kept or not."""

    def __len__(self) -> int:
        return len(self._parts)

    def add(self, rollout: Rollout) -> bool:
        """Adds a rollout, unless it was added before. Returns whether it is kept."""
        if rollout.first_row < self.next_row:
            return False
        self.next_row = rollout.first_row + rollout.num_rows
        self._rollouts += 1
        if self._is_stopped or not rollout.num_rows or (self._rollouts - 1) % self._every:
            return False
        part = Part.of(rollout, self._columns)
        self._parts.append(part)
        self.num_bytes += part.num_bytes
        return True

    def end_row(self, kept: int) -> int:
        """Returns the row after all parts but the last `kept`."""
        return self._parts[-1 - kept].end_row

    def has(self, row: int) -> bool:
        """Returns whether all rows of the first part lie before `row`."""
        return bool(self._parts) and self._parts[0].end_row <= row

    def take(self, row: int, num_bytes: float = math.inf) -> list[Part]:
        """Removes and returns the first part, then parts that end before `row`, until they have `num_bytes`."""
        parts = [self._parts.popleft()]
        taken = parts[0].num_bytes
        while taken < num_bytes and self.has(row):
            parts.append(self._parts.popleft())
            taken += parts[-1].num_bytes
        self.num_bytes -= taken
        return parts

    def stop(self) -> None:
        """Drops all parts, and keeps no further ones."""
        self._is_stopped = True
        self._parts.clear()
        self.num_bytes = 0
