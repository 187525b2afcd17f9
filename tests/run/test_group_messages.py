"""Calls arrive as they were sent."""

from __future__ import annotations

from typing import Any

import numpy as np

from dppo.envs.group_link import Call
from dppo.run.group_messages import CallCodec

ACTIONS: list[Any] = [
    np.array([0.1, -0.0, np.nan], np.float32), np.array([1.0, 2.0, 3.0], np.float32), np.array([[1.0, 2.0]], "<f8"),
    np.arange(6.0).reshape(2, 3).T, np.array(3), np.array(4), np.zeros((0, 2), np.int8), np.zeros((0, 2), np.int8),
    np.array([(1, 2.5)], [("a", "i1"), ("b", "f4")]), np.array([(3, 4.5)], [("a", "i1"), ("b", "f4")]),
    np.array([{"x": 1}]), np.array([{"x": 2}]), np.int64(5), 6, {"a": np.zeros(2)}, None, np.array([True]),
]  # fmt: skip


def test_arguments_arrive_as_they_were() -> None:
    sender, receiver = CallCodec(), CallCodec()
    for serial, action in enumerate([*ACTIONS, *ACTIONS, *reversed(ACTIONS)]):
        message = np.frombuffer(sender.encode(serial, Call.STEP, 7, action), np.uint8).copy()
        *told, arrived = receiver.decode(message)
        assert told == [serial, Call.STEP, 7] and told[1] is Call.STEP
        assert type(arrived) is type(action)
        if isinstance(action, np.ndarray):
            assert (arrived.dtype, arrived.shape) == (action.dtype, action.shape) and arrived.flags.writeable
            assert arrived.flags.f_contiguous == action.flags.f_contiguous
            assert arrived.dtype.hasobject or arrived.tobytes() == action.tobytes()
        else:
            assert str(arrived) == str(action)


def test_an_action_like_the_one_before_travels_without_pickle() -> None:
    sender = CallCodec()
    first, second = (sender.encode(n, Call.STEP, 0, np.full(4, n, np.float32)) for n in range(2))
    assert len(second) == 24 + 16 < len(first)


def test_arrays_of_other_layouts_between_them_do_not_mix_up_the_sides() -> None:
    sender, receiver = CallCodec(), CallCodec()
    plain, turned = np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(2, 3).T
    for number, array in enumerate([plain, turned, plain, turned, plain]):
        message = np.frombuffer(sender.encode(number, Call.STEP, 0, array), np.uint8).copy()
        assert receiver.decode(message)[3].tolist() == array.tolist()
