"""Simulators of many agents with a known best return: `Signs` as a vector of agents, `parallel_env` as PettingZoo's.

Every agent sees a sign, and is paid 1 for the action that copies it. Agent a leaves after 10, 8 or 6 steps (a % 3 = 0,
1 or 2): so the best mean return of all agents' episodes is 8, and guessing earns 4. Everybody also sees how often all
agents together have chosen 1, so that only all agents' actions restore an episode.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

_OBSERVATIONS = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
_ACTIONS = gymnasium.spaces.Discrete(2)


class _Crowd:
    """The simulator behind both forms.

    Args:
      lengths: [A] int: the number of steps after which each agent leaves; those that stay longest are truncated.
    """

    def __init__(self, count: int) -> None:
        self.lengths = 10 - 2 * (np.arange(count) % 3)

    def reset(self, seed: int | None) -> np.ndarray:
        self._rng = np.random.default_rng(seed)
        self.time = self._chosen = 0
        return self._observe()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Takes the actions [A]; those of agents that have left do not matter."""
        plays = self.time < self.lengths
        rewards = plays * (actions == (self._signs > 0)).astype(np.float64)
        self._chosen += int(actions[plays].sum())
        self.time += 1
        ends = plays & (self.time >= self.lengths)
        stays = self.lengths == self.lengths.max()
        return self._observe(), rewards, ends & ~stays, ends & stays

    def _observe(self) -> np.ndarray:
        self._signs = self._rng.choice((-1.0, 1.0), len(self.lengths))
        return np.stack([self._signs, np.full(len(self.lengths), self._chosen % 7 / 7)], axis=1).astype(np.float32)


class Signs(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """The agents as a vector."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012
    single_observation_space, single_action_space = _OBSERVATIONS, _ACTIONS

    def __init__(self, agents: int = 12) -> None:
        self.num_envs = agents
        self.observation_space, self.action_space = batch_space(_OBSERVATIONS, agents), batch_space(_ACTIONS, agents)
        self._crowd = _Crowd(agents)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        assert not isinstance(seed, list)
        return self._crowd.reset(seed), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        return (*self._crowd.step(actions), {})


class parallel_env:
    """The agents as a ParallelEnv of PettingZoo, without PettingZoo; named as its modules name them."""

    def __init__(self, agents: int = 12) -> None:
        self.possible_agents = [f"signaller_{i}" for i in range(agents)]
        self.agents: list[str] = []
        self._crowd = _Crowd(agents)

    def observation_space(self, agent: str) -> gymnasium.Space[Any]:
        return _OBSERVATIONS

    def action_space(self, agent: str) -> gymnasium.Space[Any]:
        return _ACTIONS

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], ...]:
        self.agents = list(self.possible_agents)
        return self._by_agent(self._crowd.reset(seed)), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        assert actions.keys() == set(self.agents), "agents that have left get no actions"
        taken = np.array([actions.get(agent, 0) for agent in self.possible_agents])
        observations, rewards, terminations, truncations = self._crowd.step(taken)
        told = tuple(map(self._by_agent, (observations, rewards, terminations, truncations)))
        infos: dict[str, Any] = {agent: {} for agent in self.agents}
        self.agents = [agent for agent in self.agents if not (told[2][agent] or told[3][agent])]
        return (*told, infos)

    def close(self) -> None:
        pass

    def _by_agent(self, values: np.ndarray) -> dict[str, Any]:
        """Returns the values of the agents that are there."""
        return {agent: values[i] for i, agent in enumerate(self.possible_agents) if agent in self.agents}
