"""Evaluations while training, without processes: when one is due, what waits, and what it decides."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dppo.cluster.signals import Preemption
from dppo.config import CheckpointConfig, Config, EvalConfig
from dppo.rundir.checkpoint import write_checkpoint
from dppo.rundir.evaluations import evaluated, read_evaluations
from dppo.rundir.runfiles import RunFiles
from dppo.rundir.summary import FINISHED, PREEMPTED, TARGET
from dppo.training.early_end import Stop, end_on_disk
from dppo.training.evaluation_queue import PlayingError
from dppo.training.evaluations import MOST_WAITING, Evaluations
from tests.rundir.test_checkpoint import make_checkpoint


class Process:
    """Plays at once, or when it is told to; a checkpoint of S steps has the return `returns[S]`."""

    def __init__(self, returns: Callable[[int], float] = float) -> None:
        self.returns, self.is_busy, self.waits, self.errors = returns, False, False, list[PlayingError]()
        self.played: list[int] = []

    def begin(self, checkpoint: Path) -> None:
        assert checkpoint.is_dir() and not self.is_busy
        self.is_busy, self._steps = True, int(checkpoint.name[5:])

    def result(self, wait_s: float) -> dict[str, Any] | None:
        if self.waits and not wait_s:
            return None
        self.is_busy = False
        if self.errors:
            raise self.errors.pop()
        self.played.append(self._steps)
        return {"return_mean": self.returns(self._steps), "seconds_s": 0.1}

    def close(self) -> None:
        self.is_busy = False


class Run:
    """The evaluations of a run that continues at `env_steps`."""

    def __init__(self, run_dir: Path, process: Process, env_steps: int = 0, **settings: Any) -> None:
        run_dir.mkdir(exist_ok=True)
        self.said: list[str] = []
        self.told: list[dict[str, Any]] = []
        self.preemption, self.run_dir, self.process = Preemption(30.0, None), run_dir, process
        config = Config(eval=EvalConfig(**{"every": 100} | settings))
        self.files = RunFiles(
            run_dir, CheckpointConfig(), self.said.append, last_iteration=env_steps // 10, first_step=env_steps,
            tensorboard=False,
        )  # fmt: skip
        self.evaluations = Evaluations(
            run_dir, config, self.files, process, self.preemption, self.told.append, self.said.append,
            iteration=env_steps // 10, env_steps=env_steps,
        )  # fmt: skip

    def boundary(self, env_steps: int, reason: str | None = None) -> str | None:
        """A boundary, and results of a process that does not wait."""
        reason = self.evaluations.at_boundary(make_checkpoint(env_steps).state, reason)
        if not self.process.waits:
            self.evaluations._wait(0)
        return reason

    def end(self) -> list[tuple[int, float, bool]]:
        self.files.close()
        self.evaluations.close()
        return [(one["env_steps"], one["return_mean"], one["best"]) for one in read_evaluations(self.run_dir)]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def begin_run(process: Process | None = None, env_steps: int = 0, **settings: Any) -> Run:
        runs.append(Run(tmp_path / "run", process or Process(), env_steps, **settings))
        return runs[-1]

    yield begin_run
    for run in runs:
        run.files.close()
        run.evaluations.close()


def test_every_due_boundary_and_the_last_one_are_evaluated(begin: Callable[..., Run]) -> None:
    run = begin(Process(lambda steps: {90: 1.0, 120: 3.0, 220: 2.0, 330: 3.0, 350: 1.0}[steps]))
    assert [run.boundary(steps) for steps in (60, 120, 180, 220, 330)] == [None] * 5
    assert run.boundary(350, FINISHED) == FINISHED
    assert run.end() == [(120, 3.0, True), (220, 2.0, False), (330, 3.0, True), (350, 1.0, False)]
    assert list(evaluated(run.run_dir)) == [330]
    assert run.told == read_evaluations(run.run_dir) and run.said == []
    assert run.told[0]["iteration"] == 12 and run.told[0]["checkpoint"] == "step_000000120"


def test_a_slow_process_holds_nobody_up_until_too_many_wait(begin: Callable[..., Run]) -> None:
    run = begin(process := Process())
    process.waits = True
    for number in range(1, MOST_WAITING + 1):
        run.boundary(100 * number)
    assert process.played == []
    run.boundary(100 * (MOST_WAITING + 1))
    assert process.played == [100]
    assert run.boundary(100 * (MOST_WAITING + 1), TARGET) == TARGET
    assert process.played == [100, 200, 300, 400]


@pytest.mark.parametrize("waits", [False, True])
def test_the_target_ends_the_run_at_the_next_due_boundary(begin: Callable[..., Run], waits: bool) -> None:
    """However fast evaluations are."""
    run = begin(process := Process(), target_return=100.0)
    process.waits = waits
    assert [run.boundary(steps) for steps in (100, 150, 200)] == [None, None, TARGET]
    assert run.evaluations.stopped_by == "eval.target-return"
    assert process.played == [100, 200]


def test_patience_ends_the_run(begin: Callable[..., Run]) -> None:
    run = begin(Process(lambda steps: -float(steps)), patience=2)
    assert [run.boundary(steps) for steps in (100, 200, 300, 400)] == [None, None, None, FINISHED]
    assert run.evaluations.stopped_by == "eval.patience"


def test_the_last_evaluation_may_reach_the_target(begin: Callable[..., Run]) -> None:
    run = begin(target_return=250.0)
    assert run.boundary(100) is None
    assert run.boundary(250, FINISHED) == TARGET
    assert run.evaluations.stopped_by == "eval.target-return"


def test_a_run_that_is_asked_to_leave_waits_no_longer_and_goes_on_with_what_is_missing(
    begin: Callable[..., Run],
) -> None:
    run = begin(process := Process(), target_return=100.0)
    process.waits = True
    run.boundary(100)
    run.preemption.request("a test")
    assert run.boundary(200) is None  # undecided
    write_checkpoint(run.run_dir, make_checkpoint(200), keep=1)
    assert run.end() == [] and list(evaluated(run.run_dir)) == [100, 200]
    assert end_on_disk(run.run_dir, EvalConfig(every=100, target_return=100.0), 200, None) is None

    again = begin(process := Process(), env_steps=200, target_return=100.0)
    assert again.evaluations.at_start(make_checkpoint(200).state, None) == TARGET
    assert process.played == [100, 200] and again.evaluations.stopped_by == "eval.target-return"
    again.end()
    settings = EvalConfig(every=100, target_return=100.0)
    assert end_on_disk(run.run_dir, settings, 200, None) == Stop(TARGET, "eval.target-return")
    assert end_on_disk(run.run_dir, EvalConfig(every=100, target_return=300.0), 200, None) is None


def test_a_run_that_is_over_is_resumed_for_its_last_evaluations(begin: Callable[..., Run]) -> None:
    run = begin(process := Process())
    process.waits = True
    run.preemption = run.evaluations._preemption
    run.preemption.grace_s = 0.0
    run.preemption.request("a test")
    assert run.boundary(100, FINISHED) == PREEMPTED
    run.end()
    over = Stop(FINISHED, "total-steps")
    assert end_on_disk(run.run_dir, EvalConfig(every=100), 100, over) is None
    again = begin(env_steps=100)
    assert again.evaluations.at_start(make_checkpoint(100).state, FINISHED) == FINISHED
    assert again.end() == [(100, 100.0, True)]
    assert end_on_disk(run.run_dir, EvalConfig(every=100), 100, over) == over


def test_a_resume_undoes_what_comes_again(begin: Callable[..., Run]) -> None:
    """The evaluation of 200 was the best; from 150 on it comes again, and until then that of 100 is."""
    run = begin()
    run.boundary(100)
    run.files.save(lambda: write_checkpoint(run.run_dir, make_checkpoint(150), keep=3))
    for steps in (200, 300):
        run.boundary(steps)
    run.boundary(310)
    whole = run.end()
    again = begin(env_steps=150)
    assert read_evaluations(run.run_dir) == run.told[:1] and list(evaluated(run.run_dir)) == [100]
    assert (run.run_dir / "checkpoints" / "best").read_text() == "evaluated/step_000000100\n"
    for steps in (200, 300, 310):
        again.boundary(steps)
    assert again.end() == whole == [(100, 100.0, True), (200, 200.0, True), (300, 300.0, True)]


def test_without_evaluations_nothing_is_written(begin: Callable[..., Run]) -> None:
    run = begin(every=0)
    assert run.boundary(100) is None and run.boundary(200, FINISHED) == FINISHED
    assert run.evaluations.at_start(make_checkpoint(200).state, FINISHED) is None
    run.end()
    assert [path.name for path in run.run_dir.iterdir()] == ["metrics.jsonl"]


def test_lines_are_those_of_json(begin: Callable[..., Run]) -> None:
    run = begin(Process(lambda steps: float("nan")))
    run.boundary(100, FINISHED)
    run.end()
    (text,) = (run.run_dir / "evaluations.jsonl").read_text().splitlines()
    assert json.loads(text)["return_mean"] is None and not json.loads(text)["best"]
    assert not (run.run_dir / "checkpoints" / "best").exists()
