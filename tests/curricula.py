"""Environments whose dynamics depend on the share of the run that is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

BOX = gymnasium.spaces.Box(-1e6, 1e6, (2,), np.float32)


class Growing(gymnasium.Env):
    """Starts, steps and rewards depend on the fraction that was told last; without one, it is far away."""

    observation_space, action_space = BOX, gymnasium.spaces.Discrete(3)

    def __init__(self, length: int = 11) -> None:
        self._length, self.fraction = length, 1000.0
        self.heard: list[float] = []

    def set_progress(self, fraction: float) -> None:
        self.fraction = fraction
        self.heard.append(fraction)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._x = float(self.np_random.normal()) + self.fraction
        self._steps = 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._x = 0.9 * self._x + float(action) - 1.0 + self.fraction
        self._steps += 1
        return self._seen(), self._x * self.fraction, False, self._steps >= self._length, {}

    def _seen(self) -> np.ndarray:
        return np.array([self._x, self.fraction], np.float32)


class Harder(gymnasium.Wrapper):
    """Makes rewards of any environment depend on what it was told last, and when its episode began."""

    _fraction = _begun = 1000.0

    def set_progress(self, fraction: float) -> None:
        self._fraction = fraction

    def reset(self, **arguments: Any) -> Any:
        self._begun = self._fraction
        return self.env.reset(**arguments)

    def step(self, action: Any) -> Any:
        observation, reward, *rest = self.env.step(action)
        return observation, float(reward) * (1.0 + self._fraction) + self._begun, *rest


class SavedGrowing(Growing):
    """Saves its own state, without the fraction."""

    def save_state(self, path: Path) -> None:
        (path / "x.json").write_text(json.dumps([self._x, self._steps]))

    def load_state(self, path: Path) -> None:
        self._x, self._steps = json.loads((path / "x.json").read_text())


class Pair:
    """Two agents of one simulator, in PettingZoo's form."""

    possible_agents = ("a", "b")

    def __init__(self) -> None:
        self._of = {agent: Growing(length) for agent, length in zip(self.possible_agents, (7, 11), strict=True)}

    def set_progress(self, fraction: float) -> None:
        for env in self._of.values():
            env.set_progress(fraction)

    def observation_space(self, agent: str) -> gymnasium.Space[Any]:
        return BOX

    def action_space(self, agent: str) -> gymnasium.Space[Any]:
        return Growing.action_space

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents = list(self.possible_agents)
        return {agent: self._of[agent].reset(seed=seed)[0] for agent in self.agents}, {a: {} for a in self.agents}

    def step(self, actions: dict[str, int]) -> Any:
        results = {agent: self._of[agent].step(action) for agent, action in actions.items()}
        self.agents = [agent for agent, result in results.items() if not result[3]]
        return tuple({agent: result[i] for agent, result in results.items()} for i in range(5))

    def close(self) -> None: ...


def vector(num_envs: int, **kwargs: Any) -> gymnasium.vector.SyncVectorEnv:
    """A vector form that knows nothing of it; its environments do."""
    return gymnasium.vector.SyncVectorEnv([Growing] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
