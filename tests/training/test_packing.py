"""How the state travels in one piece: what lies where, and which differences are rounding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dppo.training.packing import COUNTERS, NUMBERS, Layout, is_boundary, moment_of
from dppo.training.state import TrainingState
from tests.parts import make_parts


def test_the_parts_lie_in_the_order_in_which_they_may_be_left_out() -> None:
    layout = Layout(num_reals=3, optimizer_shape=(2, 5))
    head = 8 * (len(NUMBERS) + 3)
    assert (layout.head_bytes, layout.core_bytes, layout.all_bytes) == (head, head + 20, head + 60)
    message = np.zeros(layout.all_bytes, np.uint8)
    parts = layout.parts(message)
    assert [len(part) for part in parts] == [len(NUMBERS), 3, 5, 10]
    assert len(layout.parts(message[: layout.core_bytes]).optimizer) == 0
    parts.numbers[0] = 2**40
    parts.optimizer[-1] = 1.5
    again = layout.parts(message)
    assert (again.numbers[0], again.optimizer[-1]) == (2**40, 1.5), "they are views"


def test_a_packed_state_tells_its_moment_without_being_unpacked() -> None:
    state = make_parts().state
    state.iteration, state.version, state.round = 3, 70, 0
    whole = state.packed()
    assert moment_of(whole) == (3, 70) and is_boundary(whole)
    assert moment_of(whole[: state.layout.head_bytes]) == (3, 70)
    state.round = 2
    assert not is_boundary(state.packed())


def test_every_counter_travels() -> None:
    state, other = make_parts().state, make_parts().state
    for number, name in enumerate(COUNTERS, start=1):
        setattr(state, name, 2**40 + number)
    other.unpack(state.packed())
    assert [getattr(other, name) for name in COUNTERS] == [2**40 + n for n in range(1, len(COUNTERS) + 1)]


def in_mid_run() -> TrainingState:
    """With statistics of the optimiser that are much smaller than the parameters."""
    state = make_parts().state
    rng = np.random.default_rng(4)
    state.flat.vector[:] = rng.normal(0.0, 0.1, state.flat.size)
    state.optimizer.state[0] = rng.normal(0.0, 1e-3, state.flat.size)
    state.optimizer.state[1] = rng.uniform(0.0, 1e-6, state.flat.size)
    state.last_metrics[:] = rng.normal(size=len(state.last_metrics))
    state.last_metrics[2] = np.nan
    return state


@pytest.mark.parametrize(
    ("change", "by_rounding"),
    [
        (lambda s: None, True),
        (lambda s: s.flat.vector.__imul__(np.float32(1 + 1e-6)), True),
        (lambda s: s.optimizer.state.__imul__(np.float32(1 + 1e-6)), True),
        (lambda s: s.last_metrics.__imul__(1 + 1e-7), True),
        (lambda s: s.flat.vector.__setitem__(3, s.flat.vector[3] + 3e-4), False),  # one step of Adam
        (lambda s: s.optimizer.state[0].__setitem__(3, 0.1), False),
        (lambda s: s.optimizer.state[1].__setitem__(3, 1e-4), False),  # a gradient of 0.3
        (lambda s: s.flat.vector.__setitem__(3, np.nan), False),
        (lambda s: s.optimizer.state.__setitem__((0, 3), np.inf), False),
        (lambda s: setattr(s, "updates", 1), False),
        (lambda s: setattr(s, "kl_coef", 2.0), False),
    ],
)
def test_what_is_rounding_and_what_is_not(change: Callable[[TrainingState], object], by_rounding: bool) -> None:
    state, other = in_mid_run(), in_mid_run()
    change(other)
    assert state.layout.differ_by_rounding(state.packed(), other.packed()) is by_rounding
    assert state.layout.differ_by_rounding(other.packed(), state.packed()) is by_rounding
