"""Environments that a user could have: with spaces that are not supported, slow or failing on one rank only.

`--env odd_envs:odd/Dict-v0` registers them; the launcher puts this folder on PYTHONPATH.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
import warnings
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from dppo.models.mlp import MLP

RANK = int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))
FAULT = os.environ.get("FAULT", "")
"""Of some; read before one of them clears the variables."""
CLOSE = os.environ.get("CLOSE", "")


class Numbers(gymnasium.Env[Any, Any]):
    """Shows noise, pays 1, never ends by itself."""

    observation_space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.observe(), 1.0, False, False, {}

    def observe(self) -> Any:
        return self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32)


class Words(Numbers):
    """Its observation has a part that no network sees."""

    observation_space = spaces.Dict({"position": spaces.Box(-1.0, 1.0, (2,), np.float32), "words": spaces.Text(9)})

    def observe(self) -> Any:
        return {"position": super().observe(), "words": "go"}


class Image(Numbers):
    """Its observation is a picture."""

    observation_space = spaces.Box(0, 255, (84, 84, 3), np.uint8)

    def observe(self) -> Any:
        return np.zeros((84, 84, 3), np.uint8)


class ListActions(Numbers):
    """Takes an action and a list of actions."""

    action_space: Any = spaces.Tuple((spaces.Discrete(2), spaces.Sequence(spaces.Discrete(2))))


class Unmakeable(Numbers):
    """Raises while it is made, on rank 2 only: what one rank lacks must end all."""

    def __init__(self) -> None:
        super().__init__()
        if RANK == 2:
            raise OSError("no licence left on this node")


class SlowLater(Numbers):
    """Its first 100 steps take no time, each later one 0.1 s: a rollout that outlasts any grace period."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.steps >= 100:
            time.sleep(0.1)
        return super().step(action)


class BadOnRankTwo(Numbers):
    """Step 50 goes wrong, on rank 2 only, while the others wait for it; FAULT says how. Or its first reset."""

    def reset(self, **how: Any) -> tuple[Any, dict[str, Any]]:
        if RANK == 2 and FAULT == "reset":
            raise RuntimeError("simulated bug in reset")
        return super().reset(**how)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        out = super().step(action)
        if RANK == 2 and self.steps == 50:
            if FAULT == "raise":
                raise RuntimeError("simulated bug in the environment")
            if FAULT == "leave":
                os._exit(int(os.environ["CODE"]))
            if FAULT == "finalize":
                from mpi4py import MPI

                ctypes.CDLL(MPI.__file__).MPI_Finalize()
            if FAULT == "forget":
                os.environ.clear()
                return out
            if FAULT == "nan":
                return np.full(2, np.nan, np.float32), *out[1:]
            if FAULT == "none":
                return out
            while True:  # hang
                time.sleep(1.0)
        return out


class ClosesBadly(BadOnRankTwo):
    """On rank 2, CLOSE says what comes of closing it; step 50 goes wrong where FAULT says so, else episodes end."""

    def close(self) -> None:
        if RANK != 2:
            return
        if CLOSE == "stuck":  # in C, where no signal comes through
            lock = ctypes.create_string_buffer(64)
            pthreads = ctypes.CDLL(None)
            pthreads.pthread_mutex_lock(lock)
            pthreads.pthread_mutex_lock(lock)
        if CLOSE == "leave":
            os._exit(7)
        if CLOSE == "finalize":
            from mpi4py import MPI

            ctypes.CDLL(MPI.__file__).MPI_Finalize()


class Uneven(Numbers):
    """Steps take longer on higher ranks: with dropped stragglers the last rank is always late."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time.sleep(0.0005 * RANK)
        return super().step(action)


class Deadly(Numbers):
    """Kills its process at the first step."""

    def step(self, action: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


class FullDisk(Numbers):
    """From step 300 on this process cannot write more than 10 kB into a file."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.steps == 300:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        return super().step(action)


class Rude(Numbers):
    """Takes the process for its own: where it is made, and where its first episode begins."""

    def __init__(self) -> None:
        super().__init__()
        self.has_begun = False
        os.chdir("/")
        os.umask(0o777)
        np.seterr(all="raise")
        warnings.simplefilter("error")
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        if not self.has_begun:
            self.has_begun = True
            os.chdir("/usr")
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(3))
        return super().reset(seed=seed)


class FarAway(Numbers):
    """Shows a number far from 0, by turns one more and one less: in an even number of rows its deviation is 1."""

    observation_space: spaces.Space[Any] = spaces.Box(-np.inf, np.inf, (2,), np.float64)

    def observe(self) -> Any:
        return np.array([1e9, 0.0]) + (1.0 if self.steps % 2 else -1.0)


class SpoilsGradients(Numbers):
    """From step 300 on rank 2's network has a gradient that is NaN, though its outputs are finite."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.steps == 300 and RANK == 2:
            backward = MLP.backward

            def spoilt(network: MLP, *arguments: np.ndarray) -> None:
                backward(network, *arguments)
                network._value.d_weight[1, 0] = np.nan

            MLP.backward = spoilt  # type: ignore[method-assign]
        return super().step(action)


_CLASSES: tuple[Any, ...] = (
    Words, Image, ListActions, Unmakeable, SlowLater, BadOnRankTwo, Uneven, Deadly, FullDisk, Rude, FarAway,
    SpoilsGradients, ClosesBadly,
)  # fmt: skip
for _class in _CLASSES:
    gymnasium.register(id=f"odd/{_class.__name__}-v0", entry_point=_class, max_episode_steps=30)
