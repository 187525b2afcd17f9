"""The environments of groups.py and coupled.py: solvers whose step takes as long as is wanted."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

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
    """A solver that does what `set_work` has said last."""

    def __init__(self, comm: Any = None) -> None:
        super().__init__(comm)
        self._plate = heat.Heat(comm)
        self._plate.reset(seed=0)
        self._sum, self._field = np.zeros(1), np.ones(1000)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if _work.kind == "heat":
            return self._plate.step(action)
        if _work.kind == "compute":
            for _ in range(int(_work.amount)):
                np.multiply(self._field, 1.0, out=self._field)
        elif _work.kind == "sleep":
            time.sleep(_work.amount)
        if _work.kind != "nothing" and self.comm is not None:
            self.comm.Allreduce(self._sum.copy(), self._sum)
        return super().step(action)


class Work(NamedTuple):
    """What a step of each `Workload` of this rank does.

    heat: the plate of examples/heat, in `amount` substeps, each with an exchange of halos. compute: `amount` operations
    on an array, then one Allreduce. sleep: for `amount` seconds, then one Allreduce. nothing.
    """

    kind: str = "nothing"
    amount: float = 0


_work = Work()


def set_work(work: Work) -> None:
    """Sets what a step of each `Workload` of this rank does."""
    global _work
    _work = work
    if work.kind == "heat":
        heat.SUBSTEPS, heat.STEPS = int(work.amount), 10**9
