"""Synchronous workers that share a learner; workers are threads, nothing else is stubbed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from mpi4py import MPI

from dppo.comm.allreduce import Allreduce
from dppo.comm.learner_groups import Pool
from dppo.comm.link import Link
from dppo.data import Batch
from dppo.training.sync_allreduce import AllreduceExchange
from dppo.training.sync_pooled import PooledExchange, pool_bytes
from tests.parts import make_parts, probe
from tests.pools import assert_same, make_pools, together


@pytest.mark.parametrize("who", ["computes", "waits", "nobody"])
def test_whoever_of_a_group_has_heard_of_the_end_all_leave(who: str) -> None:
    """Without the updates of an iteration that will be given up."""
    place = make_parts(env="CartPole-v1", horizon=8)
    pools = make_pools(2, pool_bytes(place.learner, place.state, place.config))
    rollout, discounted = place.rollout(8)

    def meet(pool: Pool, name: str) -> bool:
        link = SimpleNamespace(
            stopped=name == who,
            keep_moving=lambda: None,
            boundary=lambda message: None,
            keeps_boundaries=False,
            keep_boundary=lambda *args: None,
        )
        lead = AllreduceExchange(Allreduce(MPI.COMM_SELF), place.state, cast(Link, link))
        exchange = PooledExchange(lead, pool, place.state, cast(Link, link))
        batch = exchange.meet(place.learner.prepare(rollout, discounted))
        if pool.computes and batch is not None:
            exchange.finish_iteration(batch.statistics)
        return batch is not None

    goes_on = together(lambda: meet(pools[0], "computes"), lambda: meet(pools[1], "waits"))
    assert goes_on == [who == "nobody"] * 2


@pytest.mark.parametrize(
    "env", ["CartPole-v1", "Pendulum-v1", probe("Copy"), probe("Bits"), probe("Target"), probe("Constant")]
)
def test_what_synchronous_asks_for_is_room_for_a_rollout_and_for_the_state(env: str) -> None:
    """Of every kind of action space. A rollout that was given up at once has arrays of the same types and widths: the
    one that computes reads the members' by its own.
    """
    place = make_parts(env=env, horizon=50)
    batches = []
    for horizon in (50, 0):
        rollout, discounted = place.rollout(horizon)
        batch = place.learner.prepare(rollout, discounted)
        batches.append([*batch.samples.arrays(), batch.statistics])
    full, empty = batches
    assert [(a.dtype, a.shape[1:]) for a in full] == [(a.dtype, a.shape[1:]) for a in empty]
    computing, member = make_pools(2, pool_bytes(place.learner, place.state, place.config))
    member.put(full)
    assert_same(computing.take(empty)[0][1], full)
    message = place.state.packed()
    computing.answer(message)
    assert_same(together(member.wait), [message])


def test_the_one_that_computes_learns_from_all_samples_and_its_members_take_over_its_state() -> None:
    places = [make_parts(worker=w, horizon=8) for w in (0, 1)]
    pools = make_pools(2, pool_bytes(places[0].learner, places[0].state, places[0].config))
    link: Any = SimpleNamespace(
        stopped=False, keep_moving=lambda: None, heartbeat=lambda phase: None, boundary=lambda message: None,
        keeps_boundaries=False, keep_boundary=lambda *args: None,
    )  # fmt: skip

    def iterate(worker: int) -> Batch | None:
        place = places[worker]
        lead = AllreduceExchange(Allreduce(MPI.COMM_SELF), place.state, link)
        exchange = PooledExchange(lead, pools[worker], place.state, link)
        batch = exchange.meet(place.learner.prepare(*place.rollout()))
        assert batch is not None
        if place.state.iteration == 0:
            place.learner.gradient(batch.samples)
            exchange.step()
            exchange.finish_iteration(batch.statistics)
        return batch

    computed, _ = together(lambda: iterate(0), lambda: iterate(1))
    assert computed.parts == ((0, 16), (1, 16)) and len(computed.samples) == 32
    first, second = (place.state for place in places)
    assert (first.iteration, first.updates, first.env_steps) == (1, 1, 32)
    np.testing.assert_array_equal(first.packed(), second.packed())
