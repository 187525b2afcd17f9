"""Tiny environments in spaces of several kinds, whose optimal policy and value are known; more are in probes.py.

Each is one step long, so that a value is one expected reward, whatever γ. All are deterministic, given the seed of the
episode.
"""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class _OneStepProbe(gymnasium.Env[Any, Any]):
    """Shows an observation, takes one action, pays and ends."""

    def draw(self) -> Any:
        """Returns the observation of a new episode."""
        raise NotImplementedError

    def reward(self, action: Any) -> float:
        """Returns what `action` earns at `self.observation`."""
        raise NotImplementedError

    def info(self) -> dict[str, Any]:
        """Returns the info of reset and step."""
        return {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation = self.draw()
        return copy.deepcopy(self.observation), self.info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return copy.deepcopy(self.observation), self.reward(action), True, False, self.info()


class ProbeInputs(_OneStepProbe):
    """A vector and an image; earns 1 for action 1 where the vector's first number is positive or the image is bright,
    but not both, and for action 0 elsewhere. Optimal: value 1. Who sees one of them only earns 0.5.
    """

    observation_space = spaces.Dict({
        "vector": spaces.Box(-1.0, 1.0, (2,), np.float32),
        "image": spaces.Box(0, 255, (4, 4, 1), np.uint8),
    })  # fmt: skip
    action_space = spaces.Discrete(2)

    def draw(self) -> dict[str, np.ndarray]:
        sign, noise = self.np_random.choice((-1.0, 1.0)), self.np_random.uniform(-1.0, 1.0)
        self._is_positive, self._is_bright = sign > 0, bool(self.np_random.integers(2))
        first = 192 if self._is_bright else 0
        image = self.np_random.integers(first, first + 64, (4, 4, 1), np.uint8)
        return {"vector": np.array([sign, noise], np.float32), "image": image}

    def reward(self, action: Any) -> float:
        return float((action == 1) == (self._is_positive != self._is_bright))


class ProbeParts(_OneStepProbe):
    """Shows a gear, a force in [-1.5, 1.5] and two switches, and earns for each part of the action that copies its
    own: 1 for the gear, -(action - force)² for the force, the share of equal ones for the switches.

    Optimal is to copy all: value 2. A Gaussian of standard deviation σ whose mean is the force earns 2 - σ².
    """

    observation_space = spaces.Dict({
        "gear": spaces.Discrete(3, start=1),
        "force": spaces.Box(-1.5, 1.5, (1,), np.float32),
        "switches": spaces.MultiBinary(2),
    })  # fmt: skip
    action_space = spaces.Dict({
        "drive": spaces.Tuple([spaces.Discrete(3, start=1), spaces.Box(-2.0, 2.0, (1,), np.float32)]),
        "switches": spaces.MultiBinary(2),
    })  # fmt: skip

    def draw(self) -> dict[str, Any]:
        return {
            "gear": self.np_random.integers(1, 4),
            "force": self.np_random.uniform(-1.5, 1.5, 1).astype(np.float32),
            "switches": self.np_random.integers(0, 2, 2, np.int8),
        }

    def reward(self, action: Any) -> float:
        gear, force = action["drive"]
        shown = self.observation
        of_gear, of_force = float(gear == shown["gear"]), -float((force[0] - shown["force"][0]) ** 2)
        return of_gear + of_force + float(np.mean(action["switches"] == shown["switches"]))


class ProbeMask(_OneStepProbe):
    """Four actions, of which one is illegal in each episode, by info["action_mask"]. An even one earns 1 at observation
    -1, an odd one at 1. Optimal: value 1, as one of each kind is always legal; any legal action: 0.5.

    The illegal one would earn 10, but raises AssertionError unless `pays`.
    """

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(4)

    def __init__(self, pays: bool = False) -> None:
        self.pays = pays

    def draw(self) -> np.ndarray:
        self._illegal = int(self.np_random.integers(4))
        return np.array([self.np_random.choice((-1.0, 1.0))], np.float32)

    def info(self) -> dict[str, Any]:
        return {"action_mask": np.arange(4) != self._illegal}

    def reward(self, action: Any) -> float:
        if action == self._illegal:
            assert self.pays, f"the environment got action {action}, which its mask rules out"
            return 10.0
        return float((action % 2 == 1) == (self.observation[0] > 0))


class _TableProbe(_OneStepProbe):
    """Shows one of several choices, and earns 1 for the one of two actions that is right there, else 0."""

    observation_space: spaces.Discrete
    action_space = spaces.Discrete(2)

    def draw(self) -> np.int64:
        first = int(self.observation_space.start)
        return self.np_random.integers(first, first + int(self.observation_space.n))

    def reward(self, action: Any) -> float:
        index = self.observation - self.observation_space.start
        return float(action == index // 3 % 2)  # not monotonous: each choice has to be told apart


class ProbeChoice(_TableProbe):
    """Seven choices, few enough for an input each. Optimal: value 1; any one action: 4/7."""

    observation_space = spaces.Discrete(7, start=-3)


class ProbeManyChoices(_TableProbe):
    """Two hundred choices, which are embedded. Optimal: value 1; any one action: 0.5, nearly."""

    observation_space = spaces.Discrete(200, start=10)


PROBES = (ProbeInputs, ProbeParts, ProbeMask, ProbeChoice, ProbeManyChoices)
"""Every probe of this module."""

for _probe in PROBES:
    gymnasium.register(id=f"dppo/{_probe.__name__}-v0", entry_point=f"{__name__}:{_probe.__name__}")
