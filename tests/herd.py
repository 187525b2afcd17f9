"""Simulators of agents as users might write them: as a ParallelEnv without PettingZoo, as a vector, and wrong ones."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

LONGEST = 9


class Herd:
    """Agents that leave one after another, when the dice say so; those that are left after nine steps are truncated.

    Observation: the agent's number, the time, and what all agents' actions have added up to. Reward: the action plus a
    tenth of the number. Everything wrong is asked for by `fault`, and happens in step 2, or in the reset.
    """

    made: ClassVar[list[Herd]] = []

    def __init__(
        self, agents: int = 3, fault: str = "", masks: str = "", fails_from: int = 2, render_mode: Any = None
    ) -> None:
        self.possible_agents: Any = [f"cow_{i}" for i in range(agents)]
        self.agents: list[str] = []
        self.fault, self.masks, self.fails_from, self.is_closed = fault, masks, fails_from, False
        self.resets = 0
        type(self).made.append(self)

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        size = 4 if self.fault == "other observations" and agent == "cow_1" else 3
        seen = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        return spaces.Dict({"seen": seen, "action_mask": spaces.MultiBinary(3)}) if self.masks == "leaf" else seen

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Discrete(4 if self.fault == "other actions" and agent == "cow_2" else 3)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.rng, self.time, self.total = np.random.default_rng(seed), 0, float(seed or 0) % 97
        self.resets += 1
        if self.fault == "remembers":
            self.total += self.resets
        if self.fault == "agents change":
            self.possible_agents = [*self.possible_agents, "calf"]
        if self.fault == "reset raises":
            raise RuntimeError("no grass")
        self.agents = self.possible_agents[:2] if self.fault == "one is late" else list(self.possible_agents)
        told = self._observe(), self._infos()
        return told[0] if self.fault == "no infos" else told

    def step(self, actions: dict[str, int]) -> Any:
        assert actions.keys() == set(self.agents), "those that have left get no actions"
        self.time += 1
        self.total += sum((i + 1) * int(actions[a]) for i, a in enumerate(self.possible_agents) if a in actions)
        now = self.fault if self.time >= self.fails_from else ""
        if now == "step raises":
            raise RuntimeError("lightning")
        observations = self._observe()
        rewards = {a: float(actions[a]) + 0.1 * self.possible_agents.index(a) for a in self.agents}
        terminations = {a: bool(self.rng.random() < 0.2) for a in self.agents}
        truncations = dict.fromkeys(self.agents, self.time >= LONGEST)
        infos = self._infos()
        gone = [a for a in self.agents if terminations[a] or truncations[a]]
        if now == "over without a word":
            terminations, gone = dict.fromkeys(self.agents, False), list(self.agents)
        if now == "leaves without a word" and len(self.agents) > 1:
            terminations[self.agents[0]], truncations[self.agents[0]], gone = False, False, self.agents[:1]
        if now == "says nothing of one":
            del observations[self.agents[-1]]
        if now == "a wrong shape":
            observations[self.agents[0]] = np.zeros(2, np.float32)
        if now == "no finite reward":
            rewards["cow_1"] = np.nan
        self.agents = [a for a in self.agents if a not in gone]
        if now == "one more comes":
            self.agents.append("calf")
        if now == "no dicts":
            return 1, 2, 3, 4, {}
        return observations, rewards, terminations, truncations, infos

    def close(self) -> None:
        self.is_closed = True

    def _observe(self) -> dict[str, Any]:
        seen = {a: np.array([self.possible_agents.index(a), self.time, self.total], np.float32) for a in self.agents}
        if self.masks == "leaf":
            return {a: {"seen": value, "action_mask": self._mask(a)} for a, value in seen.items()}
        return dict(seen)

    def _infos(self) -> dict[str, Any]:
        return {a: {"action_mask": self._mask(a)} if self.masks == "info" else {} for a in self.agents}

    def _mask(self, agent: str) -> np.ndarray:
        """One action is illegal, another one for each agent at each time."""
        mask = np.ones(3, np.int8)
        mask[(self.time + self.possible_agents.index(agent)) % 3] = 0
        return mask


class Unlisted(Herd):
    """Does not list its agents."""

    def __init__(self) -> None:
        super().__init__()
        self.possible_agents = None


class Turns(Herd):
    """Agents that take turns, as in an AECEnv."""

    def agent_iter(self) -> Any: ...

    def last(self) -> Any: ...


class NoSeed(Herd):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class FlockVector(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """The same agents as a vector that has names, and returns what it likes of those that have left."""

    metadata = {"autoreset_mode": "Disabled"}  # noqa: RUF012

    def __init__(self, agents: int = 3, names: Any = None, masks: bool = False, fault: str = "") -> None:
        Herd.made, self._fault = [], fault
        self._herd, self.num_envs, self._masks = Herd(agents, masks="info"), agents, masks
        self.single_observation_space, self.single_action_space = (
            self._herd.observation_space("cow_0"),
            self._herd.action_space("cow_0"),
        )
        self.possible_agents = [f"goose_{i}" for i in range(agents)] if names is None else names

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        if self._fault == "names change":
            self.possible_agents = [*self.possible_agents[1:], "gosling"]
        observations, infos = self._herd.reset(seed)
        return np.stack(list(observations.values())), self._told(infos)

    def step(self, actions: np.ndarray) -> Any:
        herd = self._herd
        sent = {a: actions[i] for i, a in enumerate(herd.possible_agents) if a in herd.agents}
        actions[:] = 0  # its own
        *told, infos = herd.step(sent)
        blank = (np.full(3, np.nan, np.float32), np.nan, True, False)
        columns = [[part.get(a, none) for a in herd.possible_agents] for part, none in zip(told, blank, strict=True)]
        return (*map(np.array, columns), self._told(infos))

    def _told(self, infos: dict[str, Any]) -> dict[str, Any]:
        if not self._masks:
            return {}
        there = np.array([a in infos for a in self._herd.possible_agents])
        masks = [infos[a]["action_mask"] if a in infos else np.zeros(3, np.int8) for a in self._herd.possible_agents]
        return {"action_mask": np.array(masks), "_action_mask": there}
