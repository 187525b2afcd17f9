"""Cases are dealt to environments by their numbers, whatever makes, restarts or replays them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from dppo.envs.cartpole import CartPoleVector
from dppo.envs.cases import case_of, names_of
from dppo.envs.maker import EnvMaker
from dppo.envs.vector import make_vector_env

CASES: tuple[dict[str, Any], ...] = (
    {"name": "cold", "env_kwargs": {"bath": 0.1, "tags": []}},
    {"name": "warm", "env_kwargs": {}},
    {"name": "hot", "env_kwargs": {"bath": 0.9}},
)


class Bath(gymnasium.Env):
    """Its reward is an argument. It fails in the step after the third of an episode, if it is told to."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, bath: float = 0.5, tags: list[int] | None = None, size: int = 1, fails: bool = False) -> None:
        self.observation_space = gymnasium.spaces.Box(-1, 1, (size,), np.float32)
        self.bath, self.tags, self._fails = bath, tags, fails
        if tags is not None:
            tags.append(1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._t = 0
        return np.zeros(self.observation_space.shape, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._t += 1
        if self._fails and self._t > 3:
            raise ZeroDivisionError("boils")
        return np.full(self.observation_space.shape, self.bath, np.float32), self.bath, False, self._t > 9, {}


class Pair(gymnasium.vector.VectorEnv):
    """Two agents of one simulator."""

    num_envs = 2
    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}  # noqa: RUF012
    single_observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    single_action_space = gymnasium.spaces.Discrete(2)
    made = 0

    def __init__(self, bath: float = 0.5, tags: list[int] | None = None, env_number: int = -1) -> None:
        self.bath, self.number = bath, env_number
        type(self).made += 1

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros((2, 1), np.float32), {}

    def step(self, actions: Any) -> Any:
        no = np.zeros(2, bool)
        return np.zeros((2, 1), np.float32), np.full(2, self.bath), no, no, {}


def rewards(name: str, num_envs: int, first_env: int = 0, **chosen: Any) -> list[float]:
    envs = make_vector_env(f"{__name__}:{name}", num_envs, lambda _: 0, first_env=first_env, cases=CASES, **chosen)
    envs.reset()
    out: list[float] = envs.step(np.zeros(num_envs, np.int64)).rewards.tolist()
    envs.close()
    return out


def test_the_number_of_an_environment_decides_its_case() -> None:
    assert [case_of(CASES, env)["name"] for env in range(4)] == ["cold", "warm", "hot", "cold"]
    assert names_of(CASES, 2, 3) == ("hot", "cold", "warm")
    assert names_of(CASES, 2, 4, agents=2) == ("warm", "warm", "hot", "hot")
    assert names_of((), 2, 3) == ()
    together = rewards("Bath", 6)
    assert together == [0.1, 0.5, 0.9, 0.1, 0.5, 0.9]
    assert [*rewards("Bath", 2), *rewards("Bath", 4, first_env=2)] == together


def test_a_cases_arguments_win_over_those_of_all() -> None:
    assert rewards("Bath", 3, kwargs={"bath": 0.7}) == [0.1, 0.7, 0.9]


def test_each_environment_has_a_copy_of_the_arguments() -> None:
    maker = EnvMaker(f"{__name__}:Bath", cases=CASES)
    tags = [maker.make(number).unwrapped.tags for number in (0, 3)]  # type: ignore[attr-defined]
    assert tags == [[1], [1]] and CASES[0]["env_kwargs"]["tags"] == []


def test_agents_of_a_simulator_share_a_case() -> None:
    assert rewards("Pair", 6) == [0.1, 0.1, 0.5, 0.5, 0.9, 0.9]
    Pair.made = 0
    assert rewards("Pair", 2, first_env=2) == [0.5, 0.5]
    assert Pair.made == 2, "the first one had the case of environment 2"


def test_an_environment_that_is_made_anew_keeps_its_case(capsys: pytest.CaptureFixture[str]) -> None:
    envs = make_vector_env(
        f"{__name__}:Bath", 2, lambda _: 0, first_env=1, kwargs={"fails": True}, cases=CASES, max_restarts=1
    )
    envs.reset()
    steps = [envs.step(np.zeros(2, np.int64)).rewards.tolist() for _ in range(6)]
    assert steps == [[0.5, 0.9]] * 3 + [[0.0, 0.0]] + [[0.5, 0.9]] * 2
    assert "environment 2 in case hot (" in capsys.readouterr().err


def test_an_error_names_the_case() -> None:
    envs = make_vector_env(f"{__name__}:Bath", 3, lambda _: 0, kwargs={"fails": True}, cases=CASES[::-1])
    envs.reset()
    with pytest.raises(ZeroDivisionError) as caught:
        for _ in range(4):
            envs.step(np.zeros(3, np.int64))
    assert any("raised by environment 0 in case hot of 3 x" in note for note in caught.value.__notes__)


def test_cart_poles_of_cases_are_stepped_one_after_another(tmp_path: Path) -> None:
    """Their start states are those of the fast form."""
    limits = [{"name": f"limit{n}", "env_kwargs": {"max_episode_steps": n}} for n in (3, 5)]
    fast = make_vector_env("CartPole-v1", 4, lambda index: 7 + index)
    slow = make_vector_env("CartPole-v1", 4, lambda index: 7 + index, cases=limits)
    assert isinstance(fast, CartPoleVector) and not isinstance(slow, CartPoleVector)
    np.testing.assert_array_equal(fast.reset(), slow.reset())
    ends = [slow.step(np.arange(4) % 2).truncations.tolist() for _ in range(5)]
    assert [row.index(True) if True in row else None for row in ends] == [None, None, 0, None, 1]


@pytest.mark.parametrize(
    ("env", "kwargs", "said"),
    [
        ("Bath", {"bahn": 1}, r"^case bad: env=.* cannot be made: it takes no argument 'bahn'"),
        ("Bath", {"size": "x"}, r"^case bad: env=.* cannot be made: TypeError"),
        ("Pair", {"env_number": 1}, r"^case bad: env-kwargs.env_number: dppo gives env_number"),
        ("CartPole-v1", {"max_episode_steps": 0}, r"^case bad: env-kwargs.max_episode_steps=0 .*positive whole number"),
        (
            "Bath", {"size": 2},
            r"^the cases good and bad cannot share a policy: good observes Box\(.*\(1,\), float32\), and bad observes"
            r" Box\(.*\(2,\), float32\): let the environment have the same spaces in all cases",
        ),
    ],
)  # fmt: skip
def test_wrong_arguments_are_those_of_a_case(env: str, kwargs: dict[str, Any], said: str) -> None:
    name = env if "-v" in env else f"{__name__}:{env}"
    cases = [{"name": "good", "env_kwargs": {}}, {"name": "bad", "env_kwargs": kwargs}]
    with pytest.raises(ValueError, match=said):
        make_vector_env(name, 2 + 2 * (env == "Pair"), lambda _: 0, cases=cases)
