"""Synchronous training: collect -> moments -> backward -> average -> step, on all workers together.

How they average is `training/sync_exchange.py`'s.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Collection, Sequence

import numpy as np

from dppo.comm.link import Link
from dppo.comm.server import ParameterServer
from dppo.config import Config
from dppo.data import Report
from dppo.seams import Answer, Exchange, Tag
from dppo.training.collector import Collector
from dppo.training.coordinator import Ending
from dppo.training.learner import STATISTICS, Learner, explained_variance
from dppo.training.staleness import ShutOut
from dppo.training.state import TrainingState
from dppo.training.tracker import Journal


def train_worker(
    collector: Collector, learner: Learner, state: TrainingState, exchange: Exchange, link: Link, config: Config
) -> None:
    """One worker's life, until rank 0 ends the run. Every worker goes through the same rounds in the same order."""
    assert config.horizon is not None, "an unresolved configuration reached the loop"
    learn_s = exchange_s = 0.0
    enough = (lambda: link.hurried_in >= state.iteration) if config.preempt_fraction else None
    link.may_be_hurried = enough is not None
    while True:
        iteration, started = state.iteration, time.monotonic()
        learner.normaliser.freeze()
        rollout = collector.collect(config.horizon, state.version, link.interrupted, iteration, enough)
        collect_s = time.monotonic() - started
        discounted_returns = collector.discounted_returns(rollout)
        report = collector.report(rollout, collect_s, learn_s, exchange_s)
        if learner.normaliser.observations.count == 0:
            report.moment_means = learner.normaliser.frozen_mean, learner.normaliser.frozen_return_mean
        link.report(report, rollout)

        started, waited_s = time.monotonic(), exchange.waited_s + link.waited_s
        link.progress("exchange")
        batch = exchange.meet(learner.prepare(rollout, discounted_returns))
        if batch is None:
            return
        if state.iteration == iteration:  # else another worker did it, or it passed while this one was late
            learner.normalise_advantages(batch, batch.statistics)
            for number, samples in enumerate(learner.minibatches(batch, iteration)):
                link.progress("update")
                if link.ends_here():
                    return
                if exchange.is_past(number):
                    continue
                learner.gradient(samples, state.kl_coef, exchange.mean_kl)
                if not exchange.step():
                    break
            if link.stopped:
                return
            exchange.finish_iteration(batch.statistics)
        learn_s, exchange_s = time.monotonic() - started, exchange.waited_s + link.waited_s - waited_s


class SyncCoordinator(Ending):
    """Rank 0 of synchronous training: keeps the journal; with p2p it is the parameter server as well.

    Args:
      workers: their numbers, in the order of their ranks.
      num_computing: workers that compute gradients; fewer than all where they are pooled.
      survives: whether copies go to a standby.
      totals: where the run goes on within an iteration: its statistics, added up.
    """

    def __init__(
        self,
        journal: Journal,
        state: TrainingState,
        learner: Learner,
        config: Config,
        workers: Sequence[int],
        num_computing: int,
        *,
        survives: bool = False,
        totals: np.ndarray | None = None,
        names: Sequence[str] = (),
    ) -> None:
        self._allreduce = config.exchange == "allreduce"
        every = config.server.mirror_every or None if survives else None
        super().__init__(journal, state, workers, every, mirrors_state=not self._allreduce, names=names)
        num_workers = len(workers)
        self._rounds_per_update = 1 + learner.needs_mean_kl
        self._last_ticket = learner.updates_per_rollout * self._rounds_per_update
        self._server = ParameterServer(
            num_workers, max(1, num_computing - config.server.drop), lambda staleness: float(staleness == 0)
        )
        self._drops = config.server.drop  # without it, only a worker that has regrouped joins within an iteration
        self._reports_per_iteration = 0 if self._drops else num_workers
        self._missing_reports = self._reports_per_iteration
        self._waiting: Sequence[int] = ()  # for this iteration's last reports
        self._server.version = state.version
        self._took_part, self._shut_out = set[int](), ShutOut(num_workers)
        self.totals = np.zeros(learner.num_statistics) if totals is None else totals.copy()
        self._kl_totals = np.zeros(2)
        self._reports: list[deque[Report]] = [deque() for _ in range(num_workers)]
        self._boundaries: deque[np.ndarray] = deque()
        self._hurry_at = math.ceil(config.preempt_fraction * num_workers) or num_workers
        self._collected_in, self._collected = -1, set[int]()
        if self._rounds_per_update == 2 and state.ticket and state.ticket % 2 == 0:
            state.ticket -= 1  # the KL that this minibatch's gradients needed was gathered among other ranks

    def settle(self) -> None:
        """Ranks have died: what is due is done without them. After it, `totals` belongs to the state."""
        if self._waiting and not self.begun:
            self._waiting = ()
            self._finish_iteration()

    @property
    def unclosed(self) -> list[Report]:
        """sync/allreduce: reports that wait for their iteration's end."""
        return [report for reports in self._reports for report in reports]

    def on_report(self, report: Report) -> list[Answer]:
        if self.begun:
            return []
        hurry = self._note_collected(report)
        if not self._allreduce:
            self._take_start(report)
            self._journal.add(report)
            self._missing_reports -= 1
            return [*hurry, *self._close_when_reported()]
        self._reports[self._place[report.worker]].append(report)
        return [*hurry, *self._close_boundary()]

    def _take_start(self, report: Report) -> None:
        """Before the first moments: the sums that this worker sends next are about what it says here."""
        state = self._state
        match report:
            case Report(moment_means=(mean, _)) if state.normaliser.observations.count == 0 and state.ticket == 0:
                state.normaliser.start_from(mean)

    def waits_for(self) -> Collection[int]:
        missing = self._present - self._collected
        return missing or self._present

    def _note_collected(self, report: Report) -> list[Answer]:
        """Once enough workers have finished their rollouts of an iteration, the others are told to (Wijmans et al.
        2020, DD-PPO).
        """
        place = self._place[report.worker]
        self.heard(place)
        if report.iteration < self._collected_in:
            return []  # of a worker that was late
        if report.iteration > self._collected_in:
            self._collected_in, self._collected = report.iteration, set()
        self._collected.add(place)
        if len(self._collected) != self._hurry_at or self._hurry_at == len(self._present):
            return []
        message = np.array([report.iteration], np.int64).view(np.uint8)
        return [Answer(w, Tag.HURRY, message) for w in sorted(self._present - self._collected)]

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
                answers += [*self.aside(), Answer(0, Tag.CONTINUE, np.empty(0, np.uint8))]
        return answers

    # -- p2p: rank 0 steps --------------------

    def on_sums(self, worker: int, version: int, vector: np.ndarray) -> list[Answer]:
        if self.begun:
            return []
        if self._state.ticket and len(vector) == len(self.totals):
            # this iteration's statistics are closed, however new the worker's version: it joins at the present update
            self._server.late += self._drops > 0
            return self._reply((worker,))
        closed = self._server.handle(worker, version, vector, is_gradient=False)
        if closed.total is not None:
            if self._state.ticket == 0:
                self.totals = closed.total
            else:
                self._kl_totals = closed.total
            self._state.ticket += 1
        return self._reply(closed.answer)

    def on_gradient(self, worker: int, version: int, summed: np.ndarray) -> list[Answer]:
        if self.begun:
            return []
        closed = self._server.handle(worker, version, summed, is_gradient=True)
        if closed.total is not None:
            goes_on = self._state.step(closed.total)
            self._took_part.update(closed.answer)
            self._state.ticket += 1
            if not goes_on or self._state.ticket > self._last_ticket:
                self._waiting = closed.answer
                return self._close_when_reported()
        return self._reply(closed.answer)

    def on_fetch(self, worker: int) -> list[Answer]:
        raise AssertionError("synchronous workers get the state with what they wait for")

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
        state.normaliser.merge(self.totals[len(STATISTICS) :])
        state.normaliser.freeze()
        state.version = self._server.version
        state.finish_iteration(self._journal.pending_env_steps, explained_variance(self.totals))
        late, self._server.late = self._server.late, 0
        if self._drops:
            self._say_who_is_shut_out()
        return self._journal.close({"late": late})

    def _say_who_is_shut_out(self) -> None:
        took_part, self._took_part = self._took_part, set[int]()
        for place in sorted(self._present):
            if (found := self._shut_out.note(place, used=place in took_part)) is not None:
                unused, last = found
                text = f"late in {unused} of the last {last} iterations, of which none of its gradients was used"
                self._journal.console.warn(f"{self.name(place)}: {text} (--server.drop {self._drops})")

    def _reply(self, workers: Sequence[int]) -> list[Answer]:
        if not workers:
            return []
        self._state.version = self._server.version
        core = self._state.core_bytes
        message = np.empty(core + 8 * (len(self.totals) + 2), np.uint8)
        self._state.pack(message[:core])
        message[core:] = np.concatenate((self.totals, self._kl_totals)).view(np.uint8)
        return [*self.aside(), *(Answer(w, Tag.REPLY, message) for w in workers)]
