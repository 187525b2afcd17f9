"""Synchronous training by a parameter server: rank 0 adds up, makes the step, and answers with its state.

A worker sends the statistics of its rollout, then the gradient of each minibatch, and waits for each reply:
[core of the state | sum of all workers' statistics, float64].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dppo.comm.link import Link
from dppo.comm.server import ParameterServer
from dppo.config import Config
from dppo.data import Batch, Report
from dppo.seams import Answer, Tag
from dppo.training.learner import STATISTICS, Learner, explained_variance
from dppo.training.staleness import ShutOut
from dppo.training.state import TrainingState
from dppo.training.sync_loop import SyncCoordinator
from dppo.training.tracker import Tracker


class P2PExchange:
    """A worker's part. A reply that is ahead of this worker tells it what to skip."""

    waited_s = 0.0  # only the link waits

    def __init__(self, state: TrainingState, link: Link) -> None:
        self._state, self._link = state, link
        self._iteration = state.iteration

    def _receive(self) -> np.ndarray | None:
        """Takes over the server's state. Returns the statistics that the server has added up; None if the run has
        ended.
        """
        message = self._link.reply(wait=True)
        if message is None:
            return None
        core = self._state.layout.core_bytes
        self._state.unpack(message[:core])
        totals = message[core:].view(np.float64)
        self._link.keep_totals(totals)
        return totals

    def meet(self, batch: Batch) -> Batch | None:
        self._iteration = self._state.iteration
        self._link.sums(self._state.version, batch.statistics)
        totals = self._receive()
        return None if totals is None else replace(batch, statistics=totals)

    def is_past(self, minibatch: int) -> bool:
        return self._state.round > 1 + minibatch

    def step(self) -> bool:
        self._link.gradient(self._state.version, self._state.flat.summed)
        return self._receive() is not None and self._state.iteration == self._iteration

    def finish_iteration(self, totals: np.ndarray) -> None:
        """Does nothing: the server finishes the iteration."""


class P2PCoordinator(SyncCoordinator):
    """Rank 0's part: the parameter server.

    Args:
      num_computing: number of workers that compute gradients; smaller than the number of workers if they are pooled.
      totals: the iteration's statistics, added up, if the run continues within an iteration.
    """

    def __init__(
        self,
        tracker: Tracker,
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
        super().__init__(tracker, state, config, workers, survives=survives, names=names)
        num_workers = len(workers)
        self._last_round = learner.updates_per_rollout
        self._server = ParameterServer(
            num_workers, max(1, num_computing - config.server.drop), lambda staleness: float(staleness == 0)
        )
        self._drops = config.server.drop  # if 0, only a worker that has regrouped joins within an iteration
        self._reports_per_iteration = 0 if self._drops else num_workers
        self._missing_reports = self._reports_per_iteration
        self._waiting: Sequence[int] = ()  # workers that wait for this iteration's last reports
        self._server.version = state.version
        self._took_part, self._shut_out = set[int](), ShutOut(num_workers)
        self._totals = np.zeros(learner.num_statistics) if totals is None else totals.copy()

    @property
    def totals(self) -> np.ndarray:
        return self._totals

    def settle(self) -> None:
        """Does what is due without the ranks that have died. Afterwards `totals` belongs to the state."""
        if self._waiting and not self.begun:
            self._waiting = ()
            self._finish_iteration()

    def _take_report(self, report: Report) -> list[Answer]:
        self._take_start(report)
        self._tracker.add(report)
        self._missing_reports -= 1
        return self._close_when_reported()

    def _take_start(self, report: Report) -> None:
        """Takes over the observation about which this worker takes its sums for the first moments."""
        state = self._state
        match report:
            case Report(moment_means=(mean, _)) if state.moments.are_empty and state.round == 0:
                state.moments.inputs.start_from(mean)

    def on_sums(self, worker: int, version: int, vector: np.ndarray) -> list[Answer]:
        if self.begun:
            return []
        if self._state.round:
            # this iteration's statistics are closed, however new the worker's version: the worker joins at the
            # present update
            self._server.late += self._drops > 0
            return self._reply((worker,))
        closed = self._server.handle(worker, version, vector, is_gradient=False)
        if closed.total is not None:
            self._totals = closed.total
            self._state.close_round(self._server.version)
        return self._reply(closed.answer)

    def on_gradient(self, worker: int, version: int, summed: np.ndarray) -> list[Answer]:
        if self.begun:
            return []
        closed = self._server.handle(worker, version, summed, is_gradient=True)
        if closed.total is not None:
            goes_on = self._state.step(closed.total)
            self._took_part.update(closed.answer)
            self._state.close_round(self._server.version)
            if not goes_on or self._state.round > self._last_round:
                self._waiting = closed.answer
                return self._close_when_reported()
        return self._reply(closed.answer)

    def _close_when_reported(self) -> list[Answer]:
        """Ends an iteration whose updates are over. The report of a pooled worker may come after them. With `drop`, a
        late worker's report counts in the iteration in which it comes.
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
        state.merge(self._totals[len(STATISTICS) :])
        state.begin_iteration()
        state.finish_iteration(self._tracker.counters.pending_env_steps, explained_variance(self._totals))
        late, self._server.late = self._server.late, 0
        if self._drops:
            self._say_who_is_shut_out()
        return self._tracker.close({"late": late})

    def _say_who_is_shut_out(self) -> None:
        took_part, self._took_part = self._took_part, set[int]()
        for index in sorted(self._present):
            if (found := self._shut_out.note(index, used=index in took_part)) is not None:
                unused, last = found
                text = f"late in {unused} of the last {last} iterations, of which none of its gradients was used"
                self._tracker.console.warn(f"{self.name(index)}: {text} (--server.drop {self._drops})")

    def _reply(self, workers: Sequence[int]) -> list[Answer]:
        if not workers:
            return []
        core = self._state.layout.core_bytes
        message = np.empty(core + self._totals.nbytes, np.uint8)
        self._state.pack(message[:core])
        message[core:] = self._totals.view(np.uint8)
        return [*self.aside(), *(Answer(w, Tag.REPLY, message) for w in workers)]
