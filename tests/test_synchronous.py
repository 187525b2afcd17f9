"""The coordinator of synchronous training, without processes: who is answered with what when workers are late."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from gymnasium import spaces

from dppo.algo.losses import METRICS
from dppo.algo.moments import Normaliser
from dppo.config import Config, PPOConfig, ServerConfig, resolve
from dppo.journal import Journal
from dppo.learner import Learner
from dppo.models.policy import make_policy
from dppo.state import TrainingState
from dppo.synchronous import SyncCoordinator


class Server:
    """A p2p coordinator of `num_workers`, `drop` of whom may be dropped; it counts what it is sent as ones."""

    def __init__(self, num_workers: int, num_computing: int | None = None, drop: int = 1) -> None:
        ppo = PPOConfig(target_kl=0.0, epochs=1, minibatches=2)
        config = resolve(Config(exchange="p2p", server=ServerConfig(drop=drop), ppo=ppo))
        space = spaces.Box(-1, 1, (4,))
        policy = make_policy(space, spaces.Discrete(2), config.model, np.random.default_rng(0), len(METRICS))
        normaliser = Normaliser(4, config.moments)
        learner = Learner(policy, normaliser, config, 0)
        self.state = TrainingState(policy.flat, normaliser, config)
        self.reports: list[Any] = []
        journal: Any = SimpleNamespace(pending_env_steps=0, close=lambda extra: None, add=self.reports.append)
        self.coordinator = SyncCoordinator(
            cast(Journal, journal), self.state, learner, config, range(num_workers), num_computing or num_workers
        )
        self._statistics = np.ones(learner.num_statistics)
        self._gradient = np.ones_like(policy.flat.summed)

    def sums(self, worker: int, version: int) -> list[int]:
        return [answer.worker for answer in self.coordinator.on_sums(worker, version, self._statistics.copy())]

    def report(self, worker: int) -> list[int]:
        return [answer.worker for answer in self.coordinator.on_report(cast(Any, SimpleNamespace(worker=worker)))]

    def gradient(self, worker: int, version: int) -> list[int]:
        return [answer.worker for answer in self.coordinator.on_gradient(worker, version, self._gradient.copy())]


def test_the_first_workers_make_the_update_and_are_answered_together() -> None:
    server = Server(num_workers=3)
    assert server.sums(0, version=0) == []
    assert server.sums(2, version=0) == [0, 2]
    assert server.gradient(2, version=1) == []
    assert server.gradient(0, version=1) == [0, 2]
    assert (server.state.updates, server.state.ticket, server.state.version) == (1, 2, 2)


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
    assert (server.state.ticket, server.state.updates) == (1, 0)
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
    assert (server.state.iteration, server.state.ticket, len(server.reports)) == (1, 0, 5)
    assert server.report(late) == [], "the next iteration counts anew"


def test_with_dropping_no_report_is_waited_for() -> None:
    server = Server(num_workers=3)
    for version, send in enumerate((server.sums, server.gradient, server.gradient)):
        assert send(0, version) == []
        assert send(1, version) == [0, 1]
    assert server.state.iteration == 1
