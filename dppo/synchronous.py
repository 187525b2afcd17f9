"""Synchronous training: collect -> moments -> backward -> average -> step, on all workers together.

Uses collecting, learning and the exchange; run.py starts `train_worker` on every worker and `SyncCoordinator` on rank
0. The two exchanges differ in who steps: with allreduce every worker does, on the same sum; with p2p rank 0 does, and
answers with the parameters.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from dppo.batch import Minibatch, Report
from dppo.config import Config
from dppo.ending import Ending
from dppo.exchange.allreduce import Allreduce
from dppo.exchange.pooling import Pool, slot_bytes
from dppo.exchange.server import Answer, Link, ParameterServer, Tag
from dppo.journal import Journal
from dppo.learner import STATISTICS, Batch, Learner, explained_variance
from dppo.rollout import Collector
from dppo.state import TrainingState


class Exchange(Protocol):
    """How the sums and gradients of an iteration meet."""

    @property
    def waited_s(self) -> float:
        """Seconds spent in waiting for other ranks, since the start."""

    def meet(self, batch: Batch) -> Batch | None:
        """The samples whose gradients this worker computes, with the statistics of all workers; None where the run has
        ended. If the iteration has passed meanwhile, there is nothing to compute.
        """

    def mean_kl(self, kl_sum: float, samples: int) -> float:
        """Mean over the samples of all ranks."""

    def is_past(self, minibatch: int) -> bool:
        """Whether this update of the iteration was made without this worker."""

    def step(self) -> bool:
        """Averages the flat gradient over ranks by samples and makes the update; False: the iteration's updates are
        over.
        """

    def finish_iteration(self, totals: np.ndarray) -> None:
        """Merges moments, moves counters and schedules, tells rank 0."""


def train_worker(
    collector: Collector, learner: Learner, state: TrainingState, exchange: Exchange, link: Link, config: Config
) -> None:
    """One worker's life, until rank 0 ends the run. Every worker goes through the same rounds in the same order."""
    assert config.horizon is not None, "an unresolved configuration reached the loop"
    learn_s = exchange_s = 0.0
    while True:
        iteration, started = state.iteration, time.monotonic()
        learner.normaliser.freeze()
        rollout = collector.collect(config.horizon, state.version, link.stop_requested)
        collect_s = time.monotonic() - started
        discounted_returns = collector.discounted_returns(rollout)
        link.report(collector.report(rollout, collect_s, learn_s, exchange_s))

        started, waited_s = time.monotonic(), exchange.waited_s + link.waited_s
        link.progress("exchange")
        batch = exchange.meet(learner.prepare(rollout, discounted_returns))
        if batch is None:
            return
        if state.iteration == iteration:  # else another worker did it, or it passed while this one was late
            learner.normalise_advantages(batch, batch.statistics)
            for number, samples in enumerate(learner.minibatches(batch, iteration)):
                link.progress("update")
                if exchange.is_past(number):
                    continue
                learner.gradient(samples, state.kl_coef, exchange.mean_kl)
                if not exchange.step():
                    break
            if link.stopped:
                return
            exchange.finish_iteration(batch.statistics)
        learn_s, exchange_s = time.monotonic() - started, exchange.waited_s + link.waited_s - waited_s


class AllreduceExchange:
    """Every worker holds the whole state and makes the same step.

    The lead (worker 0) tells rank 0 of each boundary, and goes on. Whoever hears rank 0's order to stop says so with
    the next statistics, and all leave together; what they had begun since the boundary at which the run ended is given
    up. So nobody waits for rank 0, unless it is a whole iteration behind.
    """

    def __init__(self, sums: Allreduce, state: TrainingState, link: Link) -> None:
        self._sums, self._state, self._link = sums, state, link
        self._open_boundaries = 0

    @property
    def waited_s(self) -> float:
        return self._sums.waited_s

    def meet(self, batch: Batch) -> Batch | None:
        """Collective over the workers that compute."""
        while self._open_boundaries > 1 and not self._link.verdict():
            self._open_boundaries -= 1
        batch.statistics[0] = float(self._link.stopped)  # one rank that knows is enough, and all leave at this call
        self._sums.add(batch.statistics)
        return batch if batch.statistics[0] == 0 else None

    def mean_kl(self, kl_sum: float, samples: int) -> float:
        """Collective over the workers that compute."""
        totals = np.array([kl_sum, samples])
        self._sums.add(totals)
        return float(totals[0] / max(totals[1], 1.0))

    def is_past(self, minibatch: int) -> bool:
        return False

    def step(self) -> bool:
        """Collective over the workers that compute."""
        summed = self._state.flat.summed
        self._sums.add(summed)
        return self._state.step(summed).stepped

    def finish_iteration(self, totals: np.ndarray) -> None:
        state = self._state
        state.normaliser.merge(totals[len(STATISTICS) :])
        state.version = state.updates
        state.finish_iteration(int(totals[STATISTICS.index("env_steps")]), explained_variance(totals))
        if self._sums.is_lead:
            message = np.empty(state.all_bytes, np.uint8)
            state.pack(message)
            self._link.boundary(message)
            self._open_boundaries += 1


def pool_bytes(learner: Learner, state: TrainingState, config: Config) -> int:
    """What a worker puts into its pool, or is answered, at most."""
    distribution = learner.policy.distribution
    head = np.zeros((1, distribution.head_size), np.float32)
    number = np.zeros(1, np.float32)
    inputs = np.zeros((1, len(learner.normaliser.frozen_mean)), np.float32)
    samples = [inputs, distribution.mode(head), head, number, number, number, number]
    assert config.horizon is not None, "an unresolved configuration reached the loop"
    batch = slot_bytes([*samples, np.zeros(learner.num_statistics)], config.horizon * config.num_envs)
    return max(batch, 8 + state.all_bytes)


class PooledExchange:
    """Where ranks outnumber cores: the first of each pool exchanges for its members, whose samples it has taken over;
    they sleep, and take over its state at the iteration's end.
    """

    def __init__(self, exchange: Exchange, pool: Pool, state: TrainingState, link: Link) -> None:
        self._exchange, self._pool, self._state, self._link = exchange, pool, state, link

    @property
    def waited_s(self) -> float:
        return self._exchange.waited_s + self._pool.waited_s

    def meet(self, batch: Batch) -> Batch | None:
        arrays = [*batch.samples.arrays(), batch.statistics]
        if not self._pool.computes:
            self._pool.put(arrays)
            message = self._pool.wait(self._link.keep_moving)
            if len(message):
                self._state.unpack(message)
            return batch if len(message) else None
        members = [
            Batch(Minibatch(*columns), statistics, ((worker, len(columns[0])),))
            for worker, (*columns, statistics) in self._pool.take(arrays)
        ]
        joined = self._exchange.meet(Batch.joined([batch, *members]))
        if joined is None:
            self._end()
        return joined

    def mean_kl(self, kl_sum: float, samples: int) -> float:
        return self._exchange.mean_kl(kl_sum, samples)

    def is_past(self, minibatch: int) -> bool:
        return self._exchange.is_past(minibatch)

    def step(self) -> bool:
        goes_on = self._exchange.step()
        if not goes_on and self._link.stopped:
            self._end()
        return goes_on

    def finish_iteration(self, totals: np.ndarray) -> None:
        self._exchange.finish_iteration(totals)
        message = np.empty(self._state.all_bytes, np.uint8)
        self._state.pack(message)
        self._pool.answer(message)

    def _end(self) -> None:
        self._pool.answer(np.empty(0, np.uint8))


class P2PExchange:
    """Rank 0 adds up, steps and answers with its state; a reply that is ahead of this worker tells it what to skip."""

    waited_s = 0.0  # all waiting is the link's

    def __init__(self, state: TrainingState, link: Link, learner: Learner) -> None:
        self._state, self._link = state, link
        self._num_statistics, self._rounds_per_update = learner.num_statistics, 1 + learner.needs_mean_kl
        self._iteration = state.iteration

    def _receive(self) -> np.ndarray | None:
        """Takes over the server's state; returns what it added up, the totals of the iteration and of the KL round."""
        message = self._link.reply(wait=True)
        if message is None:
            return None
        core = self._state.core_bytes
        self._state.unpack(message[:core])
        return message[core:].view(np.float64)

    def meet(self, batch: Batch) -> Batch | None:
        self._iteration = self._state.iteration
        self._link.sums(self._state.version, batch.statistics)
        sums = self._receive()
        return None if sums is None else replace(batch, statistics=sums[: self._num_statistics])

    def mean_kl(self, kl_sum: float, samples: int) -> float:
        self._link.sums(self._state.version, np.array([kl_sum, samples]))
        sums = self._receive()
        return 0.0 if sums is None else float(sums[-2] / max(sums[-1], 1.0))

    def is_past(self, minibatch: int) -> bool:
        return self._state.ticket > 1 + minibatch * self._rounds_per_update

    def step(self) -> bool:
        self._link.gradient(self._state.version, self._state.flat)
        return self._receive() is not None and self._state.iteration == self._iteration

    def finish_iteration(self, totals: np.ndarray) -> None:
        """The server has done it."""


class SyncCoordinator(Ending):
    """Rank 0 of synchronous training: keeps the journal; with p2p it is the parameter server as well.

    Args:
      num_computing: workers that compute gradients; fewer than num_workers where they are pooled.
    """

    def __init__(
        self,
        journal: Journal,
        state: TrainingState,
        learner: Learner,
        config: Config,
        num_workers: int,
        num_computing: int,
    ) -> None:
        super().__init__(journal, num_workers)
        self._state = state
        self._allreduce = config.exchange == "allreduce"
        self._rounds_per_update = 1 + learner.needs_mean_kl
        self._last_ticket = learner.updates_per_rollout * self._rounds_per_update
        self._server = ParameterServer(
            num_workers, num_computing - config.server.drop, lambda staleness: float(staleness == 0)
        )
        self._reports_per_iteration = 0 if config.server.drop else num_workers
        self._missing_reports = self._reports_per_iteration
        self._waiting: Sequence[int] = ()  # for this iteration's last reports
        self._server.version = state.version
        self._totals = np.zeros(learner.num_statistics)
        self._kl_totals = np.zeros(2)
        self._reports: list[deque[Report]] = [deque() for _ in range(num_workers)]
        self._boundaries: deque[np.ndarray] = deque()

    def on_report(self, report: Report) -> list[Answer]:
        if self.begun:
            return []
        if not self._allreduce:
            self._journal.add(report)
            self._missing_reports -= 1
            return self._close_when_reported()
        self._reports[report.worker].append(report)
        return self._close_boundary()

    # -- allreduce: the workers have stepped, rank 0 keeps the books --------------------

    def on_boundary(self, worker: int, message: np.ndarray) -> list[Answer]:
        self._boundaries.append(message)
        return self._close_boundary()

    def _close_boundary(self) -> list[Answer]:
        answers: list[Answer] = []
        while self._boundaries and not self.begun and all(self._reports):
            for reports in self._reports:
                self._journal.add(reports.popleft())
            self._state.unpack(self._boundaries.popleft())
            if (reason := self._journal.close({})) is not None:
                answers += self.begin(reason)
            else:
                answers.append(Answer(0, Tag.CONTINUE, np.empty(0, np.uint8)))
        return answers

    # -- p2p: rank 0 steps --------------------

    def on_sums(self, worker: int, version: int, vector: np.ndarray) -> list[Answer]:
        if self.begun:
            return []
        if self._state.ticket and self._rounds_per_update == 1:
            # this iteration's statistics are closed, however new the worker's version: it joins at the present update
            self._server.late += 1
            return self._reply((worker,))
        closed = self._server.handle(worker, version, vector, is_gradient=False)
        if closed.total is not None:
            if self._state.ticket == 0:
                self._totals = closed.total
            else:
                self._kl_totals = closed.total
            self._state.ticket += 1
        return self._reply(closed.answer)

    def on_gradient(self, worker: int, version: int, summed: np.ndarray) -> list[Answer]:
        if self.begun:
            return []
        closed = self._server.handle(worker, version, summed, is_gradient=True)
        if closed.total is not None:
            stepped = self._state.step(closed.total).stepped
            self._state.ticket += 1
            if not stepped or self._state.ticket > self._last_ticket:
                self._waiting = closed.answer
                return self._close_when_reported()
        return self._reply(closed.answer)

    def _close_when_reported(self) -> list[Answer]:
        """Ends an iteration whose updates are over. The report of a pool's member may come after them; with `drop`,
        that of a late worker counts in the iteration in which it comes.
        """
        if not self._waiting or self._missing_reports > 0:
            return []
        workers, self._waiting = self._waiting, ()
        self._missing_reports += self._reports_per_iteration
        if (reason := self._finish_iteration()) is not None:
            return self.begin(reason)
        return self._reply(workers)

    def _finish_iteration(self) -> str | None:
        state = self._state
        state.normaliser.merge(self._totals[len(STATISTICS) :])
        state.normaliser.freeze()
        state.version = self._server.version
        state.finish_iteration(self._journal.pending_env_steps, explained_variance(self._totals))
        late, self._server.late = self._server.late, 0
        return self._journal.close({"late": late})

    def _reply(self, workers: Sequence[int]) -> list[Answer]:
        if not workers:
            return []
        self._state.version = self._server.version
        core = self._state.core_bytes
        message = np.empty(core + 8 * (len(self._totals) + 2), np.uint8)
        self._state.pack(message[:core])
        message[core:] = np.concatenate((self._totals, self._kl_totals)).view(np.uint8)
        return [Answer(w, Tag.REPLY, message) for w in workers]
