"""Which environments save their states, and what is restored around those that load one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from dppo.envs.given import Given, Workdirs
from dppo.envs.states import Start, load, obstacle, owner
from dppo.envs.vector import EnvList, make_vector_env
from tests.envs import saving_sims
from tests.envs.saving_sims import Plate, Resumable, remembers

TimeLimit, OrderEnforcing = gymnasium.wrappers.TimeLimit, gymnasium.wrappers.OrderEnforcing


class ByRenamed(TimeLimit):
    """Of a user's, whose state nobody knows."""


@pytest.mark.parametrize(
    ("wrap", "obstacle_is", "owner_is"),
    [
        (lambda env: env, "", Plate),
        (lambda env: TimeLimit(OrderEnforcing(env), 30), "", Plate),
        (lambda env: TimeLimit(Resumable(remembers(env)), 30), "", Resumable),
        (lambda env: TimeLimit(remembers(env), 30), "Wrapper", None),
        (lambda env: OrderEnforcing(ByRenamed(env, 30)), "ByRenamed", None),
        (lambda env: gymnasium.make("MountainCarContinuous-v0"), "", None),
        (lambda env: remembers(gymnasium.make("MountainCarContinuous-v0")), "", None),
    ],
)
def test_who_saves_for_the_whole(
    wrap: Callable[[Any], Any], obstacle_is: str, owner_is: type | None, tmp_path: Path
) -> None:
    env = wrap(Plate(tmp_path))
    found = owner(env)
    assert found is None if owner_is is None else type(found) is owner_is
    assert obstacle(env) == obstacle_is


def test_a_loaded_environment_needs_no_reset_and_keeps_its_limit_of_steps(tmp_path: Path) -> None:
    one, other = (TimeLimit(OrderEnforcing(Plate(tmp_path)), 5) for _ in range(2))
    one.reset(seed=3)
    for _ in range(2):
        one.step(np.zeros(1))
    (tmp_path / "files").mkdir()
    one.unwrapped.save_state(tmp_path / "files")
    load(other, Start(tmp_path / "files", None, None, 2))
    for t in range(3, 6):
        (expected, *_), (observation, _, _, truncated, _) = one.step(np.ones(1)), other.step(np.ones(1))
        np.testing.assert_array_equal(observation, expected)
        assert truncated == (t == 5)


def test_environments_that_say_they_are_not_repeatable_are_not_saved(tmp_path: Path) -> None:
    given = Given(workdirs=Workdirs(tmp_path))

    def made(env: str) -> EnvList:
        envs = make_vector_env(f"{saving_sims.__name__}:{env}", 2, lambda index: index, given=given)
        assert isinstance(envs, EnvList)
        return envs

    assert made("Plate").states.are_saved and made("Plate").description.endswith(", save their own states")
    gymnasium.register("DicePlate-v0", Plate, nondeterministic=True)
    assert not made("DicePlate-v0").states.are_saved
    del gymnasium.registry["DicePlate-v0"]


def test_one_that_lost_its_methods_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it has no load_state\(path\), and had one when its state was saved"):
        load(gymnasium.make("MountainCarContinuous-v0"), Start(tmp_path, None, None, 0))
