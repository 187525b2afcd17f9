"""Heat control: four heaters hold a plate at its set point, whatever temperature the air around it has.

The same problem as heat.c and heat.f90, here as a collective environment for mpi4py: every rank of `comm` constructs it
and calls reset and step with the same arguments. Each rank has some rows of the plate and exchanges the rows at its
edges with its neighbours. All ranks return the same values, to the bit, on any number of ranks.

    python examples/heat/heat.py     the constant gains, and the return of each (see README.md)
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

SIZE = 32
"""The plate has SIZE x SIZE cells, with insulated edges."""
STEPS, SUBSTEPS = 60, 8
"""Actions in an episode, and diffusion steps in an action."""
DIFFUSION, LOSS, POWER = 0.2, 0.004, 0.1
"""Per substep: exchange with each of the four neighbours, loss to the air, heat of a heater at full power."""
ERROR, COST = 2.0, 0.1
"""Weights, in the reward, of the mean square temperature and of the mean square power."""
SENSORS = (5, 15, 26)
"""Rows and columns of the nine sensors."""
HEATERS = (6, 22)
"""First rows and columns of the four heaters, each of HEATER x HEATER cells."""
HEATER = 4
BEST_GAIN, BEST_RETURN = 4.0, 39.76
"""The constant gain with the highest mean return, and this return, by the sweep at the end of this file."""


class Random:
    """A generator that is written in the same way in C and in Fortran (Park and Miller 1988)."""

    def __init__(self, seed: int) -> None:
        self._state = 1 + seed % 2147483646
        for _ in range(8):
            self.uniform()

    def uniform(self) -> float:
        """Returns the next number, in (0, 1)."""
        self._state = 16807 * self._state % 2147483647
        return self._state / 2147483647.0


class Heat(gymnasium.Env[np.ndarray, np.ndarray]):
    """The plate. Temperatures are differences from the set point.

    Observation: the temperatures at the nine sensors. Action: the power of each heater, from -1 to 1. Reward: 1 -
    ERROR * the mean square of the temperatures - COST * the mean square of the powers. The air's temperature is
    constant in an episode, and not observed.

    Args:
      comm: an mpi4py communicator of at most SIZE ranks; None: this process alone.
    """

    def __init__(self, comm: Any = None) -> None:
        self._comm = comm
        size, rank = (1, 0) if comm is None else (comm.size, comm.rank)
        if size > SIZE:
            raise ValueError(f"{size} ranks, but the plate has {SIZE} rows: use at most {SIZE} ranks")
        self._first, self._last = rank * SIZE // size, (rank + 1) * SIZE // size
        self._up, self._down = rank - 1 if rank else None, rank + 1 if rank < size - 1 else None
        rows = self._last - self._first
        self._u = np.zeros((rows + 2, SIZE + 2))
        """This rank's rows, with a halo of one cell on each side."""
        self._heat = np.zeros((rows, SIZE))
        self._air, self._step = 0.0, 0
        limit = np.full(9, np.inf)
        self.observation_space = gymnasium.spaces.Box(-limit, limit, dtype=np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        random = Random(int(self.np_random.integers(2**31)) if seed is None else seed)
        self._air = -1.0 - random.uniform()
        self._u[:] = 0.0
        at = [[math.cos(math.pi * k * (i + 0.5) / SIZE) for i in range(SIZE)] for k in range(3)]
        for k in range(3):
            for l in range(3):  # noqa: E741 (as in the formula)
                amount = random.uniform() - 0.5
                rows = amount * np.array(at[k][self._first : self._last])
                self._u[1:-1, 1:-1] += np.outer(rows, at[l])
        self._step = 0
        return self._measure()[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        power = [min(1.0, max(-1.0, float(a))) for a in action]
        self._heat[:] = 0.0
        for number, (row, column) in enumerate((r, c) for r in HEATERS for c in HEATERS):
            rows = range(max(row, self._first), min(row + HEATER, self._last))
            for i in rows:
                self._heat[i - self._first, column : column + HEATER] = POWER * power[number]
        for _ in range(SUBSTEPS):
            self._exchange()
            u, inner = self._u, self._u[1:-1, 1:-1]
            around = u[:-2, 1:-1] + u[2:, 1:-1] + u[1:-1, :-2] + u[1:-1, 2:] - 4.0 * inner
            inner += DIFFUSION * around + LOSS * (self._air - inner) + self._heat
        self._step += 1
        observation, error = self._measure()
        cost = sum(p * p for p in power) / 4.0
        return observation, 1.0 - ERROR * error - COST * cost, False, self._step >= STEPS, {}

    def _exchange(self) -> None:
        """Fills the halo: from the neighbours and, at the plate's edges, from the cells beside them."""
        u = self._u
        u[:, 0], u[:, -1] = u[:, 1], u[:, -2]
        u[0], u[-1] = u[1], u[-2]
        for to, row, of, halo in ((self._up, 1, self._down, -1), (self._down, -2, self._up, 0)):
            if to is not None and of is not None:
                self._comm.Sendrecv(u[row], dest=to, recvbuf=u[halo], source=of)
            elif to is not None:
                self._comm.Send(u[row], dest=to)
            elif of is not None:
                self._comm.Recv(u[halo], source=of)

    def _measure(self) -> tuple[np.ndarray, float]:
        """Returns the sensors' temperatures, and the mean square of all. Each rank adds up its rows; the rows are added
        in their order by all ranks, so that the sum is the same for any number of ranks.
        """
        values = np.zeros(9 + SIZE)
        for number, (row, column) in enumerate((r, c) for r in SENSORS for c in SENSORS):
            if self._first <= row < self._last:
                values[number] = self._u[1 + row - self._first, 1 + column]
        for i in range(self._first, self._last):
            inner = self._u[1 + i - self._first, 1:-1]
            values[9 + i] = np.dot(inner, inner)
        if self._comm is not None:
            self._comm.Allreduce(values.copy(), values)  # all but one of the numbers that are added are zero
        total = 0.0
        for square in values[9:]:
            total += square
        return values[:9].copy(), float(total) / (SIZE * SIZE)

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Writes the state; collective. Rank 0 makes the folder `path`, and each rank writes its rows into it."""
        Path(path).mkdir(parents=True, exist_ok=True)
        rank = 0 if self._comm is None else self._comm.rank
        np.save(Path(path, f"rank_{rank}.npy"), np.concatenate(([self._air, self._step], self._u.ravel())))

    def load_state(self, path: str | os.PathLike[str]) -> None:
        """Continues from the state that `save_state` has written, on as many ranks; collective."""
        rank = 0 if self._comm is None else self._comm.rank
        values = np.load(Path(path, f"rank_{rank}.npy"), allow_pickle=False)
        self._air, self._step = float(values[0]), int(values[1])
        self._u[:] = values[2:].reshape(self._u.shape)


def controller(observation: np.ndarray, gain: float) -> np.ndarray:
    """Returns the actions of a constant gain: each heater works against the mean of the four sensors around it."""
    sensors = observation.reshape(3, 3)
    nearest = [sensors[r : r + 2, c : c + 2].mean() for r in range(2) for c in range(2)]
    return np.clip(-gain * np.array(nearest), -1.0, 1.0).astype(np.float32)


def mean_return(gain: float, episodes: int = 10) -> float:
    """Returns the mean return of a constant gain over the episodes of the seeds 0, 1, 2, …"""
    env, total = Heat(), 0.0
    for seed in range(episodes):
        observation, _ = env.reset(seed=seed)
        truncated = False
        while not truncated:
            observation, reward, _, truncated, _ = env.step(controller(observation, gain))
            total += reward
    return total / episodes


if __name__ == "__main__":
    for tried in (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 16.0):
        print(f"gain {tried:4.1f}: return {mean_return(tried):.2f}")
