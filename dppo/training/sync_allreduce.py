"""Synchronous training by allreduce: every worker holds the whole state, and makes the same step from the same sum.

The lead (the first worker) tells rank 0 of each boundary, and continues. Rank 0 keeps track, and says whether the run
ends there.
"""

from __future__ import annotations

import sys
import zlib
from collections import deque
from collections.abc import Sequence

import numpy as np

from dppo.comm.allreduce import Allreduce
from dppo.comm.link import Link
from dppo.config import Config
from dppo.data import Batch, Report
from dppo.seams import Answer, Tag
from dppo.training.learner import STATISTICS, explained_variance
from dppo.training.state import TrainingState
from dppo.training.sync_loop import SyncCoordinator
from dppo.training.tracker import Tracker

CHECK_EVERY = 32
"""Iterations between two checks that the workers' states are equal."""


class AllreduceExchange:
    """A worker's part. The workers compare their states every `CHECK_EVERY` iterations.

    A worker that has got rank 0's order to stop says so with the next statistics, and all workers leave together. They
    give up what they have begun since the boundary at which the run ended. So no worker waits for rank 0, unless rank 0
    is a whole iteration behind.
    """

    def __init__(self, sums: Allreduce, state: TrainingState, link: Link) -> None:
        self._sums, self._state, self._link = sums, state, link
        self._open_boundaries = 0
        self._said = False

    @property
    def waited_s(self) -> float:
        return self._sums.waited_s

    def meet(self, batch: Batch) -> Batch | None:
        """Collective over the workers that compute. Adds up the statistics; returns None if the run has ended."""
        while self._open_boundaries > 1 and not self._link.verdict():
            self._open_boundaries -= 1
        stop = batch.stop or self._link.stopped
        totals = np.concatenate(([float(stop)], batch.statistics))
        self._sums.add(totals)
        batch.statistics[:] = totals[1:]
        return batch if totals[0] == 0 else None  # one rank that knows is enough, and all leave at this call

    def is_past(self, minibatch: int) -> bool:
        return False

    def step(self) -> bool:
        """Collective over the workers that compute. Adds up the gradients and makes the step."""
        summed = self._state.flat.summed
        self._link.heartbeat("exchange")
        self._sums.add(summed)
        return self._state.step(summed)

    def finish_iteration(self, totals: np.ndarray) -> None:
        state = self._state
        state.merge(totals[len(STATISTICS) :])
        state.close_round(state.updates)
        state.finish_iteration(int(totals[STATISTICS.index("env_steps")]), explained_variance(totals))
        checks = self._sums.num_ranks > 1 and state.iteration % CHECK_EVERY == 0
        if not (self._sums.is_lead or self._link.keeps_boundaries or checks):
            return
        message = state.packed()
        if checks and not self._sums.agree(zlib.crc32(message.tobytes())):
            self._take_over_the_leads(message)
        self._link.keep_boundary(state.iteration, message, state.layout.head_bytes)
        if self._sums.is_lead:
            self._link.boundary(message)
            self._open_boundaries += 1

    def _take_over_the_leads(self, message: np.ndarray) -> None:
        """Collective over the workers that compute. Gives all workers the lead's state, after a check has found that
        states differ: a last bit that is different on another type of CPU affects every later step.
        """
        self._sums.take_over(message)
        self._state.unpack(message)
        if self._sums.is_lead and not self._said:
            self._said = True
            print(
                "dppo: the workers' states had drifted apart (are their CPUs of different types?): all go on with the"
                f" first worker's; they are compared every {CHECK_EVERY} iterations",
                file=sys.stderr,
                flush=True,
            )


class AllreduceCoordinator(SyncCoordinator):
    """Rank 0's part: it closes an iteration once all workers have reported and the lead has sent the state."""

    mirrors_state = False

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
        super().__init__(tracker, state, config, workers, survives=survives, names=names)
        self._reports: list[deque[Report]] = [deque() for _ in workers]
        self._boundaries: deque[np.ndarray] = deque()

    @property
    def unclosed(self) -> list[Report]:
        """Reports that wait for their iteration's end."""
        return [report for reports in self._reports for report in reports]

    def _take_report(self, report: Report) -> list[Answer]:
        self._reports[self._index[report.worker]].append(report)
        return self._close_boundaries()

    def on_boundary(self, worker: int, message: np.ndarray) -> list[Answer]:
        self._boundaries.append(message)
        return self._close_boundaries()

    def _close_boundaries(self) -> list[Answer]:
        answers: list[Answer] = []
        while self._boundaries and not self.begun and all(self._reports):
            for reports in self._reports:
                self._tracker.add(reports.popleft())
            self._state.unpack(self._boundaries.popleft())
            if (reason := self._tracker.close({})) is not None:
                answers += self.begin(reason)
            else:
                answers += [*self.aside(), Answer(0, Tag.CONTINUE, np.empty(0, np.uint8))]
        return answers
