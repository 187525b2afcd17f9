"""TensorBoard's events: every number, each point once, on a disk that may be full."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dppo.rundir.tensorboard import TensorBoard


def test_tensorboard_gets_every_number_over_environment_steps(tmp_path: Path) -> None:
    heard: list[Exception | None] = []
    board = TensorBoard(tmp_path, 0, heard.append)
    board.iteration({"iteration": 1, "env_steps": 100, "loss": 0.5, "histogram": [1, 2], "none": None})
    board.iteration({"env_steps": 200, "loss": 0.25})
    board.evaluation({"env_steps": 200, "return_mean": 3.0})
    board.end({})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["scalars"] == ["loss", "evaluation/return_mean"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(100, 0.5), (200, 0.25)]
    assert heard == [None] * 4


def test_tensorboard_shows_each_point_once_after_a_resume(tmp_path: Path) -> None:
    """Killed at step 400, resumed from the checkpoint of step 200."""
    for first_step, value in ((0, 1.0), (200, 2.0)):
        board = TensorBoard(tmp_path, first_step, lambda error: None)
        for step in range(first_step + 100, 500, 100):
            board.iteration({"env_steps": step, "loss": value})
        board.end({})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(100, 1.0), (200, 1.0), (300, 2.0), (400, 2.0)]
