"""Tiny environments whose optimal policy and value are known, and some that fail in a known way.

Tests train on them in seconds: each adds one difficulty, so the first that is not learnt says what is broken.
Values are those at discount γ. All are deterministic, given the seed of the episode.
"""

from __future__ import annotations

import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

Transition = tuple[np.ndarray, float, bool, bool, dict[str, Any]]


def _number(low: float = -1.0, high: float = 1.0) -> spaces.Box:
    """Makes the observation space of one number."""
    return spaces.Box(low, high, (1,), np.float32)


def _as_observation(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


class _Probe(gymnasium.Env[np.ndarray, Any]):
    def begin(self) -> np.ndarray:
        """Begins an episode. Returns its first observation."""
        raise NotImplementedError

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.begin(), {}


class _OneStepProbe(_Probe):
    """Shows an observation, takes one action, pays and ends: a value is one expected reward, whatever γ."""

    def draw(self) -> np.ndarray:
        """Returns the observation of a new episode."""
        return _as_observation(0.0)

    def reward(self, action: Any) -> float:
        """Returns what `action` earns at `self.observation`."""
        raise NotImplementedError

    def begin(self) -> np.ndarray:
        self.observation = self.draw()
        return self.observation.copy()

    def step(self, action: Any) -> Transition:
        return self.observation.copy(), self.reward(action), True, False, {}


class ProbeConstant(_OneStepProbe):
    """One observation, one action, reward 1: any policy, value 1. Needs a value that learns a constant."""

    observation_space = _number()
    action_space = spaces.Discrete(1)

    def reward(self, action: Any) -> float:
        return 1.0


class ProbeObservation(_OneStepProbe):
    """The reward is the observation, -1 or 1: any policy, value = observation. Needs a value that uses it."""

    observation_space = _number()
    action_space = spaces.Discrete(2)

    def draw(self) -> np.ndarray:
        return _as_observation(self.np_random.choice((-1.0, 1.0)))

    def reward(self, action: Any) -> float:
        return float(self.observation[0])


class ProbeAction(_OneStepProbe):
    """Action 1 earns 1, action 0 earns -1: optimal is always 1, value 1. Needs a policy gradient."""

    observation_space = _number()
    action_space = spaces.Discrete(2)

    def reward(self, action: Any) -> float:
        return 1.0 if action == 1 else -1.0


class ProbeContext(_OneStepProbe):
    """At observation 1 action 1 earns 1, at -1 action 0 does, else -1: optimal is to match, value 1."""

    observation_space = _number()
    action_space = spaces.Discrete(2)

    def draw(self) -> np.ndarray:
        return _as_observation(self.np_random.choice((-1.0, 1.0)))

    def reward(self, action: Any) -> float:
        return 1.0 if (action == 1) == (self.observation[0] > 0) else -1.0


class ProbeCopy(_OneStepProbe):
    """Two targets, of 3 and of 4, shown one-hot; earns the share that the MultiDiscrete action copies.

    Optimal is to copy both: value 1. A random policy earns (1/3 + 1/4) / 2 = 0.29.
    """

    observation_space = spaces.Box(0.0, 1.0, (7,), np.float32)
    action_space = spaces.MultiDiscrete([3, 4])

    def draw(self) -> np.ndarray:
        self.targets = self.np_random.integers(self.action_space.nvec)
        one_hot = np.zeros(7, np.float32)
        one_hot[[self.targets[0], 3 + self.targets[1]]] = 1.0
        return one_hot

    def reward(self, action: Any) -> float:
        return float(np.mean(action == self.targets))


class ProbeBits(_OneStepProbe):
    """Four random bits; earns the share that the MultiBinary action copies. Optimal: value 1; random: 0.5."""

    observation_space = spaces.Box(0.0, 1.0, (4,), np.float32)
    action_space = spaces.MultiBinary(4)

    def draw(self) -> np.ndarray:
        return self.np_random.integers(0, 2, 4).astype(np.float32)

    def reward(self, action: Any) -> float:
        return float(np.mean(action == self.observation))


class ProbeTarget(_OneStepProbe):
    """A target in [-1.5, 1.5]; earns -(action - target)²: optimal is the target itself, value 0.

    A Gaussian policy of standard deviation σ whose mean is the target earns -σ²: σ must shrink, too.
    """

    observation_space = _number(-1.5, 1.5)
    action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)

    def draw(self) -> np.ndarray:
        return _as_observation(self.np_random.uniform(-1.5, 1.5))

    def reward(self, action: Any) -> float:
        return -float((action[0] - self.observation[0]) ** 2)


class ProbeDiscount(_Probe):
    """Two steps, the observation is the time, reward 1 for the second: any policy, value γ at 0, 1 at 1."""

    observation_space = _number(0.0, 2.0)
    action_space = spaces.Discrete(2)

    def begin(self) -> np.ndarray:
        self.elapsed = 0
        return _as_observation(0.0)

    def step(self, action: Any) -> Transition:
        self.elapsed += 1
        last = self.elapsed == 2
        return _as_observation(self.elapsed), float(last), last, False, {}


class ProbeTruncation(_Probe):
    """Reward 1 a step, for ever; only the time limit cuts it, after 10: any policy, value 1 / (1 - γ).

    A learner that takes the limit for an end finds less: the mean of (1 - γᵏ) / (1 - γ) over k = 1..10.
    """

    observation_space = _number()
    action_space = spaces.Discrete(2)

    def begin(self) -> np.ndarray:
        return _as_observation(0.0)

    def step(self, action: Any) -> Transition:
        return _as_observation(0.0), 1.0, False, False, {}


class ProbeCorridor(_Probe):
    """Five cells, shown one-hot; action 0 goes left, 1 right; -0.1 a step, but 1 for the step onto the right end.

    Optimal is always right: from cell 0 a return of 0.7. With k = 3 - cell steps before the last one, the
    value is γᵏ - 0.1 (1 - γᵏ) / (1 - γ). The time limit is 20.
    """

    observation_space = spaces.Box(0.0, 1.0, (5,), np.float32)
    action_space = spaces.Discrete(2)

    def begin(self) -> np.ndarray:
        self.cell = 0
        return self._observe()

    def step(self, action: Any) -> Transition:
        self.cell = max(0, self.cell + (1 if action == 1 else -1))
        at_end = self.cell == 4
        return self._observe(), 1.0 if at_end else -0.1, at_end, False, {}

    def _observe(self) -> np.ndarray:
        one_hot = np.zeros(5, np.float32)
        one_hot[self.cell] = 1.0
        return one_hot


class _NoiseProbe(_Probe):
    """Observes noise in [-1, 1], earns 1 a step, ends by its time limit: for tests of what happens around learning."""

    observation_space = _number()
    action_space = spaces.Discrete(2)

    def begin(self) -> np.ndarray:
        return self._observe()

    def step(self, action: Any) -> Transition:
        return self._observe(), 1.0, False, False, {}

    def _observe(self) -> np.ndarray:
        return _as_observation(self.np_random.uniform(-1.0, 1.0))


class ProbeSlow(_NoiseProbe):
    """Each step takes `step_s` seconds, as a simulator's would; episodes of 50: any policy, return 50."""

    def __init__(self, step_s: float = 0.005) -> None:
        self.step_s = step_s

    def step(self, action: Any) -> Transition:
        time.sleep(self.step_s)
        return super().step(action)


class _FailingProbe(_NoiseProbe):
    """Fails at its step number `at`, counted from 1 over all its episodes (of 10 steps)."""

    def __init__(self, at: int = 100) -> None:
        self.at = at
        self.steps = 0

    def step(self, action: Any) -> Transition:
        self.steps += 1
        transition = super().step(action)
        return self.fail(transition) if self.steps == self.at else transition

    def fail(self, transition: Transition) -> Transition:
        raise NotImplementedError


class ProbeCrash(_FailingProbe):
    """Raises RuntimeError, as a bug in an environment does."""

    def fail(self, transition: Transition) -> Transition:
        raise RuntimeError("probe: simulated bug in the environment")


class ProbeNaN(_FailingProbe):
    """Observes NaN, as a simulation that blew up does."""

    def fail(self, transition: Transition) -> Transition:
        return _as_observation(np.nan), *transition[1:]


class ProbeHang(_FailingProbe):
    """Never comes back, as an environment that waits for something does."""

    def fail(self, transition: Transition) -> Transition:
        while True:
            time.sleep(1.0)


TIME_LIMITS: dict[type[_Probe], int | None] = {
    ProbeConstant: None,
    ProbeObservation: None,
    ProbeAction: None,
    ProbeContext: None,
    ProbeCopy: None,
    ProbeBits: None,
    ProbeTarget: None,
    ProbeDiscount: None,
    ProbeTruncation: 10,
    ProbeCorridor: 20,
    ProbeSlow: 50,
    ProbeCrash: 10,
    ProbeNaN: 10,
    ProbeHang: 10,
}
"""Every probe, with the steps after which an episode is truncated."""

for _probe, _limit in TIME_LIMITS.items():
    gymnasium.register(
        id=f"dppo/{_probe.__name__}-v0",
        entry_point=f"{__name__}:{_probe.__name__}",
        max_episode_steps=_limit,
    )
