"""Environments of the studies of images, the same for every trainer: 84 x 84 x 4 bytes, channels first.

`Pictures` costs nearly nothing, so that what is measured is the trainer; Pong is the simulator with Gymnasium's own
preprocessing.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

SHAPE = (4, 84, 84)
LENGTH = 500
"""Steps of an episode of `Pictures`."""


class Pictures(gymnasium.Env[np.ndarray, np.int64]):
    """Shows noise that was drawn beforehand, and rewards one action that the picture tells."""

    observation_space = gymnasium.spaces.Box(0, 255, SHAPE, np.uint8)
    action_space = gymnasium.spaces.Discrete(6)

    def __init__(self) -> None:
        self._shown = np.random.default_rng(0).integers(256, size=(64, *SHAPE), dtype=np.uint8)
        self._right = self._shown[:, 0, 0, 0] % 6
        self._step = self._now = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._step, self._now = 0, int(self.np_random.integers(len(self._shown)))
        return self._shown[self._now], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = float(action == self._right[self._now])
        self._step, self._now = self._step + 1, (self._now + 1) % len(self._shown)
        return self._shown[self._now], reward, False, self._step >= LENGTH, {}


def pong() -> gymnasium.Env[Any, Any]:
    """Makes Pong as dppo's preset does, from Gymnasium's parts alone."""
    import ale_py

    gymnasium.register_envs(ale_py)
    game = gymnasium.make("ALE/Pong-v5", frameskip=1, obs_type="grayscale", disable_env_checker=True)
    return FrameStackObservation(AtariPreprocessing(game), 4)


def make(study: str) -> gymnasium.Env[Any, Any]:
    """Makes the environment of a study."""
    return pong() if study == "pong" else Pictures()
