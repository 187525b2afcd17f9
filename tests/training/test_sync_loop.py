"""A synchronous worker's life, with a rank 0 and other workers that a stand-in for the exchange plays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from dppo.comm.allreduce import Allreduce
from dppo.comm.link import Link, LocalLink
from dppo.config import PPOConfig
from dppo.data import Batch, Report, Rollout
from dppo.seams import Exchange, Tag
from dppo.training.sync_allreduce import AllreduceCoordinator, AllreduceExchange
from dppo.training.sync_loop import train_worker
from tests.parts import Parts, Run, make_parts, merge_samples

UPDATES = 4
"""Of an iteration: 2 epochs of 2 minibatches."""


class Rank0(Link):
    """The other end of the link, as far as a test says something through it."""

    def __init__(self) -> None:
        super().__init__(asked_to_leave=lambda: False)
        self.reports: list[Report] = []
        self.ends = False
        self.on_report: Callable[[], object] = lambda: None

    def report(self, report: Report, rollout: Rollout) -> None:
        self.reports.append(report)
        self.on_report()

    def ends_here(self) -> bool:
        return self.ends

    def _poll(self) -> bool:
        return False


class Others:
    """An exchange with nobody, for so many iterations; it notes what the loop asks of it."""

    waited_s = 0.0

    def __init__(self, place: Parts, iterations: int = 1) -> None:
        self.place, self.left = place, iterations
        self.asked: list[str] = []
        self.past = 0
        """Updates of the iteration that were made without this worker."""
        self.last_update = 10**9
        self.on_meet: Callable[[], object] = lambda: None

    def meet(self, batch: Batch) -> Batch | None:
        self.left -= 1
        self.on_meet()
        self.asked.append("meet")
        return batch if self.left >= 0 else None

    def is_past(self, minibatch: int) -> bool:
        return minibatch < self.past

    def step(self) -> bool:
        self.asked.append("step")
        return self.asked.count("step") < self.last_update

    def finish_iteration(self, totals: np.ndarray) -> None:
        self.asked.append("finish")
        self.place.state.finish_iteration(0, 0.0)


def work(others: Others, rank0: Rank0, **changes: Any) -> list[str]:
    place, exchange = others.place, others
    asked: Exchange = exchange
    train_worker(place.collector, place.learner, place.state, asked, rank0, place.config)
    return others.asked


def test_an_iteration_is_a_meeting_its_updates_and_an_end() -> None:
    rank0, others = Rank0(), Others(make_parts(), iterations=2)
    assert work(others, rank0) == [*["meet", *["step"] * UPDATES, "finish"] * 2, "meet"]
    assert [(r.first_row, r.iteration) for r in rank0.reports] == [(0, 0), (16, 1), (32, 2)]


def test_an_iteration_whose_kl_was_too_large_ends_with_that_update() -> None:
    others = Others(make_parts())
    others.last_update = 2
    assert work(others, Rank0()) == ["meet", "step", "step", "finish", "meet"]


def test_updates_that_were_made_without_this_worker_are_skipped() -> None:
    others = Others(make_parts())
    others.past = 3
    assert work(others, Rank0()) == ["meet", "step", "finish", "meet"]


def test_an_iteration_that_has_passed_meanwhile_is_not_learnt_from() -> None:
    """Another worker has computed for this one, or it was too late."""
    place = make_parts()
    others = Others(place, iterations=2)
    others.on_meet = lambda: place.state.finish_iteration(0, 0.0) if others.left == 1 else None
    assert work(others, Rank0()) == ["meet", "meet", *["step"] * UPDATES, "finish", "meet"]


def test_the_order_to_stop_leaves_an_iteration_unfinished() -> None:
    rank0, others = Rank0(), Others(make_parts())
    others.on_meet = lambda: setattr(rank0, "stopped", True)
    assert work(others, rank0) == ["meet", *["step"] * UPDATES]


def test_a_rank_that_is_alone_leaves_between_two_updates() -> None:
    rank0, others = Rank0(), Others(make_parts())
    rank0.ends = True
    assert work(others, rank0) == ["meet"]


def test_moments_stand_still_within_an_iteration_and_move_between_two() -> None:
    place = make_parts()
    others, scales = Others(place, iterations=2), []
    merge_samples(place.state, np.ones((5, 4)), np.arange(5.0)[:, None])
    scales.append(place.state.moments.rewards.scale)
    others.on_meet = lambda: scales.append(place.state.moments.rewards.scale)
    work(others, Rank0())
    assert scales[0] != scales[1] == scales[2]


def test_before_the_first_moments_a_report_says_what_the_sums_are_taken_about() -> None:
    place, rank0 = make_parts(), Rank0()
    others = Others(place, iterations=1)
    others.on_meet = lambda: merge_samples(place.state, np.ones((5, 4)), np.arange(5.0)[:, None])
    work(others, rank0)
    assert [report.moment_means is None for report in rank0.reports] == [False, True]


@pytest.mark.parametrize(("fraction", "rows"), [(0.0, 16), (0.5, 4)])
def test_who_is_hurried_stops_from_a_quarter_of_the_rollout_on(fraction: float, rows: int) -> None:
    rank0 = Rank0()
    rank0.hurried_in = 0
    work(Others(make_parts(preempt_fraction=fraction)), rank0)
    assert [len(r.env_actions) for r in rank0.reports] == [rows, 16], "in that iteration only"
    assert rank0.may_be_hurried is bool(fraction)


def test_what_learning_took_is_told_with_the_next_report() -> None:
    rank0 = Rank0()
    work(Others(make_parts(), iterations=2), rank0)
    assert rank0.reports[0].learn_s == 0.0 < rank0.reports[1].learn_s
    assert all(r.collect_s > 0 for r in rank0.reports)


# -- with rank 0 in the same process --------------------


def test_one_rank_trains_to_the_end_of_its_run(tmp_path: Path) -> None:
    run = Run(tmp_path, total_steps=160, ppo=PPOConfig(epochs=2, minibatches=2))
    place = run.places[0]
    coordinator = AllreduceCoordinator(run.tracker, place.state, place.config, [0])
    link = LocalLink(coordinator, lambda: False)
    exchange = AllreduceExchange(Allreduce(MPI.COMM_SELF), place.state, link)
    train_worker(place.collector, place.learner, place.state, exchange, link, place.config)
    link.bye()
    assert coordinator.done and run.tracker.saver.has_ended
    assert (run.summary()["exit"], run.summary()["env_steps"], run.saved().iteration) == ("finished", 160, 5)
    assert [line["updates"] for line in run.lines()] == [4, 8, 12, 16, 20]
    assert run.lines()[-1]["steps_learnt_from"] == 160


# -- rank 0 --------------------


def test_enough_workers_hurry_the_others_once(tmp_path: Path) -> None:
    run = Run(tmp_path, workers=4, preempt_fraction=0.5)
    coordinator = AllreduceCoordinator(run.tracker, run.state, run.config, range(4))
    hurried = []
    for place in run.places:
        place.rollout()
        answers = coordinator.on_report(place.reports[-1])
        hurried.append([a.worker for a in answers if a.tag == Tag.HURRY])
    assert hurried == [[], [2, 3], [], []]
    assert len(coordinator.unclosed) == 4, "they wait for the lead's state"
    run.tracker.files.close()
