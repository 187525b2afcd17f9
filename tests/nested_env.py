"""An environment whose observations and actions are trees, and which has masks: `--env tests.nested_env:Nested`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

OBSERVED = spaces.Dict({
    "camera": spaces.Box(0, 255, (6, 5, 3), np.uint8),
    "pose": spaces.Tuple([
        spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.Discrete(3, start=1), spaces.Box(-9, 9, (), np.float64),
    ]),
    "bits": spaces.MultiBinary([2, 2]),
})  # fmt: skip
ACTED = spaces.Dict({
    "arm": spaces.Tuple([spaces.Box(-0.5, 0.5, (2, 2), np.float64), spaces.MultiDiscrete([[2, 3], [4, 2]])]),
    "gear": spaces.Discrete(3, start=1),
    "level": spaces.Box(2, 5, (2,), np.uint8),
})  # fmt: skip
CHOICES = 2 + 3 + 4 + 2 + 3 + 4 + 4
"""The entries of a mask; those of `gear` are the entries 11 to 13."""


class Nested(gymnasium.Env[Any, Any]):
    """Draws its observations from the episode's seed, and pays what the actions say; episodes of 5 or 8 steps, which
    end or are truncated. Forbids a gear, and is told of no gear that it forbids.
    """

    observation_space: spaces.Space[Any] = OBSERVED
    action_space: spaces.Space[Any] = ACTED

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left, self.ends = (5, True) if self.np_random.random() < 0.5 else (8, False)
        return self.observe(), self.forbid()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        assert self.gear_of(action) - 1 != self.forbidden
        self.left -= 1
        over = self.left == 0
        return self.observe(), self.worth(action), over and self.ends, over and not self.ends, self.forbid()

    def gear_of(self, action: Any) -> int:
        return int(action["gear"])

    def worth(self, action: Any) -> float:
        return float(action["arm"][0].sum()) + float(action["level"].sum())

    def observe(self) -> Any:
        rng = self.np_random
        return {
            "camera": rng.integers(0, 256, (6, 5, 3), np.uint8),
            "pose": (rng.normal(size=2).astype(np.float32), np.int64(rng.integers(1, 4)), np.array(rng.uniform(-9, 9))),
            "bits": rng.integers(0, 2, (2, 2), np.int8),
        }

    def forbid(self) -> dict[str, Any]:
        self.forbidden = int(self.np_random.integers(3))
        gear = np.arange(3) != self.forbidden
        return {"action_mask": np.concatenate((np.ones(11, bool), gear, np.ones(8, bool)))}


class Masked(Nested):
    """Observes a number, and chooses a gear alone."""

    observation_space = spaces.Discrete(7)
    action_space = spaces.Discrete(3, start=1)

    def gear_of(self, action: Any) -> int:
        return int(action)

    def worth(self, action: Any) -> float:
        return float(action)

    def observe(self) -> Any:
        return self.np_random.integers(7)

    def forbid(self) -> dict[str, Any]:
        self.forbidden = int(self.np_random.integers(3))
        return {"action_mask": np.arange(3) != self.forbidden}
