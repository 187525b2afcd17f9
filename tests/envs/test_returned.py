"""What environments return is taken as it is meant, or refused with what was expected, what came, and the repair."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from dppo.envs.returned import Returned

FLOATS = Returned(spaces.Box(-np.inf, np.inf, (3,), np.float32))
BYTES = Returned(spaces.Box(0, 255, (3,), np.uint8))
ONE = Returned(spaces.Box(-100, 100, (), np.int64))
OBSERVATION = np.array([1, 2, 3], np.float32)


def step(observation: Any = OBSERVATION, reward: Any = 1.0, terminated: Any = False, truncated: Any = False) -> Any:
    return FLOATS.by_step((observation, reward, terminated, truncated, {}))


class Info(dict[str, Any]):
    pass


def named(value: Any) -> str:
    """The same in every process."""
    return str(value.dtype) if isinstance(value, Returned) else repr(value)


# -- what is right --------------------


@pytest.mark.parametrize(
    ("form", "observation"),
    [
        (FLOATS, OBSERVATION),
        (FLOATS, OBSERVATION.astype(np.float64)),
        (FLOATS, OBSERVATION.astype(">f4")),
        (FLOATS, OBSERVATION.astype(np.int64)),
        (FLOATS, [1, 2, 3.0]),
        (FLOATS, (True, np.float64(2), np.array(3))),
        (FLOATS, torch.tensor([1.0, 2.0, 3.0])),
        (FLOATS, np.array([[1, 9], [2, 9], [3, 9]], np.float32)[:, 0]),
        (BYTES, np.array([0, 1, 255], np.uint8)),
        (BYTES, [0, 1, 255]),
        (BYTES, np.array([0, 1, 255])),
        (BYTES, np.array([True, False, True])),
        (ONE, 7),
        (ONE, np.int32(7)),
        (ONE, np.array(7, np.uint8)),
    ],
    ids=named,
)
def test_an_observation_that_fits_is_taken(form: Returned, observation: Any) -> None:
    expected = np.array([float(x) for x in np.ravel(observation)]).reshape(form.shape)
    first, _ = form.by_reset((observation, {}))
    assert first.dtype == form.dtype and not np.shares_memory(first, np.asarray(observation))
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(form.by_step((observation, 0.0, False, True, {}))[0], expected)


@pytest.mark.parametrize(
    "reward",
    [2, 2.0, np.float64(2), np.float32(2), np.float16(2), np.int64(2), np.uint8(2), np.array(2.0), torch.tensor(2.0)],
    ids=repr,
)
def test_a_reward_is_one_number_of_any_type(reward: Any) -> None:
    assert step(reward=reward)[1] == 2.0


@pytest.mark.parametrize("value", [True, np.True_, 1, np.int64(1), np.array(True), torch.tensor(True)], ids=repr)
def test_an_end_is_a_truth_also_one_written_as_a_number(value: Any) -> None:
    assert step(terminated=value)[2:4] == (True, False)
    assert step(truncated=value)[2:4] == (False, True)


def test_lists_and_kinds_of_dict_are_taken_as_tuples_and_dicts() -> None:
    assert FLOATS.by_reset([OBSERVATION, Info()])[0] is not OBSERVATION
    assert FLOATS.by_step([OBSERVATION, 1.0, False, False, Info()])[1] == 1.0


# -- what is not --------------------


@pytest.mark.parametrize(
    ("form", "observation", "parts"),
    [
        (FLOATS, np.float32(1), ["shape ()", "says (3,)"]),
        (FLOATS, 1.0, ["shape ()", "says (3,)"]),
        (FLOATS, np.zeros(1, np.float32), ["shape (1,)", "says (3,)"]),
        (FLOATS, np.zeros((1, 3), np.float32), ["shape (1, 3)", "says (3,)", "ReshapeObservation"]),
        (FLOATS, np.zeros((3, 1), np.float32), ["shape (3, 1)"]),
        (FLOATS, np.zeros(4, np.float32), ["shape (4,)"]),
        (FLOATS, [], ["shape (0,)"]),
        (FLOATS, None, ["shape ()"]),
        (FLOATS, {"a": OBSERVATION}, ["shape ()"]),
        (FLOATS, [[1.0], [2.0, 3.0], 4.0], ["not one array"]),
        (FLOATS, (OBSERVATION, {}), ["not one array"]),
        (FLOATS, OBSERVATION.astype(complex), ["type complex128", "says float32"]),
        (FLOATS, ["1", "2", "3"], ["type <U1"]),
        (FLOATS, np.array([1.0, None, 3.0]), ["type object"]),
        (BYTES, np.array([0, 0.5, 1], np.float32), ["type float32", "says uint8", "DtypeObservation"]),
        (BYTES, np.zeros(3), ["type float64", "says uint8"]),  # whatever the first numbers are
        (BYTES, np.array([0, 1, 256]), ["type int64", "says uint8"]),
        (BYTES, [0, 1, -1], ["type int64", "says uint8"]),
        (ONE, 7.5, ["type float64", "says int64"]),
        (ONE, np.zeros(1, np.int64), ["shape (1,)", "says ()"]),
    ],
    ids=named,
)
def test_an_observation_that_does_not_fit_is_refused(form: Returned, observation: Any, parts: list[str]) -> None:
    for give in (
        lambda: form.by_reset((observation, {})),
        lambda: form.by_step((observation, 0.0, False, False, {})),
    ):
        with pytest.raises(ValueError) as error:
            give()
        for part in (*parts, "repair the environment"):
            assert part in str(error.value)


@pytest.mark.parametrize(
    "reward",
    [np.zeros(1), np.zeros(3, np.float32), [1.0], (1.0, 2.0), None, "1.0", 1j, np.array([[1.0]]), Fraction(1, 2), {}],
    ids=repr,
)
def test_a_reward_that_is_not_one_number_is_refused(reward: Any) -> None:
    with pytest.raises(ValueError, match=r"the reward .*; expected one number: repair"):
        step(reward=reward)


def test_a_reward_of_several_objectives_is_to_be_weighed() -> None:
    with pytest.raises(ValueError, match=r"expected one number: .* weighs the objectives .*LinearReward"):
        step(reward=np.zeros(2, np.float32))


@pytest.mark.parametrize("value", [None, np.array([True]), [False], 2, 0.0, "False", np.zeros(2, bool), {}], ids=repr)
@pytest.mark.parametrize("which", ["terminated", "truncated"])
def test_an_end_that_is_neither_true_nor_false_is_refused(which: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{which}=.*; expected True or False: repair"):
        step(**{which: value})


@pytest.mark.parametrize(
    "result",
    [None, 5, OBSERVATION, (OBSERVATION,), (OBSERVATION, None), (OBSERVATION, {}, {}), OBSERVATION[:2]],
    ids=repr,
)
def test_a_reset_of_another_form_is_refused(result: Any) -> None:
    with pytest.raises(ValueError, match=r"reset\(\) returned .*; expected \(observation, info\)"):
        FLOATS.by_reset(result)
    with pytest.raises(ValueError, match=r"reset\(\) returned .*; expected \(observation, info\)"):
        Returned(spaces.Box(-1, 1, ())).by_reset(result)


@pytest.mark.parametrize(
    ("result", "came"),
    [
        (None, "None"),
        (OBSERVATION, r"an array of shape \(3,\)"),
        ((OBSERVATION, 1.0, False, {}), "4 value"),
        ((OBSERVATION, 1.0, False, False, {}, {}), "6 value"),
        ((OBSERVATION, {}), r"\(an array of shape \(3,\) and type float32, \{\} \(dict\)\)"),
    ],
    ids=repr,
)
def test_a_step_of_another_form_is_refused(result: Any, came: str) -> None:
    with pytest.raises(ValueError, match=rf"step\(\) returned {came}.*; expected \(observation, reward, terminated,"):
        FLOATS.by_step(result)


@pytest.mark.parametrize("info", [None, [], "fine", ({},)], ids=repr)
def test_an_info_that_is_no_dict_is_refused(info: Any) -> None:
    with pytest.raises(ValueError, match=r"the info .*; expected a dict"):
        FLOATS.by_step((OBSERVATION, 1.0, False, False, info))
