"""An environment of any spaces, and seeds as the trainer gives them."""

from __future__ import annotations

import collections
import copy
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from dppo.seams import EpisodeSeed

OBSERVED = spaces.Dict({
    "vector": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "pair": spaces.Tuple([spaces.Box(0, 255, (4, 4, 3), np.uint8), spaces.Discrete(1000, start=1)]),
    "bits": spaces.MultiBinary(3),
})  # fmt: skip
ACTED = spaces.Dict({
    "arm": spaces.Tuple([spaces.Box(-1, 1, (3,), np.float32), spaces.MultiDiscrete([2, 3], start=[1, 0])]),
    "gear": spaces.Discrete(3, start=1),
    "flags": spaces.MultiBinary(2),
})  # fmt: skip


def counting_seeds() -> EpisodeSeed:
    """Seeds of their own for each environment and episode."""
    episodes: collections.Counter[int] = collections.Counter()

    def episode_seed(index: int) -> int:
        episodes[index] += 1
        return 1_000_000 * index + episodes[index]

    return episode_seed


class AnySpace(gymnasium.Env[Any, Any]):
    """Observes samples of its space, drawn from the episode's seed and the actions; episodes of four steps. Keeps what
    it was given and what it has returned.
    """

    made: list[AnySpace]
    """All that were made, in that order."""

    def __init__(self, observed: spaces.Space[Any] = OBSERVED, acted: spaces.Space[Any] = ACTED) -> None:
        self.observation_space, self.action_space = copy.deepcopy(observed), copy.deepcopy(acted)
        self.seeds: list[int | None] = []
        self.actions: list[Any] = []
        self.returned: list[Any] = []
        self.is_closed = False
        self.time = 0
        type(self).made.append(self)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.observation_space.seed(seed)
        self.time = 0
        return self.observe(), self.info()

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        self.time += 1
        return self.observe(), float(self.time), self.time == 4, False, self.info()

    def observe(self) -> Any:
        self.returned.append(self.observation_space.sample())
        return self.returned[-1]

    def info(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self.is_closed = True


class Masked(gymnasium.Env[Any, Any]):
    """Observes an image and a gear; one of three actions is illegal, another one in each step."""

    observation_space = spaces.Dict({"camera": spaces.Box(0, 255, (1, 6, 6), np.uint8), "gear": spaces.Discrete(3)})
    action_space = spaces.Dict({"gear": spaces.Discrete(3), "speed": spaces.Box(-1.0, 1.0, (1,), np.float32)})

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self._seen()

    def _seen(self) -> Any:
        legal = np.ones(3, np.int8)
        legal[self.t % 3] = 0
        camera = np.full((1, 6, 6), self.np_random.integers(0, 256), np.uint8)
        return {"camera": camera, "gear": np.int64(self.t % 3)}, {"action_mask": legal}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action) and action["gear"] != self.t % 3, action
        self.t += 1
        observation, info = self._seen()
        return observation, float(action["gear"]), self.t == 7, False, info


IMAGE = spaces.Box(0, 255, (6, 6, 3), np.uint8)
KINDS: dict[str, tuple[spaces.Space[Any], spaces.Space[Any]]] = {
    "dict": (spaces.Dict(v=spaces.Box(-np.inf, np.inf, (2,)), t=spaces.Discrete(3, start=1)), spaces.Discrete(3)),
    "image": (IMAGE, spaces.Discrete(3)),
    "masked": (spaces.Box(-1, 1, (2, 2)), spaces.Discrete(3)),
    "composite": (spaces.Box(-1, 1, (3,)), ACTED),
    "discrete": (spaces.Discrete(9, start=-2), spaces.Discrete(3)),
    "embedding": (spaces.Discrete(100, start=7), spaces.Box(-1, 1, ())),
}


class Kind(AnySpace):
    """An environment of KINDS, for jobs: `tests.any_space:Kind`, with its kind as an argument."""

    made = []  # noqa: RUF012

    def __init__(self, kind: str) -> None:
        super().__init__(*KINDS[kind])
        self.kind = kind

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        assert self.kind != "masked" or self.mask()[action]
        return super().step(action)

    def mask(self) -> np.ndarray:
        return np.roll(np.array([1, 1, 0], np.int8), self.time)

    def info(self) -> dict[str, Any]:
        return {"action_mask": self.mask()} if self.kind == "masked" else {}
