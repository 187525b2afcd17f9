"""What a rank builds: environments that draw from the process's own generators do so from streams of their worker."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from dppo.config import Config, resolve
from dppo.workplace import build_workplace, make_collector


class Careless(gymnasium.Env[np.ndarray, Any]):
    """Seeds the process's generators when it is made, and draws from all of them."""

    observation_space = gymnasium.spaces.Box(0, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self) -> None:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.draw(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.draw(), 0.0, False, False, {}

    def draw(self) -> np.ndarray:
        return np.array([random.random(), np.random.random(), float(torch.rand(()))], np.float32)  # noqa: NPY002


@pytest.fixture(autouse=True)
def kept() -> Iterator[None]:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    creator: Any = Careless
    gymnasium.register("Careless-v0", creator)
    yield
    del gymnasium.registry["Careless-v0"]
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])


def observations(worker: int, seed: int = 3, row: int = 0) -> np.ndarray:
    """[4, 2, 3]: what the policy of `worker` sees, in a run that begins or goes on at `row`."""
    config = resolve(Config(env="Careless-v0", seed=seed, num_envs=2, horizon=4, total_steps=100))
    place = build_workplace(config, worker)
    collector = make_collector(config, place, {} if row else None, row)
    return collector.collect(4, 0).observations


def test_workers_see_numbers_of_their_own_and_a_run_repeats() -> None:
    first = observations(0)
    np.testing.assert_array_equal(observations(0), first)
    for other in (observations(1), observations(0, seed=4), observations(0, row=8)):
        assert not np.isin(other, first).any()
    np.testing.assert_array_equal(observations(1), observations(1))
