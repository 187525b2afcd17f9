"""Runs on this machine: how many at a time and on which cores, what becomes of each, and how all are stopped."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dppo.settings.flags import from_values
from dppo.study.board import Board
from dppo.study.local import AGAIN, BROKEN, CUT, DONE, Job, Launch, Outcome, Runs, judge, said_last, shares

FAKE = Path(__file__).with_name("fake_launcher.py")
CONFIG = from_values({"env": "X-v0", "total-steps": 1000})


class Listed:
    """Runs with these seeds."""

    def __init__(self, folder: Path, seeds: Sequence[int]) -> None:
        self._jobs = [Job(f"run {seed}", folder / str(seed), {"seed": seed}, {"seed": seed}, CONFIG) for seed in seeds]
        self.outcomes: dict[str, Outcome] = {}
        self.stopped_runs: list[str] = []
        self.failed: dict[str, str] = {}
        self.running = self.most = 0

    @property
    def left(self) -> int:
        return len(self._jobs)

    def counts(self) -> str:
        return f"{len(self.outcomes)} have ended"

    def alive(self) -> None: ...

    def next(self) -> Job | None:
        if not self._jobs:
            return None
        self.running += 1
        self.most = max(self.most, self.running)
        return self._jobs.pop(0)

    def ended(self, job: Job, outcome: Outcome) -> None:
        self.running -= 1
        self.outcomes[job.name] = outcome

    def stopped(self, job: Job) -> None:
        self.running -= 1
        self.stopped_runs.append(job.name)


def run(source: Listed, plan: dict[str, Any], slots: int = 1, *, resumes: bool = True) -> tuple[str, str]:
    """The reason to stop, and what was printed."""
    stream = io.StringIO()
    launch = Launch([sys.executable, str(FAKE), json.dumps(plan)], resumes=resumes)
    with Board(source.counts, stream) as board:
        return Runs(source, launch, slots, board).to_the_end(), stream.getvalue()


def test_some_at_a_time_each_on_cores_of_its_own(tmp_path: Path) -> None:
    source = Listed(tmp_path, [1, 2, 3, 4])
    assert run(source, {"2": 7.0}, slots=2)[0] == ""
    assert source.most == 2 and {outcome.state for outcome in source.outcomes.values()} == {DONE}
    cores = shares(sorted(os.sched_getaffinity(0)), 2)
    said = [(tmp_path / str(seed) / "starts").read_text() for seed in (1, 2)]
    assert [text.startswith(str(own)) for text, own in zip(said, cores, strict=True)] == [True, True]


def test_cores_are_shared_out() -> None:
    assert shares([0, 1, 2, 3, 4], 2) == [[0, 1], [2, 3, 4]]
    assert shares([4, 5], 3) == [[4], [5], [4]]
    assert shares([0, 1], 1) == [[0, 1]]


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    source = Listed(tmp_path, [1, 2, 3, 4])
    _, said = run(source, {"1": "fail", "2": "wrong", "3": "killed"})
    assert source.outcomes == {
        "run 1": Outcome(BROKEN, "ValueError: it broke"),
        "run 2": Outcome(BROKEN, "this is wrong"),
        "run 3": Outcome(CUT, "was killed by signal 9"),
        "run 4": Outcome(DONE),
    }
    assert "run 1 has failed: ValueError: it broke\n" in said and "run 3 was cut short: was killed by" in said
    assert "run 4 has ended: finished, return 1.0 after 1,000 steps (seed=4)\n" in said


def test_a_run_that_was_cut_short_after_a_checkpoint_goes_on_at_once(tmp_path: Path) -> None:
    source = Listed(tmp_path, [1])
    run(source, {"1": "cut"})
    assert source.outcomes == {"run 1": Outcome(DONE)}
    assert [line.split()[-1] for line in (tmp_path / "1" / "starts").read_text().splitlines()] == [
        str(tmp_path / "1"),
        "--resume",
    ]


class Asked(Listed):
    """Gets a signal once a run is at work."""

    number = signal.SIGINT

    def alive(self) -> None:
        if any(self.running and said_last(job.folder) == "slow" for job in self.begun):
            self.begun.clear()
            os.kill(os.getpid(), self.number)

    def __init__(self, folder: Path, seeds: Sequence[int]) -> None:
        super().__init__(folder, seeds)
        self.begun = list(self._jobs[:1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_when_it_is_asked_to_stop_runs_save_and_leave(tmp_path: Path, number: signal.Signals) -> None:
    source = Asked(tmp_path, [1, 2, 3])
    source.number = number
    before = signal.getsignal(number)
    reason, said = run(source, {"1": "slow", "2": "slow"})
    assert (reason, source.stopped_runs, source.left) == (number.name, ["run 1"], 2)
    assert "asked to stop: 1 run(s) save and leave\n" in said
    assert signal.getsignal(number) == before
    again = Listed(tmp_path, [1])  # the same command goes on
    assert "run 1 goes on: seed=1" in run(again, {"1": "slow"})[1]
    assert again.outcomes == {"run 1": Outcome(DONE)}


class Told(Listed):
    """Its run is told by somebody else to save."""

    def alive(self) -> None:
        if self.running and said_last(self.folder / "1") == "slow":
            pids = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
            os.kill(int(pids[-1]), signal.SIGUSR1)

    def __init__(self, folder: Path, seeds: Sequence[int]) -> None:
        super().__init__(folder, seeds)
        self.folder = folder


def test_a_run_of_dppo_job_that_slurm_starts_again_stops_all(tmp_path: Path) -> None:
    source = Told(tmp_path, [1, 2])
    assert run(source, {"1": "slow"}, resumes=False)[0] == AGAIN
    assert (source.stopped_runs, source.left) == (["run 1"], 1)


def test_what_became_of_a_run(tmp_path: Path) -> None:
    assert judge(tmp_path, 2) == Outcome(BROKEN, "wrong use")
    assert judge(tmp_path, 1) == Outcome(CUT, "ended with code 1")
    (tmp_path / "output.log").write_text("some library\ndppo: the reason\nmpirun's banner\n")
    assert judge(tmp_path, -9) == Outcome(CUT, "was killed by signal 9: the reason")
    (tmp_path / "summary.json").write_text('{"exit": "failed", "stalled": true}')
    assert judge(tmp_path, 1).state == CUT
    (tmp_path / "summary.json").write_text('{"exit": "target"}')
    assert judge(tmp_path, 0) == Outcome(DONE)
