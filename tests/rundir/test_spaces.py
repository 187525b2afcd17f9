"""Spaces as JSON, there and back."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from dppo.envs.leaves import array_type, leaves
from dppo.rundir.spaces import read_mask_size, read_spaces, space_from_json, space_to_json, write_spaces

SPACES = [
    spaces.Box(-np.inf, np.inf, (17,), np.float64),
    spaces.Box(np.array([-1.5, 0], np.float32), np.array([np.inf, 1e-3], np.float32)),
    spaces.Box(0, 255, (4, 3, 2), np.uint8),
    spaces.Box(-(2**63), 2**63 - 1, (1,), np.int64),
    spaces.Box(0, 1, (), np.float32),
    spaces.Discrete(5, start=-2),
    spaces.Discrete(5, dtype=np.int8),
    spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[0, 1], [2, 3]]),
    spaces.MultiBinary(3),
    spaces.MultiBinary([2, 3]),
    spaces.Discrete(3, start=7, dtype=np.int32),
    spaces.MultiDiscrete([3, 2], dtype=np.uint8),
    spaces.Box(-np.inf, 0, (2, 0), np.float32),
    spaces.Box(np.array([-np.inf, 0.1]), np.array([3, np.inf]), dtype=np.float64),
    spaces.Box(0, 2**64 - 1, (2,), np.uint64),
    spaces.Dict(a=spaces.Discrete(2), b=spaces.Tuple([spaces.Box(0, 1, (2,)), spaces.MultiBinary(1)])),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_space_comes_back(space: gymnasium.Space) -> None:
    back = space_from_json(space_to_json(space))
    assert back == space
    assert back.dtype == space.dtype


def test_the_parts_of_a_dict_stay_in_their_order() -> None:
    """In it lie the inputs of a network, and Gymnasium keeps it where a space is not made of a plain dict."""
    space = spaces.Dict(v=spaces.Discrete(2), t=spaces.Dict(b=spaces.Discrete(2), a=spaces.Discrete(3)))
    back = space_from_json(space_to_json(space))
    assert isinstance(back, spaces.Dict) and isinstance(back["t"], spaces.Dict)
    assert (list(back.spaces), list(back["t"].spaces)) == (["v", "t"], ["b", "a"])


def test_a_nested_space_comes_back_with_its_parts_in_their_order() -> None:
    """A dump's leaves are in that order. Gymnasium sorts the keys of a dict, but not of an OrderedDict."""
    inner = spaces.Dict(OrderedDict(z=spaces.Tuple([spaces.Box(-np.inf, np.inf, (2,)), SPACES[5]]), b=SPACES[7]))
    space = spaces.Dict(OrderedDict(y=inner, x=spaces.Tuple([spaces.Discrete(2)] * 12), a=SPACES[2]))
    back = space_from_json(space_to_json(space))
    assert back == space and space_to_json(back) == space_to_json(space)
    assert [leaf.path for leaf in leaves(back)] == [leaf.path for leaf in leaves(space)]
    assert [leaf.dtype for leaf in leaves(back)] == [leaf.dtype for leaf in leaves(space)]
    assert array_type(back) == array_type(space)


def test_a_runs_spaces_come_back(tmp_path: Path) -> None:
    assert (read_spaces(tmp_path), read_mask_size(tmp_path)) == (None, 0)
    write_spaces(tmp_path, SPACES[0], SPACES[5], 7)
    assert (read_spaces(tmp_path), read_mask_size(tmp_path)) == ((SPACES[0], SPACES[5]), 7)
    text = (tmp_path / "spaces.json").read_text()
    (tmp_path / "spaces.json").write_text(text.replace(', "mask_size": 7', ""))  # of an earlier dppo
    assert (read_spaces(tmp_path), read_mask_size(tmp_path)) == ((SPACES[0], SPACES[5]), 0)
    (tmp_path / "spaces.json").write_text(text.replace("7}", '"seven"}'))
    with pytest.raises(ValueError, match=r"spaces\.json cannot be read: its mask_size is 'seven'"):
        read_mask_size(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "3", "null", "{}", '{"type": "Graph"}', '{"type": "Box"}', "[" * 10_000,
        '{"type": "Box", "dtype": "float32", "shape": [3], "low": [0], "high": [1]}',
        '{"type": "Box", "dtype": "object", "shape": [1], "low": [0], "high": [1]}',
        '{"type": "Discrete", "n": -1, "start": 0}', '{"type": "Discrete", "n": "many", "start": 0}',
        '{"type": "MultiBinary", "n": -3}', '{"type": "Dict", "subspaces": [1]}',
    ],
    ids=range(14),
)  # fmt: skip
def test_what_describes_no_space_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        space_from_json(text)
