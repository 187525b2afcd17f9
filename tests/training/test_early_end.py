"""Whether a run ends by its evaluations."""

from __future__ import annotations

from typing import Any

import pytest

from dppo.config import EvalConfig
from dppo.rundir.summary import FINISHED, TARGET
from dppo.training.early_end import Stop, early_end, end_at, is_due
from tests.rundir.test_evaluations import line


@pytest.mark.parametrize(
    ("env_steps", "last", "due"),
    [(99, 0, False), (100, 0, True), (130, 0, True), (190, 130, False), (200, 130, True), (450, 130, True)],
)
def test_the_first_boundary_at_or_past_a_multiple_is_due(env_steps: int, last: int, due: bool) -> None:
    assert is_due(env_steps, last, 100) == due


def lines_of(*returns: float | None) -> list[dict[str, Any]]:
    return [line(100 * (i + 1), value) for i, value in enumerate(returns)]


@pytest.mark.parametrize(
    ("returns", "patience", "target", "end"),
    [
        ((), 1, 5.0, None),
        ((1.0, 2.0), 1, None, None),
        ((2.0, 2.0), 1, None, "eval.patience"),  # as good is not better
        ((2.0, 1.0), 2, None, None),
        ((2.0, 1.0, None), 2, None, "eval.patience"),
        ((None, None, None), 2, None, "eval.patience"),
        ((1.0, 5.0), 0, 5.0, "eval.target-return"),
        ((6.0, 1.0), 1, 5.0, "eval.target-return"),
        ((4.0,), 0, 5.0, None),
    ],
    ids=str,
)
def test_patience_and_target(
    returns: tuple[float | None, ...], patience: int, target: float | None, end: str | None
) -> None:
    found = early_end(EvalConfig(every=100, patience=patience, target_return=target), lines_of(*returns))
    assert (found and found.setting) == end


def test_a_boundary_decides_by_the_evaluations_before_it() -> None:
    """Not between two that are due, and a run that is over has reached its target also by the last one."""
    settings = EvalConfig(every=100, target_return=5.0)
    assert end_at(settings, lines_of(5.0), 100, None) is None
    assert end_at(settings, lines_of(5.0), 150, None) is None
    assert end_at(settings, lines_of(5.0, 1.0), 200, None) == Stop(TARGET, "eval.target-return")
    over = Stop(FINISHED, "total-steps")
    assert end_at(settings, lines_of(5.0), 100, over) == Stop(TARGET, "eval.target-return")
    assert end_at(settings, lines_of(4.0), 100, over) == over
    assert end_at(EvalConfig(every=100, patience=1), lines_of(2.0, 1.0), 200, over) == over
