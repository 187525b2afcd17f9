"""Who is told which share of the run is done: environments, wrappers, simulators, vector forms, and those made anew."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from dppo.envs.curriculum import BEFORE_RESET, Curriculum, make_curriculum, teller
from dppo.envs.simulators import as_simulator
from dppo.envs.vector import make_vector_env
from tests import curricula
from tests.curricula import Growing, Pair

NAME = "tests.curricula:Growing"


class Steeper(gymnasium.Wrapper):
    """A wrapper that makes something of it itself."""

    def set_progress(self, fraction: float) -> None:
        self.env.unwrapped.set_progress(fraction / 2)


class Broken(Growing):
    """Raises in the steps of its third episode, once."""

    failed = False

    def step(self, action: Any) -> Any:
        if self.fraction == 0.75 and not Broken.failed:
            Broken.failed = True
            raise ArithmeticError("no flow")
        return super().step(action)


class Refusing(Growing):
    def set_progress(self, fraction: float) -> None:
        raise ZeroDivisionError("too hard")


def test_the_outermost_wrapper_that_has_it_is_told() -> None:
    env = gymnasium.wrappers.TimeLimit(Growing(), 5)
    make_curriculum([env]).tell(0.5)
    assert env.unwrapped.fraction == 0.5
    Curriculum([gymnasium.wrappers.TimeLimit(Steeper(env), 5)]).tell(0.5)
    assert env.unwrapped.fraction == 0.25
    simulator = as_simulator(Pair())
    make_curriculum([simulator]).tell(0.5)
    assert [one.fraction for one in simulator.made._of.values()] == [0.5, 0.5]


def test_who_does_not_ask_is_not_told() -> None:
    cartpole = gymnasium.make("CartPole-v1")
    assert teller(cartpole) is None
    assert make_curriculum([cartpole]) is None
    for how in ("auto", "sync"):
        assert make_vector_env("CartPole-v1", 2, lambda index: 1, how).curriculum is None


def test_a_vector_form_tells_its_environments() -> None:
    gymnasium.register("Grown-v0", vector_entry_point=curricula.vector)
    try:
        envs = make_vector_env("Grown-v0", 2, lambda index: 1, "native")
        envs.curriculum.tell(0.5)
        assert envs.reset()[:, 1].tolist() == [0.5, 0.5]
    finally:
        del gymnasium.registry["Grown-v0"]


def test_a_replay_tells_what_was_told_before_the_same_steps() -> None:
    def made() -> Any:
        return make_vector_env(NAME, 2, lambda index: 5 + index)

    actions = np.array([[0, 2], [1, 1], [2, 0], [2, 2]])
    envs = made()
    envs.curriculum.tell(0.1)
    envs.reset()
    for row, told in zip(actions, (0.2, None, 0.3, None), strict=True):
        if told is not None:
            envs.curriculum.tell(told)
        step = envs.step(row)
    again = made()
    again.curriculum.plan([{BEFORE_RESET: 0.1, 0: 0.2, 2: 0.3}] * 2)
    observations, failed = again.replay([5, 6], list(actions.T))
    assert failed == []
    np.testing.assert_array_equal(observations, step.observations)
    assert again._envs[0].unwrapped.heard == [0.1, 0.2, 0.3]
    again.replay([5, 6], list(actions.T))
    assert again._envs[0].unwrapped.heard == [0.1, 0.2, 0.3], "a plan is for one replay"


def test_an_environment_that_is_made_anew_knows_what_the_one_before_knew() -> None:
    envs = make_vector_env(f"{__name__}:Broken", 1, lambda index: 1, max_restarts=1)
    envs.curriculum.tell(0.75)
    envs.reset()
    step = envs.step(np.array([0]))
    assert envs.restarts == 1
    assert step.observations[0, 1] == 0.75


def test_an_error_is_named() -> None:
    envs = make_vector_env(f"{__name__}:Refusing", 1, lambda index: 1)
    with pytest.raises(ZeroDivisionError) as caught:
        envs.curriculum.tell(0.5)
    assert "raised by set_progress(0.5)" in caught.value.__notes__
