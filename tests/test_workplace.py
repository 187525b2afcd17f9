"""What cannot fit into this node's memory is refused before it is made."""

from __future__ import annotations

import os

import gymnasium
import numpy as np
import pytest

from dppo.config import Config, ModelConfig, resolve, updated
from dppo.models.policy import make_policy
from dppo.workplace import build_workplace

PROBE = "dppo.envs.probes:dppo/ProbeConstant-v0"


def test_rollouts_that_are_larger_than_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve(updated(Config(env=PROBE), {"num_envs": 4, "horizon": 10**6, "ppo": {"minibatches": 1}}))
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10**5}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    build_workplace(config, 0).envs.close()  # type: ignore[union-attr]
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "4")
    with pytest.raises(
        ValueError, match=r"horizon\*num_envs=1000000\*4 samples take .* GB on each .* 4 rank\(s\), and it"
    ):
        build_workplace(config, 0)
    build_workplace(config, None)  # a server that steps nothing


def test_a_network_that_is_too_large_is_refused_before_it_is_made() -> None:
    observations = gymnasium.spaces.Box(-1, 1, (10**6,), np.float32)
    cfg, rng = ModelConfig(hidden=(8192,)), np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"makes 16,[0-9,]+ parameters with these spaces, and at most 500,000,000"):
        make_policy(observations, gymnasium.spaces.Discrete(2), cfg, rng)
