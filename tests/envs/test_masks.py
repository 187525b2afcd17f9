"""Masks of legal actions, in all the forms that environments give them in, become one row of truths."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from dppo.envs.masks import MaskLayout, Masks, refuse_late

TREE = spaces.Dict({
    "arm": spaces.Tuple([spaces.Discrete(2), spaces.Box(-1, 1, (3,)), spaces.MultiDiscrete([2, 3])]),
    "flags": spaces.MultiBinary(4),
    "gear": spaces.Discrete(3, start=1),
})  # fmt: skip
MULTI = spaces.MultiDiscrete([2, 3])
WHOLE = spaces.Box(np.array([-1, 0]), np.array([1, 5]), dtype=np.int16)
NESTED = spaces.MultiDiscrete([[2, 3], [1, 2]])


def written(space: spaces.Space[Any], mask: Any) -> list[int]:
    layout = MaskLayout(space)
    out = np.zeros(layout.size, bool)
    layout.write(mask, out, "the mask")
    return out.astype(int).tolist()


@pytest.mark.parametrize(
    ("space", "size"),
    [(spaces.Discrete(4), 4), (MULTI, 5), (NESTED, 8), (TREE, 10), (spaces.Box(-1, 1), 0), (spaces.MultiBinary(3), 0),
     (spaces.Dict(a=spaces.MultiBinary(3)), 0), (spaces.Text(3), 0), (WHOLE, 9), (spaces.Box(0, 300, (2,), int), 0),
     (spaces.Dict(a=spaces.Box(0, 1, (), np.int8), b=spaces.Discrete(2)), 4)],
    ids=str,
)  # fmt: skip
def test_a_mask_has_an_entry_for_each_choice_of_the_discrete_parts(space: spaces.Space[Any], size: int) -> None:
    assert MaskLayout(space).size == size


@pytest.mark.parametrize(
    "mask",
    [
        [1, 0, 1],
        (True, False, True),
        np.array([1, 0, 1]),
        np.array([1, 0, 1], np.int8),
        np.array([1, 0, 1], np.uint8),
        np.array([1, 0, 1], bool),
        np.array([1, 0, 1], np.float32),
        np.array([1, 9, 0, 9, 1, 9], np.int8)[::2],
        torch.tensor([1, 0, 1]),
    ],
    ids=repr,
)
def test_a_vector_may_be_of_any_kind(mask: Any) -> None:
    assert written(spaces.Discrete(3), mask) == [1, 0, 1]


@pytest.mark.parametrize(
    ("space", "mask", "expected"),
    [
        (spaces.Discrete(3, start=5), None, [1, 1, 1]),
        (MULTI, [1, 0, 0, 1, 1], [1, 0, 0, 1, 1]),
        (MULTI, ([1, 0], [0, 1, 1]), [1, 0, 0, 1, 1]),
        (MULTI, [np.array([1, 0], np.int8), np.array([0, 1, 1], np.int8)], [1, 0, 0, 1, 1]),
        (MULTI, (None, [0, 1, 1]), [1, 1, 0, 1, 1]),
        (MULTI, np.array([np.array([1, 0]), np.array([0, 1, 1])], object), [1, 0, 0, 1, 1]),
        (spaces.MultiDiscrete([2, 2]), np.array([[1, 0], [0, 1]]), [1, 0, 0, 1]),
        (NESTED, (([1, 0], [0, 0, 1]), ([1], [0, 1])), [1, 0, 0, 0, 1, 1, 0, 1]),
        (NESTED, [1, 0, 0, 0, 1, 1, 0, 1], [1, 0, 0, 0, 1, 1, 0, 1]),
        (TREE, [1, 0, 1, 0, 1, 0, 0, 0, 0, 1], [1, 0, 1, 0, 1, 0, 0, 0, 0, 1]),
        (WHOLE, ([1, 0, 0], None), [1, 0, 0] + [1] * 6),
        (TREE, {}, [1] * 10),
        (TREE, {"gear": [0, 0, 1]}, [1] * 7 + [0, 0, 1]),
        (TREE, {"gear": [0, 0, 1], "flags": None, "arm": None}, [1] * 7 + [0, 0, 1]),
        (TREE, {"arm": ([1, 0], None, ([0, 1], None))}, [1, 0, 0, 1] + [1] * 6),
        (TREE, {"arm": [1, 0, 1, 0, 1, 0, 0]}, [1, 0, 1, 0, 1, 0, 0] + [1] * 3),
        (spaces.Tuple([spaces.Discrete(2), spaces.Discrete(2)]), ([1, 0], [0, 1]), [1, 0, 0, 1]),
    ],
    ids=str,
)
def test_a_mask_may_be_given_by_part(space: spaces.Space[Any], mask: Any, expected: list[int]) -> None:
    assert written(space, mask) == expected


def test_gymnasiums_own_masks_are_understood() -> None:
    """The same mask lets Gymnasium sample, and says what may be sampled."""
    mask = {
        "arm": (np.array([0, 1], np.int8), None, (np.array([0, 1], np.int8), np.array([0, 0, 1], np.int8))),
        "flags": None,
        "gear": np.array([0, 1, 0], np.int8),
    }
    assert written(TREE, mask) == [0, 1, 0, 1, 0, 0, 1, 0, 1, 0]
    sample = TREE.sample(mask)
    assert (sample["arm"][0], sample["arm"][2].tolist(), sample["gear"]) == (1, [1, 2], 2)


@pytest.mark.parametrize(
    ("space", "mask", "message"),
    [
        (spaces.Discrete(3), [1, 0], r"the mask has shape \(2,\); expected \(3,\), an entry for each choice"),
        (spaces.Discrete(3), np.zeros(4, bool), r"the mask has shape \(4,\)"),
        (spaces.Discrete(3), 1, r"the mask has shape \(\)"),
        (spaces.Discrete(3), [1, 2, 0], r"the mask holds 2 \(int\); expected 1 for legal and 0 for illegal"),
        (spaces.Discrete(3), np.array([1, -1, 0], np.int8), r"the mask holds -1"),
        (spaces.Discrete(2), [0.5, 1], "the mask holds 0.5"),
        (spaces.Discrete(2), [np.nan, 1], "the mask holds nan"),
        (spaces.Discrete(2), ["a", "b"], "the mask holds 'a'"),
        (spaces.Discrete(2), [[1, 0]], r"the mask has shape \(1, 2\)"),
        (
            spaces.Dict(a=spaces.Discrete(2)),
            [[1, 0]],
            r"the mask is \[\[1, 0\]\] \(list\), and the action space is Dict",
        ),
        (spaces.Discrete(2), {"a": [1, 0]}, "which has parts that the action space"),
        (spaces.Discrete(3), [0, 0, 0], "the mask leaves no legal action: repair the environment"),
        (MULTI, [1, 0, 0, 0, 0], r"no legal action in element \[1\]: repair"),
        (MULTI, ([0, 0], None), r"no legal action in element \[0\]: repair"),
        (MULTI, ([1, 0], [1, 0]), r"the mask\[1\] has shape \(2,\); expected \(3,\)"),
        (MULTI, ([1, 0],), r"expected 2 masks, one for each element"),
        (NESTED, (([1, 0], [0, 0, 1]), [1]), r"the mask\[1\] is \[1\] \(list\); expected 2 masks"),
        (TREE, {"gear": [0, 0, 0]}, "no legal action in part 'gear': repair"),
        (TREE, {"arm": (None, None, [0, 1, 0, 0, 0])}, r"no legal action in element \[1\] of part 'arm/2'"),
        (TREE, {"gears": [0, 0, 1]}, "which has parts that the action space"),
        (TREE, {"gear": [1, 0]}, r"the mask\['gear'\] has shape \(2,\)"),
        (TREE, {"flags": [1, 0, 0, 1]}, r"the mask\['flags'\] has shape \(4,\); expected \(0,\)"),
        (TREE, {"arm": (None, None)}, r"the mask\['arm'\] is \(None"),
    ],
    ids=str,
)
def test_a_mask_that_does_not_fit_is_refused(space: spaces.Space[Any], mask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        written(space, mask)
    assert "repair the environment" in str(error.value)


# -- where masks are kept --------------------


class Keeper(gymnasium.Env[Any, Any]):
    """Has a method that gives masks."""

    def action_masks(self) -> list[int]:
        return [0, 1]


ONE, PLAIN = spaces.Discrete(2), spaces.Box(-1, 1, (2,))
LEAF = spaces.Dict({"action_mask": spaces.MultiBinary(2), "speed": PLAIN})
OBSERVATION = {"action_mask": np.array([1, 1], np.int8)}


def found(observation_space: spaces.Space[Any], env: Any, info: dict[str, Any]) -> list[int] | None:
    masks = Masks(MaskLayout(ONE), observation_space, 1)
    if not masks.find(env, info):
        assert not masks.are_certain(env)
        return None
    masks.read(0, env, OBSERVATION, info, "reset")
    return masks.rows[0].astype(int).tolist()


def test_the_info_comes_before_the_method_and_the_method_before_the_leaf() -> None:
    keeper, none = Keeper(), gymnasium.Env[Any, Any]()
    info = {"action_mask": [1, 0]}
    assert found(LEAF, keeper, info) == [1, 0]
    assert found(LEAF, keeper, {}) == found(PLAIN, gymnasium.Wrapper(keeper), {}) == [0, 1]
    assert found(LEAF, none, {}) == found(LEAF, None, {}) == [1, 1]
    assert found(PLAIN, none, {}) is found(PLAIN, None, {}) is None


def test_a_mask_that_is_not_there_any_more_is_an_error() -> None:
    masks = Masks(MaskLayout(ONE), PLAIN, 1)
    masks.find(None, {"action_mask": [1, 1]})
    for call in ("reset", "step"):
        with pytest.raises(ValueError, match=rf"{call}\(\)'s info\['action_mask'\] is missing, and the first reset"):
            masks.read(0, None, None, {}, call)
    with pytest.raises(ValueError, match=r"step.*'action_mask'.*give it in both"):
        refuse_late({"action_mask": [1]})
    refuse_late({})
