"""Environments with a simulator in a process of its own, as users write them; KIND says how it is started."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

KIND = os.environ.get("KIND", "fork")
ECHO = "import sys\nfor line in sys.stdin: print(float(line) - 0.5, flush=True)"


def simulate(pipe: Any) -> None:
    while True:
        pipe.send(pipe.recv() - 0.5)


class InAChild(gymnasium.Env[Any, Any]):
    """Its first number comes from the child; close() ends that as most packages do."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        if KIND == "program":
            self.program = subprocess.Popen([sys.executable, "-c", ECHO], stdin=-1, stdout=-1, text=True)
            return
        context: Any = multiprocessing.get_context(KIND)
        self.pipe, theirs = context.Pipe()
        self.child = context.Process(target=simulate, args=(theirs,), daemon=True)
        self.child.start()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.array([self.ask(int(action)), self.t / 20], np.float32), 1.0, self.t == 20, False, {}

    def ask(self, number: int) -> float:
        if KIND == "program":
            assert self.program.stdin is not None and self.program.stdout is not None
            print(number, file=self.program.stdin, flush=True)
            return float(self.program.stdout.readline())
        self.pipe.send(number)
        return float(self.pipe.recv())

    def close(self) -> None:
        child: Any = self.program if KIND == "program" else self.child
        child.terminate()
        child.wait() if KIND == "program" else child.join()


class Abandoned(InAChild):
    """Forgets its simulators, which have a session of their own, and the pipes of their rank."""

    def __init__(self) -> None:
        super().__init__()
        subprocess.Popen(["sleep", "1000"], start_new_session=True)


class Blocked(InAChild):
    """A constructor that never comes back, on rank 1."""

    def __init__(self) -> None:
        while os.environ.get("OMPI_COMM_WORLD_RANK") == "1":
            time.sleep(1)
        super().__init__()


for _class in (InAChild, Abandoned, Blocked):
    gymnasium.register(id=f"child/{_class.__name__}-v0", entry_point=_class)  # type: ignore[arg-type]
