"""The asynchronous loop and its coordinator, without MPI and without a second process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dppo.comm.link import Link
from dppo.config import PPOConfig, ServerConfig
from dppo.data import Report, Rollout
from dppo.seams import Tag
from dppo.training.async_loop import AsyncCoordinator, train_worker
from dppo.training.packing import moment_of
from tests.parts import Parts, Run, make_parts

AHEAD = 100
"""Updates of others while a rollout is collected."""


class Server(Link):
    """Rank 0 with many other workers: its version moves while this worker collects, and with every gradient."""

    def __init__(self, place: Parts, rollouts: int) -> None:
        super().__init__(lambda: False)
        self.place, self.left = place, rollouts
        self.version = 0
        self.sent: list[list[int]] = []
        """Of each rollout, how stale its gradients were."""

    def _poll(self) -> bool:
        return False

    def _send(self, tag: Tag, message: np.ndarray) -> None:
        if tag == Tag.GRADIENT:
            self.sent[-1].append(self.version - int(message[-8:].view(np.int64)[0]))
            self.version += 1
        elif tag != Tag.FETCH:
            return
        state, now = self.place.state, self.place.state.version
        state.version = self.version
        reply = np.empty(state.layout.core_bytes, np.uint8)
        state.pack(reply)
        state.version = now
        self._take(Tag.REPLY, reply)

    def report(self, report: Report, rollout: Rollout) -> None:
        self.stopped = self.left == 0
        self.left -= 1
        self.sent.append([])

    def interrupted(self) -> bool:
        self.version += AHEAD // 16
        return self.stopped


def staleness(rollouts: int = 4, **changes: Any) -> list[list[int]]:
    place = make_parts(mode="async", **changes)
    server = Server(place, rollouts)
    train_worker(place.collector, place.learner, place.state, server, place.config)
    return server.sent[:rollouts]


@pytest.mark.parametrize(
    "changes",
    [{"loss": "ppo"}, {"loss": "ppo", "vtrace": False}, {"loss": "a3c", "vtrace": True}],
    ids=["ppo", "ppo-no-vtrace", "a3c-vtrace"],
)
def test_a_worker_learns_with_the_parameters_that_are_newest_after_its_rollout(changes: dict[str, Any]) -> None:
    assert {age for ages in staleness(**changes) for age in ages} == {0}


def test_a3c_learns_with_the_parameters_that_acted() -> None:
    """Its gradient is that of the acting policy: one rollout old where the reply came in time, else two."""
    ages = staleness(loss="a3c")
    assert [len(of_rollout) for of_rollout in ages] == [1] * 4
    assert all(90 <= age <= 2 * AHEAD + 1 for (age,) in ages)


# -- rank 0 --------------------


class Rank0:
    """Workers' gradients, by the staleness that they arrive with."""

    def __init__(self, tmp_path: Path, workers: int = 3, server: ServerConfig | None = None, **changes: Any) -> None:
        self.run = Run(tmp_path, workers=workers, mode="async", server=server or ServerConfig(), **changes)
        place = self.run.places[0]
        names = [f"rank {worker + 1} on node{worker}" for worker in range(workers)]
        self.coordinator = AsyncCoordinator(
            self.run.tracker, place.state, place.learner, place.config, range(workers), names=names
        )
        self.warnings: list[str] = []
        self.run.tracker.console.warn = self.warnings.append  # type: ignore[method-assign]

    def report(self, worker: int) -> int:
        """A rollout; returns its transitions."""
        place = self.run.places[worker]
        rollout, discounted = place.rollout()
        report = place.reports[-1]
        report.moment_sums = place.learner.prepare(rollout, discounted).statistics[-place.state.moments.num_sums :]
        report.moment_means = place.state.moments.frozen_means
        self.coordinator.on_report(report)
        return report.env_steps

    def gradient(self, worker: int, samples: int, staleness: int = 0) -> bool:
        """Returns whether it was applied."""
        state = self.run.state
        summed = np.zeros(len(state.flat.summed), np.float32)
        summed[state.flat.size] = samples
        before = state.updates
        self.coordinator.on_gradient(worker, state.version - staleness, summed)
        return state.updates > before

    @property
    def learnt_from(self) -> int:
        return self.run.state.steps_learnt_from


def test_a_slow_worker_takes_part_by_default_and_not_beyond_an_explicit_limit(tmp_path: Path) -> None:
    for name, server, takes_part in (("usual", None, True), ("explicit", ServerConfig(max_staleness=12), False)):
        (tmp_path / name).mkdir()
        rank0 = Rank0(tmp_path / name, server=server, loss="a3c", total_steps=10**6)
        for _ in range(20):
            for _ in range(10):
                for fast in (0, 1):
                    assert rank0.gradient(fast, rank0.report(fast), 2)
            assert rank0.gradient(2, rank0.report(2), 40) is takes_part
        lines = rank0.run.lines()
        assert lines[-1]["env_steps"] - lines[-1]["steps_learnt_from"] == (0 if takes_part else 32 * 19)
        assert rank0.warnings == ([] if takes_part else rank0.warnings[:1])
        if not takes_part:
            assert rank0.warnings[0].startswith("rank 3 on node2: 8 of its last 8 gradients were too stale to be used")
            assert "--server.max-staleness 12; without it" in rank0.warnings[0]


def test_what_is_out_of_the_ordinary_is_dropped(tmp_path: Path) -> None:
    rank0 = Rank0(tmp_path, loss="a3c")
    used = [rank0.gradient(0, rank0.report(0), age) for age in (2, 2, 1, 500, 2, 12, 13)]
    assert used == [True, True, True, False, True, True, False]
    assert rank0.learnt_from == 5 * 32


def test_a_rollout_is_learnt_from_as_far_as_one_epoch_has_used_it(tmp_path: Path) -> None:
    """2 epochs of 2 minibatches: the first gradient is dropped, so all of it is used by the second epoch only."""
    rank0 = Rank0(tmp_path, server=ServerConfig(max_staleness=5), loss="ppo", ppo=PPOConfig(epochs=2, minibatches=2))
    rank0.report(0)
    seen = []
    for samples, age in ((16, 6), (16, 0), (16, 0), (16, 0)):
        rank0.gradient(0, samples, age)
        seen.append(rank0.learnt_from)
    assert seen == [0, 16, 16, 32]
    rank0.report(1)  # its KL stop comes after one minibatch; worker 0's next rollout is between
    rank0.gradient(1, 16)
    rank0.report(0)
    rank0.gradient(0, 16, 6)
    rank0.report(1)
    rank0.gradient(1, 16)
    assert rank0.learnt_from == 32 + 16 + 16


def test_a_fetch_is_answered_with_the_present_state_until_the_run_ends(tmp_path: Path) -> None:
    rank0 = Rank0(tmp_path, loss="a3c")
    rank0.gradient(0, 1)
    (answer,) = rank0.coordinator.on_fetch(2)
    assert (answer.worker, answer.tag) == (2, Tag.REPLY)
    assert moment_of(answer.message) == (0, 1)
    rank0.coordinator.begin("finished")
    assert rank0.coordinator.on_fetch(2) == []
