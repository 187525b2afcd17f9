"""A tiny environment that needs memory; more probes are in probes.py and probes_of_spaces.py."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

SIDE = 8
"""Height and width of an image."""


class TMaze(gymnasium.Env[np.ndarray, Any]):
    """Shows left or right, then a corridor of `length` steps, which looks the same for both, then a junction. The
    action there earns 1 if it is the side that was shown, else 0, and ends the episode; all others only lead on.

    Optimal: 1. Whoever does not remember the first observation earns 0.5. Episodes have length + 2 steps, whatever the
    actions, so that memory is all there is to learn.

    Source: Bakker 2002 (Reinforcement Learning with Long Short-Term Memory), the T-maze; there, actions
    have to lead through the corridor as well.

    Args:
      length: steps between the cue and the junction.
      image: whether to observe images, [8, 8, 1] uint8, in place of three numbers: the cue (-1 left, 1 right), whether
        this is the corridor, whether it is the junction.
    """

    action_space = spaces.Discrete(2)

    def __init__(self, length: int = 20, image: bool = False) -> None:
        if length < 0:
            raise ValueError(f"length={length} must be at least 0")
        self.length, self.image = length, image
        self.observation_space = (
            spaces.Box(0, 255, (SIDE, SIDE, 1), np.uint8) if image else spaces.Box(-1.0, 1.0, (3,), np.float32)
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.side, self.time = int(self.np_random.integers(2)), 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        is_junction = self.time > self.length
        reward = float(is_junction and action == self.side)
        self.time += not is_junction
        return self._observe(), reward, is_junction, False, {}

    def _observe(self) -> np.ndarray:
        is_cue, is_junction = self.time == 0, self.time > self.length
        if not self.image:
            cue = 2.0 * self.side - 1.0 if is_cue else 0.0
            return np.array([cue, not (is_cue or is_junction), is_junction], np.float32)
        picture, half = np.zeros((SIDE, SIDE, 1), np.uint8), SIDE // 2
        if is_cue:
            picture[:, half * self.side : half * (self.side + 1)] = 255  # the half that the cue names
        elif is_junction:
            picture[:half] = 255
        else:
            picture[:, half - 1 : half + 1] = 255
        return picture


gymnasium.register(id="dppo/TMaze-v0", entry_point=f"{__name__}:TMaze")
