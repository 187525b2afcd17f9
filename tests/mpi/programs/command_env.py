"""The other half of commands.c: rank 0 of its world, which sends the commands.

As a program of its own, beside one solver: mpirun -n 1 command_env.py : -n 2 commands. As an environment of dppo, on a
group of 1 + nproc ranks, whose communicator is the solver's world.
"""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

WAIT, RESET, CONTROL, EVOLVE, OBSERVE, END, TAG = 0, 1, 2, 3, 4, 5, 42
STEPS, SUBSTEPS = 5, 3


class Client:
    """Controls a solver of `nproc` ranks. `world`: the communicator of this rank, the first, and of the solver's."""

    def __init__(self, world: Any, nproc: int) -> None:
        expected_size = 1 + nproc
        if world.size != expected_size:
            raise ValueError(f"{world.size} ranks, and not {expected_size}")
        self._control = world.Split(0).Create_intercomm(0, world, 1, TAG)

    def send(self, command: int, number: float | None = None) -> None:
        self._control.Send(np.array([command], np.intc), 0, TAG)
        if number is not None:
            self._control.Send(np.array([number], np.float64), 0, TAG)

    def observe(self) -> np.ndarray:
        seen = np.zeros(2)
        self.send(OBSERVE)
        self._control.Recv(seen, 0, TAG)
        return seen

    def end(self) -> None:
        self.send(END)
        self._control.Disconnect()


class Controlled(gymnasium.Env):
    """Observes [seed, step, sum of the cells, ranks of the solver]; the reward is higher the nearer the sum is to 0."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, comm: Any, workdir: Path, nproc: int = 2) -> None:
        self._folder, self._rank = workdir, comm.rank
        if self._rank == 0:
            self._client = Client(comm, nproc)
            return
        self._library = ctypes.CDLL(os.environ["COMMANDS"])
        self._library.solver_open.restype = ctypes.c_void_p
        self._solver = ctypes.c_void_p(self._library.solver_open(comm.py2f(), 1 + nproc))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return (self.begin(seed), {}) if self._rank == 0 else self._obey()

    def step(self, action: Any) -> Any:
        return (*self.advance(float(action[0])), False, {}) if self._rank == 0 else self._obey()

    def close(self) -> None:
        if self._rank == 0:
            self._client.end()
        else:
            assert self._obey() == END
            (self._folder / f"solver_{self._rank}_has_ended").touch()

    def _obey(self) -> int:
        """A rank of the solver works until the client hands it back."""
        return int(self._library.solver_obey(self._solver))

    def begin(self, seed: int | None) -> np.ndarray:
        self._seed, self._step = int(seed or 0), 0
        self._client.send(RESET, self._seed)
        return self._observation()

    def advance(self, control: float) -> tuple[np.ndarray, float, bool]:
        self._step += 1
        self._client.send(CONTROL, control)
        self._client.send(EVOLVE, SUBSTEPS)
        observation = self._observation()
        return observation, -float(observation[2] ** 2), self._step == STEPS

    def _observation(self) -> np.ndarray:
        seen = self._client.observe()
        self._client.send(WAIT)
        return np.array([self._seed, self._step, *seen])


if __name__ == "__main__":
    from mpi4py import MPI

    env = Controlled(MPI.COMM_WORLD, Path(), MPI.COMM_WORLD.size - 1)
    rows = [env.begin(17).tolist()]
    rows += [env.advance(control)[0].tolist() for control in (0.5, -1.0, 0.25, 0.0, 1.0)]
    env.close()
    print(json.dumps(rows))
