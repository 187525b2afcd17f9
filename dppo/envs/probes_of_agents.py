"""Simulators of many agents with a known best return: `Signs` as a vector of agents, `parallel_env` as PettingZoo's.

Every agent sees a sign, and is paid 1 for the action that copies it. Agent a leaves after 10, 8 or 6 steps (a % 3 = 0,
1 or 2): so the best mean return of all agents' episodes is 8, and guessing earns 4. Everybody also sees how often all
agents together have chosen 1, so that only all agents' actions restore an episode. Where the simulator has several
ranks, each of them steps a share of the agents, and an episode is the same to the bit.
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
      count: A, the number of agents.
      comm: the communicator of the simulator's ranks; None: there is one.

    Attributes:
      lengths: [A] int: the number of steps after which each agent leaves; those that stay longest are truncated.
    """

    def __init__(self, count: int, comm: Any) -> None:
        self.lengths = 10 - 2 * (np.arange(count) % 3)
        self._comm = comm
        rank, size = (0, 1) if comm is None else (comm.rank, comm.size)
        self._mine = slice(rank * count // size, (rank + 1) * count // size)
        self.is_head = rank == 0

    def reset(self, seed: int | None) -> np.ndarray:
        self._rng = np.random.default_rng(seed)
        self.time = self._chosen = 0
        (self._signs,) = self._of_all(self._draw())
        return self._observe()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Takes the actions [A]; those of agents that have left do not matter."""
        plays, mine = self.time < self.lengths, self._mine
        right = actions[mine] == (self._signs[mine] > 0)
        chosen, rewards, self._signs = self._of_all(plays[mine] * actions[mine], plays[mine] * right, self._draw())
        self._chosen += int(chosen.sum())
        self.time += 1
        ends = plays & (self.time >= self.lengths)
        stays = self.lengths == self.lengths.max()
        return self._observe(), rewards, ends & ~stays, ends & stays

    def _draw(self) -> np.ndarray:
        return self._rng.choice((-1.0, 1.0), len(self.lengths))[self._mine]

    def _observe(self) -> np.ndarray:
        return np.stack([self._signs, np.full(len(self.lengths), self._chosen % 7 / 7)], axis=1).astype(np.float32)

    def _of_all(self, *mine: np.ndarray) -> np.ndarray:
        """Collective over the simulator's ranks. Returns columns [..., A] of all agents; `mine` are of this rank's."""
        columns = np.array(mine, np.float64)
        return columns if self._comm is None else np.concatenate(self._comm.allgather(columns), axis=1)


class Signs(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """The agents as a vector."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012
    single_observation_space, single_action_space = _OBSERVATIONS, _ACTIONS

    def __init__(self, agents: int = 12, comm: Any = None) -> None:
        self.num_envs = agents
        self.observation_space, self.action_space = batch_space(_OBSERVATIONS, agents), batch_space(_ACTIONS, agents)
        self._crowd = _Crowd(agents, comm)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        assert not isinstance(seed, list)
        return self._crowd.reset(seed), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        return (*self._crowd.step(actions), {})


class parallel_env:
    """The agents as a ParallelEnv of PettingZoo, without PettingZoo; named as its modules name them.

    Of several ranks the first one returns what has come of a call, and the others None.
    """

    def __init__(self, agents: int = 12, comm: Any = None) -> None:
        self.possible_agents = [f"signaller_{i}" for i in range(agents)]
        self.agents: list[str] = []
        self._crowd = _Crowd(agents, comm)

    def observation_space(self, agent: str) -> gymnasium.Space[Any]:
        return _OBSERVATIONS

    def action_space(self, agent: str) -> gymnasium.Space[Any]:
        return _ACTIONS

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], ...] | None:
        self.agents = list(self.possible_agents)
        told: tuple[dict[str, Any], ...] = self._by_agent(self._crowd.reset(seed)), {agent: {} for agent in self.agents}
        return told if self._crowd.is_head else None

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...] | None:
        assert actions.keys() == set(self.agents), "agents that have left get no actions"
        taken = np.array([actions.get(agent, 0) for agent in self.possible_agents])
        observations, rewards, terminations, truncations = self._crowd.step(taken)
        told = tuple(map(self._by_agent, (observations, rewards, terminations, truncations)))
        infos: dict[str, Any] = {agent: {} for agent in self.agents}
        self.agents = [agent for agent in self.agents if not (told[2][agent] or told[3][agent])]
        return (*told, infos) if self._crowd.is_head else None

    def close(self) -> None:
        pass

    def _by_agent(self, values: np.ndarray) -> dict[str, Any]:
        """Returns the values of the agents that are there."""
        return {agent: values[i] for i, agent in enumerate(self.possible_agents) if agent in self.agents}
