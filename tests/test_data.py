"""A rollout's columns, and the memory that they take."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from dppo.config import ModelConfig, MomentsConfig
from dppo.data import Rollout
from dppo.models.policy import make_policy

PIXELS = spaces.Box(0, 255, (84, 84, 4), np.uint8)


def blank(observation_space: spaces.Space, horizon: int = 128, num_envs: int = 8) -> Rollout:
    rng = np.random.default_rng(0)
    policy = make_policy(observation_space, spaces.Discrete(6), ModelConfig(), MomentsConfig(), rng, mask_size=6)
    return policy.blank_rollout(0, horizon, num_envs)


@pytest.mark.parametrize(
    "space",
    [PIXELS, spaces.Dict({"camera": PIXELS, "speed": spaces.Box(-1.0, 1.0, (3,), np.float32)})],
    ids=["image", "image-and-vector"],
)
def test_a_rollout_of_images_takes_the_memory_of_the_raw_observations(space: spaces.Space) -> None:
    """As uint8, once: float32 inputs beside them would take five times as much."""
    rollout = blank(space)
    raw = 128 * 8 * 84 * 84 * 4
    assert raw <= rollout.observations.nbytes <= rollout.num_bytes <= 1.2 * raw
    whole = rollout.num_bytes
    rollout.cut(64)
    assert np.shares_memory(rollout.inputs, rollout.observations)
    assert rollout.num_bytes == whole // 2


def test_columns_of_their_own_all_count() -> None:
    rollout = blank(spaces.Box(-1.0, 1.0, (3,), np.float32), 4, 2)
    assert not np.shares_memory(rollout.inputs, rollout.observations)
    assert rollout.env_actions is rollout.actions
    columns = {
        "observations": 12, "inputs": 12, "masks": 6, "actions": 8, "heads": 24, "rewards": 4, "terminations": 1,
        "truncations": 1, "valid": 1, "log_probs": 4, "values": 4, "next_values": 4,
    }  # fmt: skip
    assert rollout.num_bytes == 4 * 2 * sum(columns.values()) + 4 * 8  # and the version of each row
