"""Who gives the newest state after a death, and which state that is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dppo.run.members import Member
from dppo.run.takeover import Status, drifted, givers, last_line, offered
from dppo.training.packing import moment_of
from dppo.training.standby import Mirror
from dppo.training.state import TrainingState
from tests.parts import make_parts


def status(
    iteration: int = 0,
    version: int = 0,
    checksum: int = 0,
    *,
    server: bool = False,
    mirror: tuple[int, int] | None = None,
) -> Status:
    member = Member(0, "host", 1, None if server else 0)
    return Status(member, server, (iteration, version), checksum, 0, mirror, None, synchronised=True)


@pytest.mark.parametrize(
    ("statuses", "all_step", "giver"),
    [
        ([status(3, 30, server=True), status(3, 31)], False, 0),  # where only the server steps, it is the newest
        ([status(3, 30, server=True), status(4, 31)], True, 1),  # where all step, a worker may be ahead
        ([status(4, 31, server=True), status(4, 31)], True, 0),  # as far, but the server has the counters as well
        ([status(4, 31), status(4, 31, server=True)], True, 1),
        ([status(3, 30), status(3, 32), status(3, 31)], False, 1),  # the server has died
        ([status(3, 99), status(4, 31)], False, 1),  # a version that was counted before somebody stepped back
        ([status(2, 20), status(2, 20)], True, 0),
    ],
)
def test_the_newest_state_is_given(statuses: list[Status], all_step: bool, giver: int) -> None:
    assert givers(statuses, all_step=all_step)[0] == giver


@pytest.mark.parametrize(
    ("mirrors", "giver"),
    [
        ([None, (2, 20), (2, 20)], 1),
        ([None, (2, 20), (2, 21)], 2),
        ([(9, 1), (2, 21), None], 0),
        ([None, None], 0),
    ],
)
def test_the_newest_copy_of_the_counters_is_given(mirrors: list[tuple[int, int] | None], giver: int) -> None:
    assert givers([status(mirror=mirror) for mirror in mirrors], all_step=False)[1] == giver


@pytest.mark.parametrize(
    ("statuses", "apart"),
    [
        ([status(3, 30, 1), status(3, 30, 1)], 0),
        ([status(3, 30, 1), status(3, 30, 2), status(3, 30, 1)], 3),
        ([status(3, 30, 1), status(2, 20, 2)], 0),  # behind
        ([status(3, 30, 1), status(3, 30, 2, server=True)], 0),  # it only keeps track
        ([status(3, 30, 1, server=True)], 0),
    ],
)
def test_states_that_should_be_equal_are_compared(statuses: list[Status], apart: int) -> None:
    assert len(drifted(statuses)) == apart


def at(iteration: int, version: int, round: int) -> TrainingState:
    state = make_parts().state
    state.iteration, state.version, state.round = iteration, version, round
    return state


def copy_at(iteration: int, version: int, round: int) -> Mirror:
    state = at(iteration, version, round)
    packed = state.packed()
    return Mirror(7, iteration, packed, {})


@pytest.mark.parametrize(
    ("own", "copied", "newest"),
    [
        ((3, 30, 2), (3, 29, 1), "own"),
        ((3, 30, 2), (3, 31, 3), "copy"),  # the server died before it had sent the reply
        ((3, 30, 8), (4, 31, 0), "copy"),  # the same at an iteration's end: its line is written already
        ((3, 30, 8), (4, 32, 1), "own"),  # the new iteration's statistics are in the reply that never came
        ((3, 30, 0), (3, 31, 1), "own"),
        ((3, 30, 0), (3, 30, 0), "own"),
    ],
)
def test_a_copy_whose_reply_was_never_sent_counts(
    own: tuple[int, int, int], copied: tuple[int, int, int], newest: str
) -> None:
    state, mirror = at(*own), copy_at(*copied)
    given = offered(state, mirror, is_server=False)
    assert moment_of(given) == (copied if newest == "copy" else own)[:2]
    assert moment_of(offered(state, mirror, is_server=True)) == own[:2]
    assert moment_of(offered(state, None, is_server=False)) == own[:2]


def test_the_last_line_that_is_whole_and_not_newer(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_line(path, 9) == {}
    lines = [json.dumps({"iteration": i}) + "\n" for i in (1, 2, 3)]
    path.write_text("".join(lines))
    assert last_line(path, 9) == {"iteration": 3}
    assert last_line(path, 2) == {"iteration": 2}
    assert last_line(path, 0) == {}
    path.write_text("".join(lines)[:-4])  # the server died while it wrote
    assert last_line(path, 9) == {"iteration": 2}
