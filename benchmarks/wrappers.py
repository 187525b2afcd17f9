"""Wrappers of rows of learning.py: `--wrappers benchmarks.wrappers:NAME`, in the root of the repository."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

LARGEST_CODE = 10
"""The largest number that MiniGrid writes into a cell: that of the agent's kind."""


class WithoutMask(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Takes the mask of legal actions out of the info."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, _without_mask(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, _without_mask(info)


def _without_mask(info: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in info.items() if key != "action_mask"}


def trading() -> gymnasium.Env[Any, Any]:
    """Makes gym-trading-env's environment, whose constructor needs an object, with a walk of made-up prices."""
    import gym_trading_env  # noqa: F401  (registers the environment)
    import pandas as pd

    changes = np.random.default_rng(0).normal(0, 0.01, 500)
    close = 100 * np.exp(np.cumsum(changes))
    days = pd.date_range("2020-01-01", periods=500)
    columns = dict.fromkeys(("open", "high", "low", "close"), close)
    prices = pd.DataFrame({**columns, "volume": 1.0, "feature_change": changes}, index=days)
    return gymnasium.make("TradingEnv", df=prices, positions=[-1, 0, 1])


class SeededMobileEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Has the seed of an episode decide what mobile-env draws.

    mobile-env 2.1.0 takes a seed when it is made, 0 by default, and ignores that of reset: all environments of a run
    play the same series of episodes.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            env: Any = self.env.unwrapped
            for number, drawing in enumerate((env, env.arrival, env.movement)):
                drawing.seed, drawing.rng = seed + number, None  # made anew by reset
        return self.env.reset(seed=seed, options=options)


class WithoutMission(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Leaves the text of the mission out, and says that the cells' codes end at 10.

    MiniGrid says 255, as of a picture: scaled by that, all codes would be nearly 0.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        assert isinstance(env.observation_space, spaces.Dict)
        parts = dict(env.observation_space.spaces)
        del parts["mission"]
        parts["image"] = spaces.Box(0, LARGEST_CODE, parts["image"].shape, np.uint8)
        self.observation_space = spaces.Dict(parts)

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        return {key: observation[key] for key in ("direction", "image")}
