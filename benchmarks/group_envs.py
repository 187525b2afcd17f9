"""The environments of groups.py and coupled.py: solvers whose step takes as long as is wanted."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "heat"))
import heat


class Nothing(gymnasium.Env[np.ndarray, np.ndarray]):
    """A solver that takes no time, with observations and actions as the plate of examples/heat has them."""

    def __init__(self, comm: Any = None) -> None:
        self.comm = comm
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (9,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
        self._observation = np.zeros(9)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observation, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self._observation, 0.0, False, False, {}


class Sleeping(Nothing):
    """A solver that divides its work evenly among its ranks, and needs none of our cores.

    Args:
      work_s: seconds of a step on one rank.
    """

    def __init__(self, comm: Any = None, work_s: float = 0.02) -> None:
        super().__init__(comm)
        self._step_s = work_s / (1 if comm is None else comm.size)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        time.sleep(self._step_s)
        return super().step(action)


class Workload(Nothing):
    """A solver that does nothing, sleeps or computes, as `set_work` has said last."""

    kind, sleep_s = "nothing", 0.0

    def __init__(self, comm: Any = None) -> None:
        super().__init__(comm)
        self._plate = heat.Heat(comm)
        self._plate.reset(seed=0)
        self._sum = np.zeros(1)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.kind == "heat":
            return self._plate.step(action)
        if self.kind == "sleep":
            time.sleep(self.sleep_s)
            if self.comm is not None:  # as a solver's own reductions
                self.comm.Allreduce(self._sum.copy(), self._sum)
        return super().step(action)


def set_work(kind: str, amount: float) -> None:
    """Sets what a step of each `Workload` of this rank does.

    Args:
      kind: "nothing"; "sleep": for `amount` seconds, then an Allreduce; "heat": the plate, in `amount` substeps.
    """
    Workload.kind = kind
    if kind == "sleep":
        Workload.sleep_s = amount
    elif kind == "heat":
        heat.SUBSTEPS, heat.STEPS = int(amount), 10**9
