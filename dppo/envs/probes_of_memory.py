"""A tiny environment whose answer was shown long ago: without memory, a policy earns half of what is possible."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class ProbeTMaze(gymnasium.Env[np.ndarray, np.int64]):
    """Walks along a corridor to a T-junction: action 0 goes on, 1 and 2 turn left and right at the junction, and are
    wrong in the corridor, where they earn -0.1 and go on as well. A sign at the start says which turn earns 1; the
    other earns 0, action 0 at the junction, too. Optimal return: 1; without memory: 0.5.

    Args:
      length: the number of steps from the sign to the junction.
      image: whether it shows a picture [8, 8, 1] uint8, in place of three numbers (sign, corridor, junction).

    Source: Bakker 2002, section 4.1, with a corridor that no action leaves, so that all episodes are equally long.
    """

    action_space = spaces.Discrete(3)

    def __init__(self, length: int = 20, image: bool = False) -> None:
        self._length, self._shows_image = length, image
        self.observation_space = (
            spaces.Box(0, 255, (8, 8, 1), np.uint8) if image else spaces.Box(-1.0, 1.0, (3,), np.float32)
        )

    def _observe(self) -> np.ndarray:
        sign = self._side if self._place == 0 else 0
        is_junction = self._place == self._length
        if not self._shows_image:
            return np.array([sign, not is_junction, is_junction], np.float32)
        picture = np.full((8, 8, 1), 64, np.uint8)
        if sign:
            picture[:, :4] = 255 if sign < 0 else 0
            picture[:, 4:] = 255 if sign > 0 else 0
        if is_junction:
            picture[3:5] = 255
        return picture

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._place, self._side = 0, int(self.np_random.choice((-1, 1)))
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self._place == self._length:
            return self._observe(), float(action == (1 if self._side < 0 else 2)), True, False, {}
        self._place += 1
        return self._observe(), 0.0 if action == 0 else -0.1, False, False, {}


gymnasium.register(id="dppo/ProbeTMaze-v0", entry_point=f"{__name__}:ProbeTMaze")
