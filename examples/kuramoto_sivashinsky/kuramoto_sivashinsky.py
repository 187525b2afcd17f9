"""Control of the Kuramoto-Sivashinsky equation: four jets lower the power that a chaotic flow in one dimension takes.

A collective environment for mpi4py: every rank of `comm` constructs it and calls reset and step with the same
arguments. Each rank has some points of the grid. A step in time couples all points, so that the ranks gather the field
twice in it.

    python kuramoto_sivashinsky.py     controllers to compare with, and the return of each (see README.md)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

LENGTH, POINTS = 22.0, 64
"""The domain, which is periodic, and the points of its grid."""
TIME_STEP, SUBSTEPS, STEPS = 0.125, 2, 200
"""Units of time; time steps in an action, and actions in an episode, which lasts 50 units of time."""
WARM_UP = 200
"""Time steps before an episode, in which the flow becomes chaotic."""
NUM_SENSORS, NUM_JETS, WIDTH = 8, 4, 0.4
"""Sensors and jets are equidistant; a jet is a Gaussian with this standard deviation and integral 1."""
BEST_GAIN, BEST_RETURN = 1.0, -208.1
"""The constant gain with the highest mean return, and this return, by the sweep at the end of this file."""


def _operators() -> tuple[np.ndarray, ...]:
    """Returns matrices [POINTS, POINTS]: first and second derivative, and the four of a time step.

    The time step is second-order exponential time differencing, ETD2RK (Cox and Matthews 2002), for u_t =
    c u + N(u): a = exp(c h) u + h phi_1(c h) N(u), then a + h phi_2(c h) (N(a) - N(u)), with h the time step.
    """
    wavenumber = 2.0 * np.pi * np.fft.fftfreq(POINTS, LENGTH / POINTS)
    derivative = np.where(np.abs(wavenumber) < wavenumber.max() + 1e-9, 1j * wavenumber, 0.0)  # not of the highest mode
    z = TIME_STEP * (wavenumber**2 - wavenumber**4)
    at = np.where(z == 0.0, 1.0, z)
    phi_1 = TIME_STEP * np.where(z == 0.0, 1.0, np.expm1(at) / at)
    phi_2 = TIME_STEP * np.where(z == 0.0, 0.5, (np.expm1(at) - at) / at**2)
    spectra = (
        derivative, -(wavenumber**2), np.exp(z), phi_1, -0.5 * derivative * phi_1, -0.5 * derivative * phi_2,
    )  # fmt: skip
    waves = np.fft.fft(np.eye(POINTS), axis=0)
    return tuple(np.fft.ifft(s[:, None] * waves, axis=0).real for s in spectra)


class KuramotoSivashinsky(gymnasium.Env[np.ndarray, np.ndarray]):
    """The flow u_t = -u u_x - u_xx - u_xxxx + f on a periodic domain.

    Observation: u at the sensors. Action: the strength of each jet, from -1 to 1; f is the sum of the jets, less its
    mean, so that the mean of u stays 0. Reward: -(the mean over x of u_xx^2 + u_x^2 + |u f|) at the end of the action:
    dissipation, production, and the power of the jets.

    Args:
      comm: an mpi4py communicator of at most POINTS ranks; None: this process alone.
    """

    def __init__(self, comm: Any = None) -> None:
        self._comm = comm
        size, rank = (1, 0) if comm is None else (comm.size, comm.rank)
        if size > POINTS:
            raise ValueError(f"{size} ranks, but the grid has {POINTS} points: use at most {POINTS} ranks")
        bounds = [r * POINTS // size for r in range(size + 1)]
        self._counts = np.diff(bounds)
        self._own = slice(bounds[rank], bounds[rank + 1])
        self._d1, self._d2, self._linear, self._force, self._first, self._second = (
            matrix[self._own].copy() for matrix in _operators()
        )
        x = LENGTH / POINTS * np.arange(POINTS)
        offsets = x[:, None] - LENGTH / NUM_JETS * np.arange(NUM_JETS)
        offsets -= LENGTH * np.round(offsets / LENGTH)
        jets = np.exp(-0.5 * (offsets / WIDTH) ** 2) / (WIDTH * np.sqrt(2.0 * np.pi))
        self._jets, self._x = jets - jets.mean(axis=0), x
        self._u = np.zeros(POINTS)
        """The field; every rank has all of it between two time steps, and computes its own part of the next."""
        self._step = 0
        limit = np.full(NUM_SENSORS, np.inf)
        self.observation_space = gymnasium.spaces.Box(-limit, limit, dtype=np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (NUM_JETS,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        phases = 2.0 * np.pi * np.outer(np.arange(1, 5), self._x / LENGTH)
        amounts = self.np_random.normal(size=(2, 4))
        self._u = amounts[0] @ np.cos(phases) + amounts[1] @ np.sin(phases)
        self._advance(np.zeros(POINTS), WARM_UP)
        self._step = 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        force = self._jets @ np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        self._advance(force, SUBSTEPS)
        self._step += 1
        u, own = self._u, self._own
        power = np.square(self._d2 @ u) + np.square(self._d1 @ u) + np.abs(u[own] * force[own])
        reward = -float(self._gather(power).mean())
        return self._observation(), reward, False, self._step >= STEPS, {}

    def _advance(self, force: np.ndarray, steps: int) -> None:
        forced = self._force @ force
        for _ in range(steps):
            u = self._u
            mine = self._linear @ u + self._first @ (u * u) + forced
            predicted = self._gather(mine)
            self._u = self._gather(mine + self._second @ (predicted * predicted - u * u))

    def _gather(self, mine: np.ndarray) -> np.ndarray:
        """Returns the field [POINTS] of which each rank has computed a part."""
        if self._comm is None:
            return mine
        whole = np.empty(POINTS)
        self._comm.Allgatherv(mine, (whole, self._counts))
        return whole

    def _observation(self) -> np.ndarray:
        return self._u[:: POINTS // NUM_SENSORS].copy()

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Writes the state; collective. Rank 0 writes it, because every rank has all of it."""
        if self._comm is None or self._comm.rank == 0:
            Path(path).mkdir(parents=True, exist_ok=True)
            np.save(Path(path, "flow.npy"), np.append(self._u, self._step))

    def load_state(self, path: str | os.PathLike[str]) -> None:
        """Continues from the state that `save_state` has written, on any number of ranks; collective."""
        values = np.load(Path(path, "flow.npy"), allow_pickle=False)
        self._u, self._step = values[:-1].copy(), int(values[-1])


def controller(observation: np.ndarray, gain: float) -> np.ndarray:
    """Returns the actions of opposition control: each jet works against the flow at its place."""
    return np.clip(-gain * observation[:: NUM_SENSORS // NUM_JETS], -1.0, 1.0).astype(np.float32)


def mean_return(gain: float, episodes: int = 20) -> float:
    """Returns the mean return of a constant gain over the episodes of the seeds 0, 1, 2, …"""
    env, total = KuramotoSivashinsky(), 0.0
    for seed in range(episodes):
        observation, _ = env.reset(seed=seed)
        truncated = False
        while not truncated:
            observation, reward, _, truncated, _ = env.step(controller(observation, gain))
            total += reward
    return total / episodes


if __name__ == "__main__":
    for tried in (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0):
        print(f"gain {tried:4.1f}: return {mean_return(tried):.1f}")
