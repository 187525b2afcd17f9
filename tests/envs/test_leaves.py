"""One array type per space, and its leaves."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from dppo.envs.leaves import are_equal, array_type, as_leaves, from_leaves, leaves, to_array, to_value

TREE = spaces.Dict({
    "camera": spaces.Box(0, 255, (3, 2, 2), np.uint8),
    "joints": spaces.Tuple([spaces.Box(-1.0, 1.0, (3,), np.float32), spaces.Discrete(4, start=1)]),
})  # fmt: skip


def test_a_plain_space_is_one_leaf_and_a_plain_array() -> None:
    space = spaces.Box(-1.0, 1.0, (3,), np.float32)
    (leaf,) = leaves(space)
    assert (leaf.path, leaf.name, leaf.shape, leaf.dtype) == ((), "", (3,), np.float32)
    assert array_type(space) == ((3,), np.dtype(np.float32))
    assert array_type(spaces.Discrete(3)) == ((), np.dtype(np.int64))


def test_a_tree_is_one_structured_array_with_a_view_per_leaf() -> None:
    shape, dtype = array_type(TREE)
    rows = np.zeros((5, *shape), dtype)
    camera, position, gear = leaves(TREE)
    assert [leaf.name for leaf in (camera, position, gear)] == ["camera", "joints/0", "joints/1"]
    position.of(rows)[1] = 0.5
    assert rows[1]["joints"]["0"].tolist() == [0.5] * 3
    assert (camera.of(rows).shape, gear.of(rows).shape) == ((5, 3, 2, 2), (5,))
    assert all(stride % 4 == 0 for stride in position.of(rows).strides), "torch and BLAS take aligned arrays only"


def test_a_row_turns_into_a_value_of_the_space() -> None:
    rows = np.zeros(1, array_type(TREE)[1])
    rows["joints"]["1"] = 2
    value = to_value(TREE, rows[0])
    assert TREE.contains(value)
    value["camera"][...] = 1  # a copy
    assert not rows["camera"].any()


def test_values_of_shape_empty_are_arrays_as_in_gymnasium() -> None:
    """But for a Discrete, whose values are numbers; a MultiBinary does not contain a NumPy number."""
    space = spaces.Tuple([spaces.Box(-1, 1, ()), spaces.MultiBinary(()), spaces.Discrete(2)])
    value = to_value(space, np.zeros(1, array_type(space)[1])[0])
    assert space.contains(value)
    assert [type(part) for part in value] == [np.ndarray, np.ndarray, np.int64]


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (spaces.Text(3), "not of Box"),
        (spaces.Dict({"a": spaces.Sequence(spaces.Discrete(2))}), "not of Box"),
        (spaces.Dict({}), "no part"),
        (spaces.Tuple([]), "no part"),
        (spaces.Dict({"a/b": spaces.Discrete(2)}), "keys must be texts"),
        (spaces.Dict({"": spaces.Discrete(2)}), "keys must be texts"),
    ],
)
def test_other_spaces_are_refused(space: spaces.Space[object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        leaves(space)


@pytest.mark.parametrize(
    ("space", "value"),
    [
        (spaces.Discrete(3, start=1), 0),
        (spaces.Discrete(3, start=1), [1, 4]),
        (spaces.Discrete(3), 1.0),
        (spaces.MultiDiscrete([2, 3]), [[0, 0], [2, 0]]),
        (spaces.MultiBinary(2), [0, 2]),
        (spaces.Dict(a=spaces.Discrete(3)), {"a": -1}),
        (spaces.Box(0, 1, ()), "x"),
        (spaces.Box(0, 1, ()), None),
        (spaces.Box(0, 1, (3,)), 5.0),
    ],
    ids=str,
)
def test_what_is_no_observation_is_refused(space: spaces.Space[object], value: object) -> None:
    """A choice out of range would be another choice's input."""
    with pytest.raises(ValueError, match="an observation"):
        to_array(space, value)


def test_an_array_is_its_leaves_in_any_order() -> None:
    rows = np.zeros(3, array_type(TREE)[1])
    rows["joints"]["0"], rows["camera"][1] = 0.5, 7
    named = as_leaves(rows)
    assert list(named) == ["camera", "joints/0", "joints/1"]
    again = from_leaves(dict(reversed(named.items())))
    assert again.dtype.names == ("joints", "camera")
    assert are_equal(rows, again)
    again["camera"][2, 0, 0, 0] = 1
    assert not are_equal(rows, again)
    assert are_equal(from_leaves(as_leaves(rows[0]), num_axes=0), rows[0])
    assert from_leaves(as_leaves(named["camera"])) is named["camera"]
    assert not are_equal(named["camera"], rows)


@pytest.mark.parametrize("names", [("", "a"), ("a", "a/b")])
def test_leaves_that_lie_within_each_other_are_refused(names: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="one leaf is expected"):
        from_leaves(dict.fromkeys(names, np.zeros(2)))


def test_leaves_of_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="a, b are not of one length"):
        from_leaves({"a": np.zeros(2), "b": np.zeros(3)})


def test_what_lies_between_fields_does_not_count() -> None:
    dtype = np.dtype([("a", np.uint8), ("b", np.float32)], align=True)
    one, other = np.zeros(3, dtype), np.frombuffer(b"\xff" * 3 * dtype.itemsize, dtype).copy()
    other["a"], other["b"] = 0, 0.0
    assert are_equal(one, other)
    other["b"][2] = 1.0
    assert not are_equal(one, other)
