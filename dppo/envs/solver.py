"""An environment that is a simulator of its own: another program of the same mpirun, which is coupled by dppo.h.

run/solvers.py meets the simulator, run/solver_link.py speaks with it; this module makes a gymnasium.Env of that.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np

HOW_TO_START = (
    "mpirun -n 1+W python -m dppo.run --env dppo.envs:Solver --env-ranks G --num-envs 1 … : -n W*G ./simulator"
)
RUNNING, TERMINATED, TRUNCATED = range(3)


@dataclass(frozen=True)
class Declaration:
    """What a simulator has told of itself by `dppo_declare`; equal for all groups of a run."""

    name: str
    observation_low: tuple[float, ...]
    observation_high: tuple[float, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    can_save: bool

    def differs_from(self, other: Declaration) -> str:
        """Returns in words what differs first, this one's value before the other's; "" if they are equal."""
        pairs = (
            ("name", self.name, other.name),
            ("number of observations", len(self.observation_low), len(other.observation_low)),
            ("number of actions", len(self.action_low), len(other.action_low)),
            ("bounds of observations", (self.observation_low, self.observation_high),
             (other.observation_low, other.observation_high)),
            ("bounds of actions", (self.action_low, self.action_high), (other.action_low, other.action_high)),
            ("word on saving", self.can_save, other.can_save),
        )  # fmt: skip
        return next((f"{what}: {mine!r:.60} and {yours!r:.60}" for what, mine, yours in pairs if mine != yours), "")


class SolverLink(Protocol):
    """The connection of this worker with its group of the simulator's ranks."""

    declaration: Declaration

    def reset(self, seed: int) -> np.ndarray:
        """Begins an episode. Returns its first observation, [number of observations] float64."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, int]:
        """Returns observation, reward, and RUNNING, TERMINATED or TRUNCATED."""

    def save(self, folder: str) -> bool:
        """Has the simulator write its state into `folder`. Returns whether all its ranks have."""

    def load(self, folder: str) -> bool:
        """Has the simulator continue from the state in `folder`. Returns whether all its ranks can."""

    def end(self) -> None:
        """Lets the simulator leave, once."""


_link: SolverLink | None = None


def connect(link: SolverLink | None) -> None:
    """Sets the link that every `Solver` of this process uses: MPI starts one group of ranks for a worker, so there is
    only one.
    """
    global _link
    _link = link


class Solver(gymnasium.Env[np.ndarray, np.ndarray]):
    """The simulator of this worker's group. Observations are float64, actions float32, of the declared sizes and
    bounds. `save_state` and `load_state` are there if the simulator has declared that it can save.

    Raises:
      ValueError: there is no simulator.
    """

    def __init__(self) -> None:
        if _link is None:
            raise ValueError(
                f"there is no simulator beside dppo: start it as the second program, {HOW_TO_START}; python -m"
                " dppo.evaluate RUN says how an evaluation is started"
            )
        self._link, declared = _link, _link.declaration
        self.observation_space = gymnasium.spaces.Box(
            np.array(declared.observation_low), np.array(declared.observation_high), dtype=np.float64
        )
        self.action_space = gymnasium.spaces.Box(
            np.array(declared.action_low, np.float32), np.array(declared.action_high, np.float32), dtype=np.float32
        )
        if declared.can_save:
            self.save_state, self.load_state = self._save_state, self._load_state

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._link.reset(int(self.np_random.integers(2**31)) if seed is None else seed), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, status = self._link.step(np.asarray(action))
        if status not in (RUNNING, TERMINATED, TRUNCATED):
            raise ValueError(
                f"the simulator sent the status {status}: it must be DPPO_RUNNING, DPPO_TERMINATED or DPPO_TRUNCATED"
            )
        return observation, reward, status == TERMINATED, status == TRUNCATED, {}

    def close(self) -> None:
        self._link.end()

    def _save_state(self, path: str | os.PathLike[str]) -> None:
        os.makedirs(path, exist_ok=True)
        if not self._link.save(os.path.abspath(path)):
            raise OSError(f"the simulator could not write its state to {path}")

    def _load_state(self, path: str | os.PathLike[str]) -> None:
        if not self._link.load(os.path.abspath(path)):
            raise OSError(f"the simulator could not read its state from {path}")
