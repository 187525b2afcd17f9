"""Rank 0 waits for what a checkpoint has seen, and for nothing else."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dppo.storage import dumps as module
from dppo.storage.dumps import Dumps
from dppo.storage.segments import rank_folder, segment_path
from dppo.storage.trajectory import Sealed


@pytest.fixture
def dumps(tmp_path: Path) -> Dumps[str]:
    """Workers 0 and 2 are ranks 1 and 3."""
    return Dumps(tmp_path, 1, {2: 5})


def test_a_boundary_is_ready_when_the_last_worker_has_answered(dumps: Dumps[str]) -> None:
    dumps.ask("boundary", {0: 16, 2: 24})
    assert dumps.take_orders() == {0: 16, 2: 24}
    assert dumps.take_orders() == {}
    assert dumps.answer(Sealed(1, 16, 4)) is None
    assert dumps.is_waiting
    assert dumps.answer(Sealed(3, 24, 7)) == "boundary"
    assert not dumps.is_waiting
    assert dumps.next_segments == {1: 4, 2: 5, 3: 7}, "of one that is gone, what is known"


def test_an_answer_to_an_older_question_does_not_count(dumps: Dumps[str]) -> None:
    dumps.ask("first", {0: 16})
    dumps.ask("second", {0: 32})
    assert dumps.answer(Sealed(1, 16, 4)) is None
    assert dumps.answer(Sealed(1, 32, 5)) == "second"


def test_a_worker_that_is_too_far_ahead_has_the_next_boundary_asked_for(dumps: Dumps[str]) -> None:
    dumps.ask("boundary", {0: 16, 2: 24})
    assert dumps.answer(Sealed(1, 16, None)) is None
    assert not dumps.is_waiting
    assert dumps.answer(Sealed(3, 24, 7)) is None


def test_a_problem_is_kept_and_answers_nothing(dumps: Dumps[str]) -> None:
    dumps.ask("boundary", {0: 16})
    assert dumps.answer(Sealed(1, None, None, "no space", True)) is None
    assert dumps.answer(Sealed(3, None, None, "nor here", True)) is None
    assert (dumps.problem, dumps.failed, dumps.is_waiting) == ("no space", True, True)


def test_a_worker_that_never_answers_is_not_waited_for_for_ever(
    dumps: Dumps[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dumps.ask("boundary", {0: 16})
    now = time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + module.PATIENCE_S + 1)
    assert not dumps.is_waiting


def test_what_the_dead_have_sealed_counts(dumps: Dumps[str], tmp_path: Path) -> None:
    for rank in (1, 3):
        rank_folder(tmp_path, rank).mkdir(parents=True)
        for number in range(6):
            segment_path(rank_folder(tmp_path, rank), number).touch()
    dumps.ask("boundary", {0: 16, 2: 24})
    dumps.regrouped([0])
    assert not dumps.is_waiting
    assert dumps.next_segments == {2: 5, 3: 6}, "worker 0 will say itself"


def test_at_the_end_all_is_known(dumps: Dumps[str]) -> None:
    dumps.ask("boundary", {0: 16})
    dumps.close([Sealed(1, 40, 9), Sealed(3, 48, 2)])
    assert dumps.next_segments == {1: 9, 2: 5, 3: 2}
