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
    """A p2p coordinator of `num_workers`, one of whom may be dropped; it counts what it is sent as ones."""

    def __init__(self, num_workers: int) -> None:
        config = resolve(Config(exchange="p2p", server=ServerConfig(drop=1), ppo=PPOConfig(target_kl=0.0)))
        space = spaces.Box(-1, 1, (4,))
        policy = make_policy(space, spaces.Discrete(2), config.model, np.random.default_rng(0), len(METRICS))
        normaliser = Normaliser(4, config.moments)
        learner = Learner(policy, normaliser, config, 0)
        self.state = TrainingState(policy.flat, normaliser, config)
        journal: Any = SimpleNamespace(pending_env_steps=0, close=lambda extra: None)
        self.coordinator = SyncCoordinator(cast(Journal, journal), self.state, learner, config, num_workers)
        self._statistics = np.ones(learner.num_statistics)
        self._gradient = np.ones_like(policy.flat.summed)

    def sums(self, worker: int, version: int) -> list[int]:
        return [answer.worker for answer in self.coordinator.on_sums(worker, version, self._statistics.copy())]

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
