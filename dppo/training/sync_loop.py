"""Synchronous training: collect -> moments -> backward -> average -> step, on all workers together.

An `Exchange` averages: training/sync_allreduce.py, training/sync_p2p.py, training/sync_pooled.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence

import numpy as np

from dppo.comm.link import Link
from dppo.config import Config
from dppo.data import Report
from dppo.seams import Answer, Exchange, Tag
from dppo.training.collector import Collector
from dppo.training.coordinator import BaseCoordinator
from dppo.training.learner import Learner
from dppo.training.state import TrainingState
from dppo.training.tracker import Tracker


def train_worker(
    collector: Collector, learner: Learner, state: TrainingState, exchange: Exchange, link: Link, config: Config
) -> None:
    """Runs one worker until rank 0 ends the run. Every worker goes through the same rounds in the same order."""
    assert config.horizon is not None, "an unresolved configuration reached the loop"
    learn_s = exchange_s = 0.0
    enough = (lambda: link.hurried_in >= state.iteration) if config.preempt_fraction else None
    link.may_be_hurried = enough is not None
    while True:
        iteration, started = state.iteration, time.monotonic()
        state.begin_iteration()
        collector.tell(state.fraction_done)
        rollout = collector.collect(config.horizon, state.version, link.interrupted, iteration, enough)
        collect_s = time.monotonic() - started
        if link.timeline is not None:
            link.timeline.whole("collect", started, started + collect_s)
        discounted_returns = collector.discounted_returns(rollout)
        report = collector.report(rollout, collect_s, learn_s, exchange_s)
        if state.moments.are_empty:
            report.moment_means = state.moments.frozen_means
        link.report(report, rollout)

        started, waited_s = time.monotonic(), exchange.waited_s + link.waited_s
        link.heartbeat("exchange")
        batch = exchange.meet(learner.prepare(rollout, discounted_returns))
        if batch is None:
            return
        if state.iteration == iteration:  # else another worker made the updates, or they were over before this one came
            learner.normalise_advantages(batch, batch.statistics)
            for number, samples in enumerate(learner.minibatches(batch, iteration)):
                link.heartbeat("update")
                if link.ends_here():
                    return
                if exchange.is_past(number):
                    continue
                learner.gradient(samples, state.kl_coef, state.last_kl, state.fraction_done)
                if not exchange.step():
                    break
            if link.stopped:
                return
            exchange.finish_iteration(batch.statistics)
        learn_s, exchange_s = time.monotonic() - started, exchange.waited_s + link.waited_s - waited_s
        if link.timeline is not None:
            link.timeline.whole("learn", started, started + learn_s)
            link.timeline.iteration(started - collect_s, started + learn_s)


class SyncCoordinator(BaseCoordinator):
    """Rank 0's part of a synchronous run, however the workers average.

    Args:
      workers: the workers' numbers, in the order of their ranks.
      survives: whether mirrors go to standbys.
    """

    mirrors_state = True

    def __init__(
        self,
        tracker: Tracker,
        state: TrainingState,
        config: Config,
        workers: Sequence[int],
        *,
        survives: bool = False,
        names: Sequence[str] = (),
    ) -> None:
        every = config.server.mirror_every or None if survives else None
        super().__init__(tracker, state, workers, every, mirrors_state=self.mirrors_state, names=names)
        self._hurry_at = math.ceil(config.preempt_fraction * len(workers)) or len(workers)
        self._collected_in, self._collected = -1, set[int]()

    def on_report(self, report: Report) -> list[Answer]:
        if self.begun:
            return []
        return [*self._note_collected(report), *self._take_report(report)]

    def _take_report(self, report: Report) -> list[Answer]:
        """Adds a rollout, and closes the iteration if nothing else is missing."""
        raise NotImplementedError

    def waits_for(self) -> Collection[int]:
        missing = self._present - self._collected
        return missing or self._present

    def _note_collected(self, report: Report) -> list[Answer]:
        """Notes a finished rollout. Once enough workers have finished theirs, tells the others to end theirs (Wijmans
        et al. 2020, DD-PPO).
        """
        index = self._index[report.worker]
        self.heard(index)
        if report.iteration < self._collected_in:
            return []  # the worker was late
        if report.iteration > self._collected_in:
            self._collected_in, self._collected = report.iteration, set()
        self._collected.add(index)
        if len(self._collected) != self._hurry_at or self._hurry_at == len(self._present):
            return []
        message = np.array([report.iteration], np.int64).view(np.uint8)
        return [Answer(w, Tag.HURRY, message) for w in sorted(self._present - self._collected)]
