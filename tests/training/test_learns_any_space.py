"""One worker learns the probes whose observations or actions are no plain vectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from dppo.config import ModelConfig, OptimConfig, PPOConfig
from tests.parts import SMALL, Parts, make_parts, probe

CONFIG = replace(
    SMALL, num_envs=8, horizon=32, ppo=PPOConfig(epochs=4, minibatches=4),
    optim=OptimConfig(lr=3e-3, schedule="constant"), model=ModelConfig(hidden=(64,)),
)  # fmt: skip
INPUTS = replace(
    CONFIG, ppo=replace(CONFIG.ppo, entropy_coef=0.02), model=replace(CONFIG.model, activation="relu")
)  # fmt: skip
"""An entropy bonus keeps the policy from being sure of three of the four cases while the fourth is still wrong."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As a rank has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def greedy_mean(place: Parts, rows: int = 25) -> float:
    """The mean reward of the mode in episodes of one step."""
    envs, policy = place.collector.envs, place.policy
    observations, rewards = envs.reset(), []
    for _ in range(rows):
        step = envs.step(policy.distribution.to_env(policy.greedy(policy.inputs(observations), envs.masks)))
        rewards.append(step.rewards.copy())
        observations = step.observations
    return float(np.mean(rewards))


OWN = replace(INPUTS, model=ModelConfig(factory="tests.models.structured_networks:OnProbe"))
"""A network of the user's own."""
CONFIGS = {"Inputs": INPUTS, "Inputs-own": OWN}
LEARNT = {
    "Choice": (8, 1.0),
    "ManyChoices": (20, 0.95),
    "Mask": (8, 1.0),
    "Inputs": (12, 1.0),
    "Inputs-own": (12, 1.0),
    "Parts": (30, 1.9),
}
"""Iterations of 256 steps, and the mean reward that is asked for after them."""


@pytest.mark.parametrize("name", LEARNT)
def test_one_worker_learns_it(name: str) -> None:
    iterations, least = LEARNT[name]
    place = make_parts(CONFIGS.get(name, CONFIG), env=probe(name.removesuffix("-own")))
    before = greedy_mean(place)
    for _ in range(iterations):
        place.iterate()
    assert greedy_mean(place) >= least > before
