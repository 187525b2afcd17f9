"""The environment of a simulator beside dppo: spaces of what it declares, its returns, and its states on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dppo.config import SOLVER
from dppo.envs import Solver, solver
from dppo.envs.maker import EnvMaker
from dppo.envs.solver import RUNNING, TERMINATED, TRUNCATED, Declaration, connect

DECLARED = Declaration("it", (-np.inf, 0.0), (np.inf, 2.0), (-1.0,), (0.1,), can_save=True)


class Simulator:
    """Observes [seed, steps]; ends as `ends` says, by the step."""

    def __init__(self, declaration: Declaration = DECLARED, ends: tuple[int, ...] = (RUNNING,)) -> None:
        self.declaration, self.ends = declaration, ends
        self.seen = np.zeros(2)
        self.asked: list[tuple[str, str]] = []
        self.works, self.has_ended = True, False

    def reset(self, seed: int) -> np.ndarray:
        self.seen = np.array([seed, 0.0])
        return self.seen.copy()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, int]:
        self.seen[1] += 1
        return self.seen.copy(), float(action[0]), self.ends[int(self.seen[1]) - 1]

    def save(self, folder: str) -> bool:
        self.asked.append(("save", folder))
        return self.works

    def load(self, folder: str) -> bool:
        self.asked.append(("load", folder))
        return self.works

    def end(self) -> None:
        self.has_ended = True


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    made = Simulator()
    connect(made)
    yield made
    connect(None)


def test_spaces_are_those_that_were_declared(simulator: Simulator) -> None:
    env = Solver()
    assert env.observation_space.dtype == np.float64 and env.action_space.dtype == np.float32
    np.testing.assert_array_equal(env.observation_space.low, [-np.inf, 0.0])
    np.testing.assert_array_equal(env.observation_space.high, [np.inf, 2.0])
    np.testing.assert_array_equal(env.action_space.high, np.array([0.1], np.float32))


def test_an_episode_goes_to_the_simulator(simulator: Simulator) -> None:
    simulator.ends = (RUNNING, TRUNCATED, TERMINATED)
    env = Solver()
    observation, info = env.reset(seed=5)
    assert observation.tolist() == [5.0, 0.0] and info == {}
    steps = [env.step(np.array([0.5], np.float32))[1:4] for _ in range(3)]
    assert steps == [(0.5, False, False), (0.5, False, True), (0.5, True, False)]
    env.close()
    assert simulator.has_ended


def test_a_reset_without_a_seed_draws_one(simulator: Simulator) -> None:
    env = Solver()
    env.reset(seed=1)
    drawn = [env.reset()[0][0] for _ in range(2)]
    env.reset(seed=1)
    assert [env.reset()[0][0] for _ in range(2)] == drawn and drawn[0] != drawn[1]


def test_a_status_that_is_none_is_named(simulator: Simulator) -> None:
    simulator.ends = (7,)
    env = Solver()
    env.reset(seed=1)
    with pytest.raises(ValueError, match="status 7: it must be DPPO_RUNNING, DPPO_TERMINATED or DPPO_TRUNCATED"):
        env.step(np.zeros(1))


def test_states_are_saved_and_loaded_where_the_simulator_can(simulator: Simulator, tmp_path: Path) -> None:
    env = Solver()
    env.save_state(tmp_path / "new")
    env.load_state(tmp_path / "new")
    assert (tmp_path / "new").is_dir()
    assert simulator.asked == [("save", str(tmp_path / "new")), ("load", str(tmp_path / "new"))]
    simulator.works = False
    for call in (env.save_state, env.load_state):
        with pytest.raises(OSError, match="the simulator could not"):
            call(tmp_path)


def test_a_simulator_that_cannot_save_has_no_such_methods(simulator: Simulator) -> None:
    simulator.declaration = replace(DECLARED, can_save=False)
    env = Solver()
    assert not hasattr(env, "save_state") and not hasattr(env, "load_state")


def test_without_a_simulator_the_message_says_how_to_start_one() -> None:
    assert SOLVER == "dppo.envs:Solver" and solver._link is None
    with pytest.raises(ValueError, match=r"start it as the second program, mpirun -n 1\+W python -m dppo.run --env"):
        EnvMaker(SOLVER).make()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"name": "other"}, "name: 'other' and 'it'"),
        ({"action_low": (-1.0, -1.0)}, "number of actions: 2 and 1"),
        ({"observation_low": (0.0, 0.0)}, "bounds of observations"),
        ({"can_save": False}, "word on saving: False and True"),
    ],
)
def test_what_differs_between_groups_is_named(change: dict[str, object], said: str) -> None:
    assert replace(DECLARED, **change).differs_from(DECLARED).startswith(said)  # type: ignore[arg-type]
    assert bool(replace(DECLARED, **change).differs_from(DECLARED)) == bool(said)  # type: ignore[arg-type]
