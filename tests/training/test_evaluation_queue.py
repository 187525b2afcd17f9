"""Checkpoints that wait for their evaluation: what becomes of them where the process or the disk fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dppo.rundir.evaluations import evaluated
from dppo.rundir.summary import FINISHED
from dppo.training.evaluation_queue import RESTARTS, PlayingError
from tests.training.test_evaluations import Process, Run
from tests.training.test_evaluations import begin as begin


def test_a_process_that_fails_is_started_again_and_then_left_out(begin: Callable[..., Run]) -> None:
    run = begin(process := Process(), patience=5)
    process.errors = [PlayingError("it fell")] * RESTARTS
    assert run.boundary(100) is None and process.played == [100]
    assert len(run.said) == RESTARTS and "the evaluation of 100 steps has failed: it fell" in run.said[0]
    process.errors = [PlayingError("it fell")] * (RESTARTS + 1)
    run.boundary(300)
    assert "training goes on without evaluations and cannot be ended by --eval.target-return" in run.said[-1]
    assert run.boundary(400, FINISHED) == FINISHED
    assert [steps for steps, *_ in run.end()] == [100] and list(evaluated(run.run_dir)) == [100]


def test_what_would_fail_again_is_not_tried_again(begin: Callable[..., Run]) -> None:
    run = begin(process := Process())
    process.errors = [PlayingError("no such environment", is_final=True)]
    run.boundary(100, FINISHED)
    assert len(run.said) == 1 and "no such environment\ntraining goes on without evaluations; python" in run.said[0]


def test_a_checkpoint_that_cannot_be_written_is_written_later(
    begin: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dppo.training.evaluation_queue.RETRY_S", 0.01)
    run = begin()
    place = run.run_dir / "checkpoints"
    place.write_text("in the way")
    run.process.waits = True
    run.boundary(100)
    run.evaluations._queue.settle_writes()
    run.boundary(150)
    place.unlink()
    assert run.boundary(160, FINISHED) == FINISHED
    assert [steps for steps, *_ in run.end()] == [100, 160]
