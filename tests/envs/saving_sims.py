"""Simulators that save their own states, and count calls of their methods: `--env tests.envs.saving_sims:NAME`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np


class Plate(gymnasium.Env):
    """A random walk that heaters push; an episode has `length` steps. Draws within an episode, and so has more state
    than it shows.

    Args:
      failing: the calls of save_state that fail: all with this number and above, and below `healed`.
      returns: whether load_state returns the observation; "wrong": another one.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    calls: ClassVar[Counter[str]] = Counter()
    """Of all plates of the process."""

    def __init__(
        self, workdir: Path, length: int = 50, failing: int = 10**9, healed: int = 10**9, returns: str = ""
    ) -> None:
        self.workdir, self.length, self.failing, self.healed, self.returns = workdir, length, failing, healed, returns
        self.saves = 0

    def _note(self, call: str) -> None:
        Plate.calls[call] += 1
        if call != "step":
            with (self.workdir / "calls.txt").open("a") as log:
                log.write(f"{call}\n")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self._note("reset")
        super().reset(seed=seed)
        self.time, self.heat = 0, self.np_random.normal(size=8)
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._note("step")
        self.time += 1
        self.heat += 0.1 * float(action[0]) + 0.05 * self.np_random.normal(size=8)
        return self.observe(), -float(np.abs(self.heat).mean()), False, self.time >= self.length, {}

    def observe(self) -> np.ndarray:
        return self.heat[:2].astype(np.float32)

    def save_state(self, path: Path) -> None:
        self._note("save")
        self.saves += 1
        (path / "fields").mkdir()
        np.save(path / "fields" / "heat.npy", self.heat)
        if self.failing < self.saves <= self.healed:
            raise RuntimeError("no licence to save")
        (path / "clock.json").write_text(json.dumps([self.time, self.np_random.bit_generator.state]))

    def load_state(self, path: Path) -> np.ndarray | None:
        self._note("load")
        self.heat = np.load(path / "fields" / "heat.npy")
        self.time, self.np_random.bit_generator.state = json.loads((path / "clock.json").read_text())
        return {"": None, "right": self.observe(), "wrong": self.observe() + 1}[self.returns]


class MaskedPlate(Plate):
    """Choices, of which the info of the last step says which are legal."""

    action_space = gymnasium.spaces.Discrete(3)  # type: ignore[assignment]

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        return super().reset(**kwargs)[0], self.mask()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.mask()["action_mask"][action], "it is not legal"
        return (*super().step(np.array([action - 1.0]))[:4], self.mask())

    def mask(self) -> dict[str, Any]:
        return {"action_mask": np.array([self.time % 2, 1, self.heat[7] > 0], np.int8)}


def remembers(env: gymnasium.Env) -> gymnasium.Env:
    """A wrapper that may have a state of its own."""
    return gymnasium.Wrapper(env)


class Resumable(gymnasium.Wrapper):
    """A wrapper with a state of its own, which it saves."""

    def reset(self, **kwargs: Any) -> Any:
        self.steps = 0
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> Any:
        self.steps += 1
        observation, reward, *rest = self.env.step(action)
        return observation, reward + 0.01 * self.steps, *rest

    def save_state(self, path: Path) -> None:
        self.env.get_wrapper_attr("save_state")(path)
        (path / "steps").write_text(str(self.steps))

    def load_state(self, path: Path) -> None:
        self.env.get_wrapper_attr("load_state")(path)
        self.steps = int((path / "steps").read_text())


gymnasium.register("Plate-v0", Plate, max_episode_steps=40)
