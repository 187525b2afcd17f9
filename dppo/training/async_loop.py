"""Asynchronous training: every gradient is applied as it comes (A3C; with the PPO loss it is APPO-like).

A worker's gradient travels while its next rollout begins: at most one is under way (double buffering). If the loss
allows a policy that is newer than the one that acted, a worker fetches the newest state before it learns.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

import numpy as np

from dppo.algo.losses import METRICS
from dppo.algo.optim import staleness_weight
from dppo.comm.link import Link
from dppo.comm.server import ParameterServer
from dppo.config import Config
from dppo.data import Report
from dppo.seams import Answer, Tag
from dppo.training.collector import Collector
from dppo.training.coordinator import BaseCoordinator
from dppo.training.learner import STATISTICS, Learner
from dppo.training.staleness import ShutOut, UsualStaleness
from dppo.training.state import TrainingState, Usage
from dppo.training.tracker import Tracker

_COUNT, _KL = METRICS.index("count"), METRICS.index("approx_kl")


def train_worker(collector: Collector, learner: Learner, state: TrainingState, link: Link, config: Config) -> None:
    """Runs one worker until rank 0 ends the run."""
    replica = _Replica(state, link)
    learns_off_policy = config.vtrace or config.loss == "ppo"
    assert config.horizon is not None, "an unresolved configuration reached the loop"
    target_kl = 1.5 * config.ppo.target_kl if config.loss == "ppo" else 0.0
    learn_s = exchange_s = 0.0
    while not link.stopped:
        started = time.monotonic()
        state.begin_iteration()
        collector.tell(state.fraction_done)
        rollout = collector.collect(config.horizon, state.version, link.interrupted, state.iteration)
        collect_s = time.monotonic() - started
        if link.timeline is not None:
            link.timeline.whole("collect", started, started + collect_s)
        discounted_returns = collector.discounted_returns(rollout)

        started, waited_s = time.monotonic(), link.waited_s
        if link.stop_requested():
            return
        if learns_off_policy:
            replica.fetch()
        batch = learner.prepare(rollout, discounted_returns)
        report = collector.report(rollout, collect_s, learn_s, exchange_s)
        report.moment_sums = batch.statistics[len(STATISTICS) :]
        report.moment_means = state.moments.frozen_means
        link.report(report, rollout)
        learner.normalise_advantages(batch, batch.statistics)
        own_kl = 0.0  # only of this worker's minibatches
        for number, samples in enumerate(learner.minibatches(batch, rollout.first_row)):
            if link.stop_requested():
                return
            link.heartbeat("update")
            if number:
                replica.catch_up(wait=True)
            learner.gradient(samples, state.kl_coef, own_kl, state.fraction_done)
            own_kl = float(state.flat.sums[_KL] / max(state.flat.sums[_COUNT], 1.0))
            if number and 0 < target_kl < own_kl:
                break
            replica.send()
        replica.catch_up(wait=False)
        learn_s, exchange_s = time.monotonic() - started, link.waited_s - waited_s
        if link.timeline is not None:
            link.timeline.whole("learn", started, started + learn_s)
            link.timeline.iteration(started - collect_s, started + learn_s)


class _Replica:
    """A worker's copy of the server's state, and its one gradient under way."""

    def __init__(self, state: TrainingState, link: Link) -> None:
        self._state, self._link = state, link
        self._due = 0  # number of replies that are due; the last one is the newest

    def catch_up(self, *, wait: bool) -> None:
        """Takes over the newest of the due replies that have come; with `wait`, waits for the last of them."""
        newest: np.ndarray | None = None
        while self._due and (message := self._link.reply(wait=wait)) is not None:
            newest, self._due = message, self._due - 1
        if newest is not None:
            self._state.unpack(newest)

    def fetch(self) -> None:
        """Takes over the server's present state. The reply to the gradient under way is older: it was packed when the
        gradient arrived, before the rollout that has just been collected.
        """
        self._link.fetch()
        self._due += 1
        self.catch_up(wait=True)

    def send(self) -> None:
        """Sends the flat gradient, tagged with the version from which it was computed, once the last gradient was
        answered.
        """
        version = self._state.version
        self.catch_up(wait=True)
        if not self._link.stopped:
            self._link.gradient(version, self._state.flat.summed)
            self._due += 1


class AsyncCoordinator(BaseCoordinator):
    """Rank 0's part of asynchronous training: a parameter server with quorum 1, and the tracker.

    An iteration, the unit of metrics and checkpoints, ends once at least as many gradients as there are workers were
    applied, and as many rollouts were reported.
    """

    def __init__(
        self,
        tracker: Tracker,
        state: TrainingState,
        learner: Learner,
        config: Config,
        workers: Sequence[int],
        *,
        survives: bool = False,
        names: Sequence[str] = (),
    ) -> None:
        every = config.server.mirror_every or None if survives else None
        num_workers = len(workers)
        super().__init__(tracker, state, workers, every, names=names)
        self._applied = 0
        self._max_staleness, self._usual = config.server.max_staleness, UsualStaleness(num_workers)
        self._limit = 0.0  # the largest staleness allowed to the present gradient
        self._server = ParameterServer(
            num_workers, 1, lambda age: staleness_weight(age, config.server.staleness, self._limit)
        )
        self._server.version = state.version
        self._shut_out = ShutOut(num_workers)
        self._usage = [Usage(learner.minibatches_per_epoch) for _ in workers]

    def on_report(self, report: Report) -> list[Answer]:
        if self.begun:
            return []
        assert report.moment_sums is not None and report.moment_means is not None
        self._state.merge(report.moment_sums, report.moment_means)
        self._tracker.add(report)
        self._usage[self._index[report.worker]].begin()
        return []

    def waits_for(self) -> Collection[int]:
        return self._present

    def on_gradient(self, worker: int, version: int, summed: np.ndarray) -> list[Answer]:
        if self.begun:
            return []
        self.heard(worker)
        state = self._state
        staleness = self._server.version - version
        usual = self._usual.limit(worker, staleness)
        self._limit = usual if self._max_staleness is None else self._max_staleness
        samples = int(summed[state.flat.size + _COUNT])
        closed = self._server.handle(worker, version, summed, is_gradient=True)
        used = closed.total is not None
        if closed.total is not None:
            state.step(closed.total, closed.weight)
            self._applied += 1
        state.count_learnt_from(self._usage[worker].add(samples, used=used))
        self._say_who_is_shut_out(worker, used=used)
        state.close_round(self._server.version, is_within_iteration=False)
        if self._applied >= self._num_workers <= self._tracker.counters.pending_rollouts:
            self._applied = 0
            state.finish_iteration(self._tracker.counters.pending_env_steps, float("nan"))
            if (reason := self._tracker.close(self._staleness_metrics())) is not None:
                return self.begin(reason)
        return self._reply(worker)

    def on_fetch(self, worker: int) -> list[Answer]:
        return [] if self.begun else self._reply(worker)

    def _reply(self, worker: int) -> list[Answer]:
        message = np.empty(self._state.layout.core_bytes, np.uint8)
        self._state.pack(message)
        return [*self.aside(), Answer(worker, Tag.REPLY, message)]

    def _say_who_is_shut_out(self, worker: int, *, used: bool) -> None:
        if (found := self._shut_out.note(worker, used=used)) is None:
            return
        unused, last = found
        limit = (
            "it takes far longer for them than usual, again and again"
            if self._max_staleness is None
            else f"--server.max-staleness {self._max_staleness}; without it, the limit follows each worker's pace"
        )
        text = f"{self.name(worker)}: {unused} of its last {last} gradients were too stale to be used"
        self._tracker.console.warn(f"{text} ({limit})")

    def _staleness_metrics(self) -> dict[str, object]:
        ages, self._server.staleness = self._server.staleness, type(self._server.staleness)()
        late, self._server.late = self._server.late, 0
        histogram = [ages.get(age, 0) for age in range(max(ages, default=0) + 1)]
        mean = sum(age * n for age, n in ages.items()) / max(sum(ages.values()), 1)
        return {"staleness": histogram, "staleness_mean": mean, "dropped": late}
