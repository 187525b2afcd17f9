"""Environments that are programs of several ranks."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
from mpi4py import MPI

from tests.herd import Herd


def wait(*requests: MPI.Request) -> None:
    """Waits asleep: MPI's own waits spin, and ranks outnumber cores in tests."""
    while not all([request.Test() for request in requests]):
        time.sleep(1e-4)


class Ring(gymnasium.Env):
    """Eight cells of heat on a ring, shared out to the ranks, of which each sends its edges to its neighbours. The
    action heats or cools all cells; the reward is higher the closer the mean is to 0. The sum is that of whole
    numbers, so it does not depend on the number of ranks.
    """

    CELLS = 8
    observation_space = gymnasium.spaces.Box(-100.0, 100.0, (CELLS,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self, comm: MPI.Intracomm = MPI.COMM_SELF, length: int = 20, sleep_s: float = 0.0) -> None:
        self._comm, self._length, self._sleep_s = comm, length, sleep_s

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        everything = self.np_random.integers(-40, 40, self.CELLS)
        self._mine = np.array_split(everything, self._comm.size)[self._comm.rank].copy()
        self._steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        time.sleep(self._sleep_s)
        left, right = (self._comm.rank - 1) % self._comm.size, (self._comm.rank + 1) % self._comm.size
        before, after = np.empty(1, np.int64), np.empty(1, np.int64)
        edges = self._mine[-1:].copy(), self._mine[:1].copy()
        wait(
            self._comm.Irecv(before, left, 1), self._comm.Irecv(after, right, 2),
            self._comm.Isend(edges[0], right, 1), self._comm.Isend(edges[1], left, 2),
        )  # fmt: skip
        wide = np.concatenate((before, self._mine, after))
        self._mine = (wide[:-2] + 2 * wide[1:-1] + wide[2:]) // 4 + 8 * (int(action) - 1)
        self._steps += 1
        total = np.array([abs(self._mine).sum()])
        wait(self._comm.Iallreduce(MPI.IN_PLACE, total))
        return self._observation(), 1.0 - float(total[0]) / 100, False, self._steps >= self._length, {}

    def _observation(self) -> np.ndarray:
        whole = np.empty(self.CELLS, np.int64)
        wait(self._comm.Iallgather(self._mine, whole))
        return np.clip(whole, -100, 100).astype(np.float32)


class Failing(Ring):
    """Fails on one rank of the job, in its n-th step since it was made, or `in_reset`, or when it is made."""

    def __init__(
        self, comm: MPI.Intracomm, rank: int = 1, step: int = 5, where: str = "step", how: str = "raise"
    ) -> None:
        super().__init__(comm)
        self._rank, self._left, self._where, self._how = rank, step, where, how
        self._fail("make")

    def _fail(self, where: str) -> None:
        if where != self._where or MPI.COMM_WORLD.rank != self._rank:
            return
        self._left -= 1
        if self._left > 0 and where == "step":
            return
        if self._how == "hang":
            time.sleep(3600)
        if self._how == "exit":
            os._exit(7)
        if self._how == "exit with 0":
            os._exit(0)
        if self._how == "sys.exit":
            sys.exit("the licence has expired")
        if self._how == "abort":
            MPI.COMM_WORLD.Abort(5)
        if self._how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._how == "finalize":
            MPI.Finalize()
        raise ZeroDivisionError("the flow has diverged")

    def reset(self, **given: Any) -> Any:
        self._fail("reset")
        return super().reset(**given)

    def step(self, action: Any) -> Any:
        self._fail("step")
        return super().step(action)

    def close(self) -> None:
        self._fail("close")


class Saving(Failing):
    """Saves its state, each rank its own part."""

    def save_state(self, path: Path) -> None:
        self._fail("save")
        np.save(path / f"part_{self._comm.rank}.npy", self._mine)

    def load_state(self, path: Path) -> None:
        self._mine = np.load(path / f"part_{self._comm.rank}.npy")


class Filed(Ring):
    """Has a folder."""

    def __init__(self, comm: MPI.Intracomm, workdir: Path) -> None:
        super().__init__(comm)


class Pack(Herd):
    """Three agents, on all ranks of the group."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        super().__init__()


class Mortal(Ring):
    """Saves its state. DIES="step 37 3 4" kills ranks 3 and 4 of the job at the beginning of their 37th step since
    the job's start; so for make, reset, observe (within reset and step), save and load.
    """

    _calls: ClassVar[Counter[str]] = Counter()

    def __init__(self, comm: MPI.Intracomm) -> None:
        super().__init__(comm)
        self._call("make")

    def _call(self, what: str) -> None:
        self._calls[what] += 1
        where, number, *ranks = os.environ.get("DIES", "none 0").split()
        if (what, self._calls[what]) == (where, int(number)) and str(MPI.COMM_WORLD.rank) in ranks:
            os.kill(os.getpid(), signal.SIGKILL)

    def reset(self, **given: Any) -> Any:
        self._call("reset")
        return super().reset(**given)

    def step(self, action: Any) -> Any:
        self._call("step")
        return super().step(action)

    def _observation(self) -> np.ndarray:
        self._call("observe")
        return super()._observation()

    def save_state(self, path: Path) -> None:
        self._call("save")
        np.save(path / f"{self._comm.rank}.npy", self._mine)
        (path / f"{self._comm.rank}.txt").write_text(str(self._steps))

    def load_state(self, path: Path) -> None:
        self._call("load")
        self._mine = np.load(path / f"{self._comm.rank}.npy")
        self._steps = int((path / f"{self._comm.rank}.txt").read_text())
