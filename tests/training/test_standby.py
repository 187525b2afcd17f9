"""What a rank keeps for the case that others die."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dppo.training.standby import Mirror, Standby
from tests.parts import Run, make_parts


def test_a_mirror_comes_back_as_it_was_sent(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.iterate()
    state = run.state.packed()
    standby = Standby()
    assert standby.mirror is None
    standby.keep_mirror(Mirror(7, 1, state, run.tracker.saver.boundary.counters).to_message())
    standby.keep_mirror(Mirror(9, 1, state, run.tracker.saver.boundary.counters).to_message())
    mirror = standby.mirror
    assert mirror is not None
    assert (mirror.updates, mirror.iteration, mirror.counters) == (9, 1, run.tracker.saver.boundary.counters)
    np.testing.assert_array_equal(mirror.state, state)


def test_a_report_that_is_told_again_is_kept_once() -> None:
    place, standby = make_parts(), Standby()
    for _ in range(2):
        place.rollout()
    first, second = place.reports
    for report in (first, second, second):
        standby.add_report(report)
    assert list(standby.reports) == [first, second]
    assert standby.replay.next_row == second.first_row + len(second.env_actions)
    assert sum(len(actions) for _, actions in standby.replay.chunks) <= 2 * len(second.env_actions)


def test_boundaries_are_remembered_until_rank_zero_must_have_closed_them() -> None:
    standby, head = Standby(), 3
    for iteration in range(10):
        standby.pass_boundary(iteration, np.full(8, iteration, np.uint8), head)
    assert standby.boundary is not None and standby.boundary.tolist() == [9] * 8
    assert {i: h.tolist() for i, h in standby.boundary_heads.items()} == {i: [i] * head for i in (6, 7, 8, 9)}
    standby.pass_boundary(8, np.full(8, 80, np.uint8), head)  # after a regrouping: iteration 9 is made again
    assert sorted(standby.boundary_heads) == [6, 7, 8] and standby.boundary_heads[8].tolist() == [80] * head


def test_the_states_parts_travel_alone() -> None:
    place, other = make_parts(), make_parts()
    place.iterate()
    message = place.state.packed()
    before = other.policy.flat.vector.copy()
    other.state.unpack_head(message[: place.state.layout.head_bytes])
    assert (other.state.iteration, other.state.updates) == (1, place.state.updates)
    np.testing.assert_array_equal(other.policy.flat.vector, before)
    np.testing.assert_array_equal(other.state.moments.pack(), place.state.moments.pack())
    assert not other.state.optimizer.state.any()
    other.state.unpack_optimizer(message)
    np.testing.assert_array_equal(other.state.optimizer.state, place.state.optimizer.state)
    assert other.state.optimizer.steps == place.state.optimizer.steps > 0
    np.testing.assert_array_equal(other.policy.flat.vector, before)
