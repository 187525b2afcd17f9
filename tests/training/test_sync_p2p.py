"""The coordinator of synchronous training, without processes: who is answered with what when workers are late."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from gymnasium import spaces

from dppo.algo.losses import METRICS
from dppo.algo.moments import RewardScale
from dppo.config import Config, PPOConfig, ServerConfig
from dppo.models.policy import make_policy
from dppo.seams import Tag
from dppo.settings.resolve import resolve
from dppo.training.learner import Learner
from dppo.training.moments import RunMoments
from dppo.training.state import TrainingState
from dppo.training.sync_p2p import P2PCoordinator
from dppo.training.tracker import Tracker


class Server:
    """A p2p coordinator of `num_workers`, `drop` of whom may be dropped; it counts what it is sent as ones."""

    def __init__(
        self,
        num_workers: int,
        num_computing: int | None = None,
        drop: int = 1,
        preempt_fraction: float = 0.0,
        state: TrainingState | None = None,
        totals: np.ndarray | None = None,
        names: Sequence[str] = (),
    ) -> None:
        ppo = PPOConfig(target_kl=0.0, epochs=1, minibatches=2)
        server = ServerConfig(drop=drop)
        config = resolve(Config(exchange="p2p", server=server, ppo=ppo, preempt_fraction=preempt_fraction))
        space = spaces.Box(-1, 1, (4,))
        rng = np.random.default_rng(0)
        policy = make_policy(space, spaces.Discrete(2), config.model, config.moments, rng, len(METRICS))
        moments = RunMoments(policy.inputs, RewardScale(is_used=True))
        learner = Learner(policy, moments, config, 0)
        self.state = state or TrainingState(policy.flat, moments, config)
        self.reports: list[Any] = []
        self.said: list[str] = []
        self.late: list[int] = []
        """In each iteration that was closed."""
        tracker: Any = SimpleNamespace(
            counters=SimpleNamespace(pending_env_steps=0),
            saver=SimpleNamespace(take_seal_orders=dict),
            close=lambda extra: self.late.append(extra["late"]),
            console=SimpleNamespace(warn=self.said.append),
            add=self.reports.append,
        )
        self.coordinator = P2PCoordinator(
            cast(Tracker, tracker), self.state, learner, config, range(num_workers), num_computing or num_workers,
            totals=totals, names=names,
        )  # fmt: skip
        self._statistics = np.ones(learner.num_statistics)
        self._gradient = np.ones_like(policy.flat.summed)

    def sums(self, worker: int, version: int) -> list[int]:
        return [answer.worker for answer in self.coordinator.on_sums(worker, version, self._statistics.copy())]

    def report(self, worker: int, iteration: int = 0) -> list[int]:
        report = cast(Any, SimpleNamespace(worker=worker, iteration=iteration))
        return [answer.worker for answer in self.coordinator.on_report(report)]

    def hurried(self, worker: int, iteration: int) -> list[int]:
        """Whom the server tells to hurry when this worker has its rollout."""
        report = cast(Any, SimpleNamespace(worker=worker, iteration=iteration))
        answers = [a for a in self.coordinator.on_report(report) if a.tag == Tag.HURRY]
        assert all(a.message.view(np.int64).tolist() == [iteration] for a in answers)
        return [answer.worker for answer in answers]

    def gradient(self, worker: int, version: int) -> list[int]:
        return [answer.worker for answer in self.coordinator.on_gradient(worker, version, self._gradient.copy())]


def test_the_first_workers_make_the_update_and_are_answered_together() -> None:
    server = Server(num_workers=3)
    assert server.sums(0, version=0) == []
    assert server.sums(2, version=0) == [0, 2]
    assert server.gradient(2, version=1) == []
    assert server.gradient(0, version=1) == [0, 2]
    assert (server.state.updates, server.state.round, server.state.version) == (1, 2, 2)


def test_the_last_workers_are_told_to_hurry_once_enough_have_collected() -> None:
    server = Server(num_workers=5, drop=0, preempt_fraction=0.5)
    told = [server.hurried(worker, iteration=4) for worker in (3, 0, 1, 2, 4)]
    assert told == [[], [], [2, 4], [], []]
    assert server.hurried(0, iteration=5) == [] and server.hurried(1, iteration=5) == []
    assert server.hurried(4, iteration=5) == [2, 3]


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_nobody_is_told_to_hurry_where_that_is_off(fraction: float) -> None:
    server = Server(num_workers=3, drop=0, preempt_fraction=fraction)
    assert [server.hurried(worker, iteration=0) for worker in range(3)] == [[], [], []]


def test_the_workers_that_rank_zero_waits_for_are_those_without_a_rollout() -> None:
    server = Server(num_workers=3, drop=0)
    assert set(server.coordinator.waits_for()) == {0, 1, 2}
    server.hurried(1, iteration=0)
    assert set(server.coordinator.waits_for()) == {0, 2}
    server.hurried(0, iteration=0)
    server.hurried(2, iteration=0)
    assert set(server.coordinator.waits_for()) == {0, 1, 2}, "all have one: it is the updates that do not come"


def test_a_worker_that_regroups_joins_the_iteration_under_way() -> None:
    """The server went on within iteration 0, at its second update; the statistics are closed."""
    before = Server(num_workers=2, drop=0)
    for worker in (0, 1):
        before.sums(worker, version=0)
    for worker in (0, 1):
        before.gradient(worker, version=1)
    server = Server(num_workers=2, drop=0, state=before.state, totals=before.coordinator.totals)
    assert server.sums(1, version=2) == [1]
    np.testing.assert_array_equal(server.coordinator.totals, 2.0)
    assert server.gradient(1, version=2) == []
    server.sums(0, version=2)
    server.gradient(0, version=2)
    for worker in (0, 1):
        server.report(worker)
    assert (server.state.updates, server.late) == (2, [0])


def test_a_late_gradient_is_answered_at_once_and_never_applied() -> None:
    server = Server(num_workers=3)
    for worker in (0, 1):
        server.sums(worker, version=0)
    for worker in (0, 1):
        server.gradient(worker, version=1)
    before = server.state.flat.vector.copy()
    assert server.gradient(2, version=1) == [2]
    assert server.state.updates == 1
    np.testing.assert_array_equal(server.state.flat.vector, before)


@pytest.mark.parametrize("num_workers", [2, 3])
def test_statistics_of_a_worker_that_joins_in_mid_iteration_are_not_taken_for_a_gradient(num_workers: int) -> None:
    """It was late by an iteration, was answered with the present version, and collected while that stayed open."""
    server = Server(num_workers)
    for worker in range(num_workers - 1):
        server.sums(worker, version=0)
    late = num_workers - 1
    assert server.sums(late, version=1) == [late]
    assert (server.state.round, server.state.updates) == (1, 0)
    for worker in range(num_workers - 1):
        server.gradient(worker, version=1)
    assert server.state.updates == 1


@pytest.mark.parametrize("late", [1, 2, 4])
def test_an_iteration_of_pooled_workers_ends_when_all_have_reported(late: int) -> None:
    """Workers 0 and 2 compute for 1 and for 3 and 4; the report of one overtakes nothing and is waited for."""
    server = Server(num_workers=5, num_computing=2, drop=0)
    for worker in {0, 1, 2, 3, 4} - {late}:
        assert server.report(worker) == []
    for version, send in enumerate((server.sums, server.gradient)):
        assert send(2, version) == []
        assert send(0, version) == [0, 2]
    assert server.gradient(0, version=2) == []
    assert server.gradient(2, version=2) == []
    assert (server.state.iteration, server.state.updates) == (0, 2)
    assert server.report(late) == [0, 2]
    assert (server.state.iteration, server.state.round, len(server.reports)) == (1, 0, 5)
    assert server.report(late) == [], "the next iteration counts anew"


def test_with_dropping_no_report_is_waited_for() -> None:
    server = Server(num_workers=3)
    for version, send in enumerate((server.sums, server.gradient, server.gradient)):
        assert send(0, version) == []
        assert send(1, version) == [0, 1]
    assert server.state.iteration == 1


def iterate(server: Server, workers: tuple[int, ...]) -> None:
    """An iteration in which these make both updates; each gradient counts one sample."""
    for round_ in range(3):
        version = server.state.version
        for worker in workers:
            if round_:
                server.gradient(worker, version)
            else:
                server.sums(worker, version)


def test_samples_of_dropped_gradients_are_not_learnt_from() -> None:
    server = Server(num_workers=3)
    for iteration in (1, 2):
        iterate(server, (0, 1))
        server.sums(2, version=0)  # late
        assert server.state.steps_learnt_from == iteration * 2 * 2  # minibatches of the epoch, workers


def test_a_straggler_of_which_nothing_is_used_is_named_once() -> None:
    server = Server(num_workers=3, names=["rank 1 on a", "rank 2 on b", "rank 3 on c"])
    for _ in range(20):
        iterate(server, (0, 2))
    assert server.said == [
        "rank 2 on b: late in 8 of the last 8 iterations, of which none of its gradients was used (--server.drop 1)"
    ]
    server.said.clear()
    for i in range(60):  # who takes turns in being late is none
        iterate(server, ((0, 1), (1, 2), (0, 2))[i % 3])
    assert server.said == []
