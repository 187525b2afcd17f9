"""Rank 0 waits for what a checkpoint has seen, and for nothing else."""

from __future__ import annotations

import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from dppo.seams import Sealed
from dppo.trajectories import commits as module
from dppo.trajectories.commits import Dumps, Named
from dppo.trajectories.format import rank_folder, segment_path


@pytest.fixture
def dumps(tmp_path: Path) -> Dumps[str]:
    """Workers 0 and 2 are ranks 1 and 3; rank 2 took part once."""
    return Dumps(tmp_path, 1, {2: 5})


def visible(run_dir: Path, rank: int, *ends: int) -> None:
    """Segments of a rank that end before these rows."""
    rank_folder(run_dir, rank).mkdir(parents=True)
    for number, end in enumerate(ends):
        with h5py.File(segment_path(rank_folder(run_dir, rank), number), "w") as file:
            file["steps/row"] = np.arange(end)


def test_a_boundary_is_ready_when_the_last_worker_has_answered(dumps: Dumps[str]) -> None:
    dumps.ask("boundary", {0: 16, 2: 24})
    assert dumps.take_orders() == {0: 16, 2: 24}
    assert dumps.take_orders() == {}
    assert dumps.answer(Sealed(1, 16, 4, 16)) is None
    assert dumps.is_waiting
    assert dumps.answer(Sealed(3, 24, 7, 20)) == "boundary"
    assert not dumps.is_waiting
    named = {1: Named(4, 0), 2: Named(5, 0), 3: Named(7, 4)}
    assert dumps.named({1: 16, 3: 24}) == named, "of one that is gone, what is known; and what was lost on the way"


def test_an_answer_to_an_older_question_does_not_count(dumps: Dumps[str]) -> None:
    dumps.ask("first", {0: 16})
    dumps.ask("second", {0: 32})
    assert dumps.answer(Sealed(1, 16, 4, 16)) is None
    assert dumps.answer(Sealed(1, 32, 5, 32)) == "second"


def test_a_worker_that_is_too_far_ahead_has_the_next_boundary_asked_for(dumps: Dumps[str]) -> None:
    dumps.ask("boundary", {0: 16, 2: 24})
    assert dumps.answer(Sealed(1, 16, None)) is None
    assert not dumps.is_waiting
    assert dumps.answer(Sealed(3, 24, 7, 24)) is None


def test_a_problem_is_kept_and_answers_nothing(dumps: Dumps[str]) -> None:
    dumps.ask("boundary", {0: 16})
    assert dumps.answer(Sealed(1, None, None, 0, "no space", True)) is None
    assert dumps.answer(Sealed(3, None, None, 0, "nor here", True)) is None
    assert (dumps.problem, dumps.ends_the_run, dumps.is_waiting) == ("no space", False, True)


def test_nothing_is_saved_once_what_is_required_was_lost(tmp_path: Path) -> None:
    """The last checkpoint before is what a resume goes on from, and makes it anew."""
    dumps: Dumps[str] = Dumps(tmp_path, 1, {}, required=True)
    dumps.ask("boundary", {0: 16})
    dumps.answer(Sealed(1, None, None, 0, "no space", True))
    assert dumps.answer(Sealed(1, 16, 0, 0)) is None
    assert dumps.ends_the_run


def test_a_worker_that_never_answers_is_not_waited_for_for_ever(
    dumps: Dumps[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visible(tmp_path, 3, 8, 20, 30)
    dumps.ask("boundary", {0: 16, 2: 24})
    dumps.answer(Sealed(1, 16, 4, 16))
    assert dumps.expired() is None
    now = time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + module.PATIENCE_S + 1)
    assert dumps.expired() == "boundary"
    assert dumps.expired() is None
    assert dumps.named({1: 16, 3: 24}) == {1: Named(4, 0), 2: Named(5, 0), 3: Named(2, 4)}


def test_of_the_dead_counts_what_is_visible_and_no_further(dumps: Dumps[str], tmp_path: Path) -> None:
    visible(tmp_path, 1, 16)
    visible(tmp_path, 3, 16, 32)
    assert dumps.named({1: 16, 3: 31}) == {1: Named(1, 0), 2: Named(5, 0), 3: Named(1, 15)}
    assert dumps.end_row(2) == 32


def test_a_disk_refuses_until_it_has_taken_everything_from_every_worker(dumps: Dumps[str]) -> None:
    seen = []
    for rank, refusal in ((1, "no space"), (3, "nor here"), (1, ""), (3, "")):
        dumps.answer(Sealed(rank, None, None, refusal=refusal))
        seen.append(dumps.refusal)
    assert seen == ["no space", "no space", "nor here", None]
    assert dumps.problem is None and not dumps.ends_the_run
