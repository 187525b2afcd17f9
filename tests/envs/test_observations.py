"""Observations of any space are checked leaf by leaf, and gathered in one array."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from dppo.envs.leaves import array_type, to_value
from dppo.envs.observations import make_reader, require_leaves

INFINITE = spaces.Box(-np.inf, np.inf, (2,), np.float32)
IMAGE = spaces.Box(0, 255, (4, 4, 3), np.uint8)
LEAVES = [
    INFINITE,
    spaces.Box(-1.0, 1.0, (), np.float64),
    spaces.Box(-5, 5, (2, 3), np.int16),
    IMAGE,
    spaces.Discrete(5),
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([3, 4]),
    spaces.MultiDiscrete([[3, 4], [5, 6]], start=[[1, 2], [-3, 4]]),
    spaces.MultiBinary(4),
    spaces.MultiBinary((2, 3)),
]
TREE = spaces.Dict({
    "vector": INFINITE,
    "pair": spaces.Tuple([IMAGE, spaces.Dict(gear=spaces.Discrete(4, start=1), flags=spaces.MultiBinary(3))]),
    "code": spaces.MultiDiscrete([2, 300], start=[1, 0]),
})  # fmt: skip


def right() -> dict[str, Any]:
    """An observation of TREE."""
    inner = {"gear": 2, "flags": np.array([0, 1, 0], np.int8)}
    return {
        "vector": np.array([1, 2], np.float32),
        "pair": (np.full((4, 4, 3), 7, np.uint8), inner),
        "code": np.array([1, 299]),
    }


def message_of(space: spaces.Space[Any], value: Any, envs: range | None = None) -> str:
    with pytest.raises(ValueError) as error:
        make_reader(space, envs)(value)
    assert "repair the environment" in str(error.value)
    return str(error.value)


# -- what is right --------------------


@pytest.mark.parametrize("space", [*LEAVES, TREE, spaces.Tuple(LEAVES)], ids=str)
def test_every_sample_of_a_space_is_read(space: spaces.Space[Any]) -> None:
    space.seed(1)
    read, (shape, dtype) = make_reader(space), array_type(space)
    rows = np.zeros((20, *shape), dtype)
    samples = [space.sample() for _ in rows]
    for i, sample in enumerate(samples):
        rows[i] = read(sample)
    for row, sample in zip(rows, samples, strict=True):
        assert space.contains(to_value(space, row))
        np.testing.assert_equal(to_value(space, row), sample)


def test_kinds_of_containers_are_taken_as_dicts_and_tuples() -> None:
    pair = spaces.Dict(a=spaces.Tuple([spaces.Discrete(2), spaces.Discrete(9)]))
    for value in ({"a": [1, 8]}, OrderedDict(a=(1, 8)), {"a": np.array([1, 8])}, {"a": (True, np.int8(8))}):
        row = make_reader(pair)(value)
        assert (row["a"]["0"], row["a"]["1"]) == (1, 8)


def test_the_bytes_between_the_fields_are_zero() -> None:
    space = spaces.Dict(a=spaces.Box(0, 255, (1,), np.uint8), b=spaces.Box(-1, 1, (1,), np.float32))
    row = make_reader(space)({"a": np.array([255], np.uint8), "b": np.zeros(1, np.float32)})
    assert row.dtype.itemsize == 8 and row.tobytes() == b"\xff" + bytes(7)


def test_batches_of_a_vector_form_are_read_alike() -> None:
    read = make_reader(TREE, range(2))
    one, other = right(), right()
    other["pair"][1]["gear"] = 4
    batch = {
        "vector": np.stack([one["vector"], other["vector"]]),
        "pair": (np.stack([one["pair"][0]] * 2), {"gear": [2, 4], "flags": np.zeros((2, 3), np.int8)}),
        "code": np.stack([one["code"]] * 2),
    }
    rows = read(batch)
    assert rows.shape == (2,) and rows["pair"]["1"]["gear"].tolist() == [2, 4]


# -- what is not --------------------


@pytest.mark.parametrize(
    ("path", "wrong", "parts"),
    [
        (("vector",), np.zeros(3, np.float32), ["leaf 'vector'", "shape (3,)", "says (2,)", "ReshapeObservation"]),
        (("vector",), np.zeros(2, complex), ["leaf 'vector'", "type complex128", "says float32"]),
        (("vector",), [[1], [2, 3]], ["leaf 'vector'", "not one array"]),
        (("vector",), {"a": 1}, ["leaf 'vector'", "shape ()"]),
        (("code",), np.array([1, 300]), ["element [1] of", "leaf 'code'", "is 300", "says 0..299"]),
        (("code",), np.array([0, 0]), ["element [0] of", "leaf 'code'", "is 0", "says 1..2", "the start"]),
        (("code",), np.array([1.0, 2.0]), ["leaf 'code'", "type float64"]),
        (("pair",), None, ["leaf 'pair'", "is None", "a tuple of 2"]),
        (("pair",), right()["pair"][:1], ["leaf 'pair'", "1 value(s)", "a tuple of 2"]),
        (("pair",), {"0": 1, "1": 2}, ["leaf 'pair'", "(dict)", "a tuple of 2"]),
        (("pair", 0), np.zeros((4, 3, 4), np.uint8), ["leaf 'pair/0'", "shape (4, 3, 4)"]),
        (("pair", 0), np.full((4, 4, 3), 256), ["leaf 'pair/0'", "type int64", "says uint8"]),
        (("pair", 1), (1, 2), ["leaf 'pair/1'", "(1 (int), 2 (int))", "Dict("]),
        (("pair", 1, "gear"), 0, ["leaf 'pair/1/gear' is 0", "says 1..4"]),
        (("pair", 1, "gear"), np.int64(5), ["leaf 'pair/1/gear' is 5", "says 1..4"]),
        (("pair", 1, "gear"), 2.0, ["leaf 'pair/1/gear'", "type float64"]),
        (("pair", 1, "gear"), np.array([2]), ["leaf 'pair/1/gear'", "shape (1,)"]),
        (("pair", 1, "flags"), np.array([0, 2, 1], np.int8), ["element [1] of", "leaf 'pair/1/flags'", "says 0..1"]),
    ],
    ids=str,
)
def test_a_wrong_leaf_is_named(path: tuple[Any, ...], wrong: Any, parts: list[str]) -> None:
    value: Any = right()
    value["pair"] = list(value["pair"])
    holder = value
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = wrong
    message = message_of(TREE, value)
    for part in parts:
        assert part in message


def test_missing_and_surplus_keys_are_named() -> None:
    value = right()
    del value["code"]
    assert "an observation lacks ['code']" in message_of(TREE, value)
    value = right() | {"more": 1}
    assert "an observation has ['more'], which its observation_space lacks" in message_of(TREE, value)
    del value["pair"][1]["gear"]
    value["pair"][1]["speed"] = 1
    del value["more"]
    assert "an observation's leaf 'pair/1' lacks ['gear'] and has ['speed']" in message_of(TREE, value)


@pytest.mark.parametrize("value", [None, 3, np.zeros(2, np.float32), (1, 2)], ids=repr)
def test_what_is_no_dict_is_refused(value: Any) -> None:
    assert "but its observation_space says Dict(" in message_of(TREE, value)


@pytest.mark.parametrize(
    ("space", "value", "part"),
    [
        (spaces.Discrete(5), 5, "an observation is 5, but its observation_space says 0..4"),
        (spaces.Discrete(5), -1, "an observation is -1"),
        (spaces.Discrete(5, start=2), np.array(1), "an observation is 1, but its observation_space says 2..6"),
        (spaces.Discrete(5), None, "type object"),
        (spaces.MultiDiscrete([2, 2]), [0, 2], "element [1] of an observation is 2"),
        (spaces.MultiDiscrete([[2, 2]]), [[0, -1]], "element [0, 1] of an observation is -1"),
        (spaces.MultiBinary(2), [2, 0], "element [0] of an observation is 2"),
    ],
    ids=str,
)
def test_what_is_out_of_range_is_refused(space: spaces.Space[Any], value: Any, part: str) -> None:
    assert part in message_of(space, value)


def test_a_range_may_end_where_its_type_does() -> None:
    space = spaces.Discrete(28, start=100, dtype=np.int8)
    with np.errstate(over="raise"):
        assert make_reader(space)(np.int8(127)) == 127
        assert "says 100..127" in message_of(space, np.int8(99))


def test_the_environment_of_a_batch_is_named_by_its_global_number() -> None:
    message = message_of(spaces.Discrete(3), [0, 1, 3], range(6, 9))
    assert "an observation of environment 8 is 3, but its observation_space says 0..2" in message
    space = spaces.Dict(a=spaces.MultiDiscrete([2, 3]))
    message = message_of(space, {"a": [[0, 0], [0, 3]]}, range(6, 8))
    assert "element [1] of an observation's leaf 'a' of environment 7 is 3" in message


# -- spaces that are refused --------------------


@pytest.mark.parametrize(
    ("space", "parts"),
    [
        (spaces.Text(3), ["Mine-v0 observes Text(", "TransformObservation(env, function, box)"]),
        (spaces.Sequence(spaces.Discrete(2)), ["Mine-v0 observes Sequence("]),
        (spaces.Graph(INFINITE, None), ["Mine-v0 observes Graph("]),
        (spaces.OneOf([spaces.Discrete(2), INFINITE]), ["Mine-v0 observes OneOf("]),
        (
            spaces.Dict(image=IMAGE, direction=spaces.Discrete(4), mission=spaces.Text(9)),
            ["in its leaf 'mission'", "FilterObservation(env, ['image', 'direction'])", "or gymnasium.wrappers.Trans"],
        ),
        (spaces.Dict(a=spaces.Tuple([INFINITE, spaces.Text(9)])), ["in its leaf 'a/1'", "TransformObservation"]),
        (spaces.Dict({"a": spaces.Dict({})}), ["in its leaf 'a'", "has no part"]),
        (spaces.Dict({"a/b": INFINITE}), ["keys must be texts"]),
    ],
    ids=str,
)
def test_a_space_with_other_leaves_is_refused_with_the_wrapper_that_helps(
    space: spaces.Space[Any], parts: list[str]
) -> None:
    with pytest.raises(ValueError) as error:
        require_leaves("Mine-v0", space)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("space", [*LEAVES, TREE], ids=str)
def test_all_others_are_observed(space: spaces.Space[Any]) -> None:
    require_leaves("Mine-v0", space)
