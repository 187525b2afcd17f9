"""Pooled synchronous workers, which share a learner because ranks outnumber cores: one exchanges for the others."""

from __future__ import annotations

import numpy as np

from dppo.comm.learner_groups import Pool, slot_bytes
from dppo.comm.link import Link
from dppo.config import Config
from dppo.data import Batch, Minibatch
from dppo.seams import Exchange
from dppo.training.learner import Learner
from dppo.training.state import TrainingState


class PooledExchange:
    """A pooled worker's part. The first worker of a pool takes over the samples of the others and exchanges for them.
    The others sleep, and take over the first worker's state at the iteration's end.
    """

    def __init__(self, exchange: Exchange, pool: Pool, state: TrainingState, link: Link) -> None:
        self._exchange, self._pool, self._state, self._link = exchange, pool, state, link

    @property
    def waited_s(self) -> float:
        return self._exchange.waited_s + self._pool.waited_s

    def meet(self, batch: Batch) -> Batch | None:
        stop = float(self._link.stopped)  # only this worker may have got the order to stop
        arrays = [*batch.samples.arrays(), np.append(batch.statistics, stop)]
        if not self._pool.computes:
            self._pool.put(arrays)
            message = self._pool.wait(self._link.keep_moving)
            if len(message):
                self._state.unpack(message)
            return batch if len(message) else None
        members = [
            Batch(Minibatch(*columns), sums[:-1], ((worker, len(columns[0])),), stop=bool(sums[-1]))
            for worker, (*columns, sums) in self._pool.take(arrays, self._link.keep_moving)
        ]
        joined = self._exchange.meet(Batch.joined([batch, *members]))
        if joined is None:
            self._end()
        return joined

    def is_past(self, minibatch: int) -> bool:
        return self._exchange.is_past(minibatch)

    def step(self) -> bool:
        goes_on = self._exchange.step()
        if not goes_on and self._link.stopped:
            self._end()
        return goes_on

    def finish_iteration(self, totals: np.ndarray) -> None:
        self._exchange.finish_iteration(totals)
        message = self._state.packed()
        self._pool.answer(message)

    def _end(self) -> None:
        self._pool.answer(np.empty(0, np.uint8))


def pool_bytes(learner: Learner, state: TrainingState, config: Config) -> int:
    """Returns the largest number of bytes that a worker puts into its pool or gets as an answer."""
    assert config.horizon is not None, "an unresolved configuration reached the loop"
    samples = learner.one_sample().arrays()
    batch = slot_bytes([*samples, np.zeros(learner.num_statistics + 1)], config.horizon * config.num_envs)
    return max(batch, 8 + state.layout.all_bytes)
