"""Each environment gets its action in the form of its own space, and a copy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from dppo.envs.actions import make_splitter
from dppo.envs.leaves import array_type

SPACES = [
    spaces.Discrete(3, start=1),
    spaces.MultiDiscrete([3, 4], start=[1, 1]),
    spaces.MultiBinary((2, 2)),
    spaces.Box(-1, 1, (3,), np.float32),
    spaces.Box(-1, 1, (2, 2), np.float64),
    spaces.Box(-1, 1, (), np.float32),
    spaces.MultiBinary(()),
]
TREE = spaces.Dict({"arm": spaces.Tuple(SPACES), "grip": spaces.Dict(close=spaces.MultiBinary(1), hand=SPACES[0])})


def filled(space: spaces.Space[Any], rows: np.ndarray, samples: list[Any]) -> None:
    for i, sample in enumerate(samples):
        if isinstance(space, spaces.Dict):
            for name, part in space.spaces.items():
                filled(part, rows[name][i : i + 1], [sample[name]])
        elif isinstance(space, spaces.Tuple):
            for name, part in enumerate(space.spaces):
                filled(part, rows[str(name)][i : i + 1], [sample[name]])
        else:
            rows[i] = sample


@pytest.mark.parametrize("space", [*SPACES, TREE, spaces.Tuple([TREE, spaces.Discrete(2)])], ids=str)
def test_actions_arrive_in_their_own_structure(space: spaces.Space[Any]) -> None:
    space.seed(2)
    shape, dtype = array_type(space)
    rows, samples = np.zeros((7, *shape), dtype), [space.sample() for _ in range(7)]
    filled(space, rows, samples)
    values = list(make_splitter(space)(rows))
    assert len(values) == 7
    for value, sample in zip(values, samples, strict=True):
        assert space.contains(value)
        assert type(value) is type(sample)
        np.testing.assert_equal(value, sample)


def test_an_environment_may_write_to_its_action() -> None:
    rows = np.zeros(2, array_type(TREE)[1])
    one, other = make_splitter(TREE)(rows)
    one["arm"][1][...] = one["grip"]["close"][...] = 1
    assert not rows["arm"]["1"].any() and not rows["grip"]["close"].any()
    assert not other["arm"][1].any()
    assert make_splitter(TREE)(rows[:0]) == []
