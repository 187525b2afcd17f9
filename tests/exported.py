"""Policies of any spaces and networks, as they might be in mid-run, without an environment."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from dppo.algo.losses import METRICS
from dppo.algo.moments import RewardScale
from dppo.config import Config, ModelConfig, MomentsConfig
from dppo.envs.leaves import array_type, leaves
from dppo.models.policy import make_policy
from dppo.settings.resolve import resolve
from dppo.training.moments import RunMoments
from dppo.training.policy import Policy
from dppo.training.state import TrainingState

MANY_OBSERVED = spaces.Dict({
    "action_mask": spaces.MultiBinary(19),
    "float": spaces.Box(-np.inf, np.inf, (3,), np.float32),
    "double": spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
    "half": spaces.Box(-1, 1, (2,), np.float16),
    "number": spaces.Box(0, 9, (), np.int64),
    "bytes": spaces.Box(0, 255, (3,), np.uint8),
    "words": spaces.Box(-1000, 1000, (2,), np.int32),
    "nothing": spaces.Box(0, 1, (0,), np.float32),
    "choice": spaces.Discrete(5, start=-2),
    "choices": spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[0, 1], [-1, 7]]),
    "index": spaces.Tuple([spaces.Discrete(100, start=7), spaces.MultiDiscrete([3, 200], start=[1, 0])]),
    "bits": spaces.MultiBinary([2, 3]),
    "first": spaces.Box(0, 255, (3, 6, 7), np.uint8),
    "last": spaces.Box(-1, 1, (6, 5, 2), np.float64),
    "unbounded": spaces.Box(-np.inf, np.inf, (5, 5, 1), np.float32),
})  # fmt: skip
MANY_ACTED = spaces.Dict({
    "arm": spaces.Tuple([spaces.Box(-2, 5, (2, 2), np.float32), spaces.MultiDiscrete([2, 3], start=[1, 0])]),
    "free": spaces.Box(-np.inf, np.inf, (2,), np.float64),
    "gear": spaces.Discrete(3, start=-1),
    "half": spaces.Box(0, 1, (1,), np.float16),
    "level": spaces.Box(-5, 5, (), np.int8),
    "lights": spaces.MultiBinary([2, 2]),
})  # fmt: skip
"""Spaces with every kind of leaf."""


def seen(space: spaces.Space[Any], rows: int, rng: np.random.Generator) -> np.ndarray:
    """Observations [rows, *obs], as of a simulator: what has no bounds lies about a large offset."""
    shape, dtype = array_type(space)
    out = np.zeros((rows, *shape), dtype)
    for leaf in leaves(space):
        leaf.space.seed(int(rng.integers(1000)))
        offset = 5000.0 * (leaf.dtype == np.float64 and not np.isfinite(leaf.space.high).all())
        leaf.of(out)[...] = np.stack([leaf.space.sample() for _ in range(rows)]) + leaf.dtype.type(offset)
    return out


def policy_of(
    observed: spaces.Space[Any],
    acted: spaces.Space[Any],
    model: ModelConfig,
    *,
    mask_size: int = 0,
    moments: MomentsConfig = MomentsConfig(),  # noqa: B008
) -> Policy:
    """A policy whose parameters, moments and deviations are no initial ones."""
    config = resolve(Config(env="CartPole-v1", model=model, moments=moments))
    rng = np.random.default_rng(3)
    parts = make_policy(observed, acted, model, moments, rng, len(METRICS), mask_size)
    run_moments = RunMoments(parts.inputs, RewardScale(is_used=moments.returns))
    state = TrainingState(parts.flat, run_moments, config)
    observations = seen(observed, 50, rng)
    state.merge(run_moments.deltas(observations, rng.normal(0, 3, (50, 1))))
    state.begin_iteration()
    noise = rng.normal(0.0, 0.2, (2, parts.flat.size)).astype(np.float32)
    parts.flat.vector[...] = parts.flat.vector * (1.0 + noise[0]) + 0.02 * noise[1]
    return Policy(config, observed, acted, state.as_dict(), mask_size)
