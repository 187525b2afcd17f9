"""One run of CleanRL's ppo_atari.py, in its own virtual environment; benchmarks/peers.py starts it.

The script is run as it is installed (1.2.0, of which torch and Gymnasium may be newer). It imports gym 0.23: a module
of that name is put in its place, whose vector has the environments of the study and the interface of then. Its own
settings are the equal work of the study but for the clipped value loss.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import gymnasium
import torch
from ledger import Ledger, Recorded, arguments, report
from pictures import make

NUM_ENVS = 8


class OldVector:
    """Gymnasium's vector of environments, with what gym 0.23 returned."""

    def __init__(self, make_env: Callable[[], gymnasium.Env[Any, Any]], seed: int) -> None:
        same_step = gymnasium.vector.AutoresetMode.SAME_STEP
        self._envs = gymnasium.vector.SyncVectorEnv([make_env] * NUM_ENVS, autoreset_mode=same_step)
        self._seed = seed
        self.single_observation_space = self._envs.single_observation_space
        self.single_action_space = self._envs.single_action_space

    def reset(self) -> Any:
        return self._envs.reset(seed=self._seed)[0]

    def step(self, actions: Any) -> Any:
        observations, rewards, terminated, truncated, _ = self._envs.step(actions)
        return observations, rewards, terminated | truncated, []  # each item of the last would be an env's info

    def close(self) -> None:
        self._envs.close()


def main() -> None:
    """Trains, then prints one line of JSON."""
    args = arguments(__doc__.split("\n")[0])
    torch.set_num_threads(args.threads)
    ledger = Ledger(args.folder, args.target)
    gym: Any = ModuleType("gym")
    gym.spaces = gymnasium.spaces
    gym.vector = SimpleNamespace(
        SyncVectorEnv=lambda _: OldVector(lambda: Recorded(make(args.study), ledger), args.seed)
    )
    gym.Wrapper = gym.ObservationWrapper = object
    sys.modules["gym"] = gym
    found = importlib.util.find_spec("cleanrl.ppo_atari")
    assert found is not None and found.origin is not None
    sys.argv = [found.origin, "--total-timesteps", str(args.steps), "--seed", str(args.seed), "--cuda", "False"]
    sys.argv += ["--num-envs", str(NUM_ENVS), "--clip-vloss", "False"]
    runpy.run_path(found.origin, run_name="__main__")
    report(args, "cleanrl", args.study, ledger.steps, time.monotonic())


if __name__ == "__main__":
    main()
