"""What is tried and said before training."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from mpi4py import MPI

from dppo.config import Config
from dppo.errors import UsageError
from dppo.run import setup
from dppo.settings.resolve import resolve
from dppo.training.build import build_parts


class Stepped(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-10, 10, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, error: BaseException | None = None) -> None:
        self._error = error

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[np.ndarray, dict[str, object]]:
        return np.array([0, 1], np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, object]]:
        if self._error is not None:
            raise self._error
        return np.array([-3, 0.5], np.float32), 2.5, False, True, {}


@pytest.mark.parametrize("error", [None, ZeroDivisionError("no flow"), SystemExit(1)], ids=str)
def test_a_dry_run_steps_every_environment_once_and_says_what_it_saw(error: BaseException | None) -> None:
    gymnasium.register("Stepped-v0", Stepped, kwargs={"error": error})
    try:
        place = build_parts(resolve(Config(env="Stepped-v0", num_envs=2)), 0)
    finally:
        gymnasium.registry.pop("Stepped-v0")
    if error is None:
        assert setup.try_environments(place, MPI.COMM_SELF) == (
            "the first environment was reset and stepped once: observations float32 [2] of 0 to 1, reward 2.5,"
            " truncated"
        )
        return
    with pytest.raises(UsageError, match=rf"failed in its first steps: {type(error).__name__}.*test_setup\.py:\d+"):
        setup.try_environments(place, MPI.COMM_SELF)
