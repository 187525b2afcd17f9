"""Environments and wrappers as a user might write them, for `--env tests.envs.sims_of_others:NAME`."""

from __future__ import annotations

import subprocess
from typing import Any

import gymnasium
import numpy as np

HERE = __name__


class Tank(gymnasium.Env):
    """A level that `pump` raises, seen with `scale`; an episode has `length` steps, and each pays `scale`."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(
        self, scale: float = 1.0, length: int = 6, valves: Any = (), render_mode: str | None = None, **kwargs: Any
    ) -> None:
        if kwargs:
            raise TypeError(f"Tank.__init__() got an unexpected keyword argument {next(iter(kwargs))!r}")
        if length < 1:
            raise RuntimeError("a tank needs time")
        self.scale, self.length, self.valves, self.render_mode = scale, length, valves, render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.time, self.level = 0, self.np_random.uniform(-1, 1)
        return self.observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.time += 1
        self.level += 0.1 * float(action)
        return self.observe(), self.scale, False, self.time >= self.length, {}

    def observe(self) -> np.ndarray:
        return np.array([self.scale * self.level], np.float32)

    def render(self) -> Any:
        return np.full((16, 16, 3), int(self.scale) % 256, np.uint8)


def double_tank(depth: float, *, length: int = 6) -> gymnasium.Env:
    return Tank(2 * depth, length)


class Deep(Tank):
    def __init__(self, depth: float = 1.0, **kwargs: Any) -> None:
        super().__init__(depth, **kwargs)


def limited(env: gymnasium.Env) -> gymnasium.Env:
    return gymnasium.wrappers.TimeLimit(env, 3)


def negated(env: gymnasium.Env) -> gymnasium.Env:
    return gymnasium.wrappers.TransformReward(env, lambda reward: -float(reward))


def plus_one(env: gymnasium.Env) -> gymnasium.Env:
    return gymnasium.wrappers.TransformReward(env, lambda reward: float(reward) + 1.0)


class WroteOnce:
    """Writes to its own arguments, which the next environment must not see."""

    def __new__(cls, valves: dict[str, Any]) -> gymnasium.Env:  # type: ignore[misc]
        valves["uses"] = valves.get("uses", 0) + 1
        return Tank(valves=valves)


class Talkative(Tank):
    """Prints on standard output, and so does what it starts."""

    def __init__(self) -> None:
        super().__init__()
        print("a licence was found")

    def reset(self, **given: Any) -> tuple[np.ndarray, dict[str, Any]]:
        print("the level was rejected")
        subprocess.run(["echo", "the solver has started"], check=True)
        return super().reset(**given)


class Drawn(Tank):
    """Draws its scale from the process's generator when it is made, and from nowhere else."""

    def __init__(self) -> None:
        super().__init__(scale=float(np.random.uniform(1, 2)))  # noqa: NPY002


def dice(sides: int = 6) -> gymnasium.Env:
    return gymnasium.make("DiceOfOthers-v0", scale=float(sides))


gymnasium.register("DiceOfOthers-v0", Tank, nondeterministic=True)
gymnasium.register("TankOfOthers-v0", f"{HERE}:Tank", max_episode_steps=4, kwargs={"scale": 5.0})


# -- what is wrong --------------------

not_called = Tank()


def no_licence() -> gymnasium.Env:
    raise RuntimeError("no licence")


def nothing() -> None:
    Tank()


def the_class() -> type:
    return Tank


def a_number(env: Any = None) -> int:
    return 3


def a_vector() -> Any:
    return gymnasium.make_vec("CartPole-v1", 2)


class Duck:
    """Has all methods, and is no gymnasium.Env."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any: ...

    def step(self, action: Any) -> Any: ...


class Old(Tank):
    """As gym had them until 0.25."""

    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()[0]


class FromGym(type("Env", (), {"__module__": "gym.core"})):  # type: ignore[misc]
    """Derives from the old package's class."""


def broken_wrapper(env: gymnasium.Env) -> gymnasium.Env:
    raise ZeroDivisionError("a bug")


gymnasium.register("DuckOfOthers-v0", Duck)  # type: ignore[arg-type]


class Channel(Tank):
    """A simulator that asks for all that dppo gives."""

    def __init__(self, comm: Any, env_number: int, workdir: Any, scale: float = 1.0, fails_as: int = -1) -> None:
        super().__init__(scale)
        self.comm, self.env_number, self.workdir = comm, env_number, workdir
        with (workdir / "made.txt").open("a") as log:
            log.write(f"{env_number} of {comm.size}\n")
        if env_number == fails_as:
            raise RuntimeError("no licence")


gymnasium.register("ChannelOfOthers-v0", Channel, max_episode_steps=4)
gymnasium.register("NumberedChannelOfOthers-v0", Channel, kwargs={"env_number": 70})
