"""How the workers of a synchronous run average: by allreduce, by the parameter server, or pooled.

The ways differ in who steps: with allreduce every worker does, on the same sum; with p2p rank 0 does, and answers with
the parameters; in a pool one worker goes either way for its neighbours.
"""

from __future__ import annotations

import sys
import zlib
from dataclasses import replace

import numpy as np

from dppo.comm.allreduce import Allreduce
from dppo.comm.learner_groups import Pool, slot_bytes
from dppo.comm.link import Link
from dppo.config import Config
from dppo.data import Batch, Minibatch
from dppo.seams import Exchange
from dppo.training.learner import STATISTICS, Learner, explained_variance
from dppo.training.state import TrainingState

CHECK_EVERY = 32
"""Iterations of sync/allreduce between two looks at whether the workers' states are equal."""


class AllreduceExchange:
    """Every worker holds the whole state and makes the same step. Now and then they look whether it was.

    The lead (worker 0) tells rank 0 of each boundary, and goes on. Whoever hears rank 0's order to stop says so with
    the next statistics, and all leave together; what they had begun since the boundary at which the run ended is given
    up. So nobody waits for rank 0, unless it is a whole iteration behind.
    """

    def __init__(self, sums: Allreduce, state: TrainingState, link: Link) -> None:
        self._sums, self._state, self._link = sums, state, link
        self._open_boundaries = 0
        self._said = False

    @property
    def waited_s(self) -> float:
        return self._sums.waited_s

    def meet(self, batch: Batch) -> Batch | None:
        """Collective over the workers that compute."""
        while self._open_boundaries > 1 and not self._link.verdict():
            self._open_boundaries -= 1
        batch.statistics[0] += float(self._link.stopped)  # one rank that knows is enough, and all leave at this call
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
        self._link.progress("exchange")
        self._sums.add(summed)
        return self._state.step(summed)

    def finish_iteration(self, totals: np.ndarray) -> None:
        state = self._state
        state.normaliser.merge(totals[len(STATISTICS) :])
        state.version = state.updates
        state.finish_iteration(int(totals[STATISTICS.index("env_steps")]), explained_variance(totals))
        memory = self._link.memory
        checks = self._sums.num_ranks > 1 and state.iteration % CHECK_EVERY == 0
        if not (self._sums.is_lead or memory is not None or checks):
            return
        message = np.empty(state.all_bytes, np.uint8)
        state.pack(message)
        if checks and not self._sums.agree(zlib.crc32(message.tobytes())):
            self._take_over_the_leads(message)
        if memory is not None:
            memory.pass_boundary(state.iteration, message, state.head_bytes)
        if self._sums.is_lead:
            self._link.boundary(message)
            self._open_boundaries += 1

    def _take_over_the_leads(self, message: np.ndarray) -> None:
        """Collective over the workers that compute. States that should be equal are not: a last bit that came out
        differently on another type of CPU goes on in every later step.
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
        sums = message[core:].view(np.float64)
        if self._link.memory is not None:
            self._link.memory.totals = sums[: self._num_statistics]
        return sums

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
        batch.statistics[0] = float(self._link.stopped)  # a member may be the only one that has heard
        arrays = [*batch.samples.arrays(), batch.statistics]
        if not self._pool.computes:
            self._pool.put(arrays)
            message = self._pool.wait(self._link.keep_moving)
            if len(message):
                self._state.unpack(message)
            return batch if len(message) else None
        members = [
            Batch(Minibatch(*columns), statistics, ((worker, len(columns[0])),))
            for worker, (*columns, statistics) in self._pool.take(arrays, self._link.keep_moving)
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
