"""How synchronous workers average, without MPI."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dppo.training.sync_allreduce import CHECK_EVERY, AllreduceExchange
from tests.parts import Parts, make_parts


class Sums:
    """Two workers' sums, of which the other one's are 0."""

    num_ranks, waited_s = 2, 0.0

    def __init__(self, leads: np.ndarray, *, is_lead: bool) -> None:
        self.is_lead, self.leads, self.asked = is_lead, leads, list[int]()
        self.alike = True

    def agree(self, fingerprint: int) -> bool:
        self.asked.append(fingerprint)
        return self.alike

    def take_over(self, message: np.ndarray) -> None:
        if not self.is_lead:
            message[:] = self.leads


class Nobody:
    """A link that remembers the boundaries."""

    keeps_boundaries = False

    def __init__(self) -> None:
        self.boundaries: list[np.ndarray] = []

    def keep_boundary(self, iteration: int, state: np.ndarray, head_bytes: int) -> None: ...

    def boundary(self, message: np.ndarray) -> None:
        self.boundaries.append(message)


def packed(place: Parts) -> np.ndarray:
    message = place.state.packed()
    return message


def worker(iteration: int, sums: Any, link: Any) -> tuple[Parts, AllreduceExchange]:
    place = make_parts()
    place.state.iteration = iteration - 1
    return place, AllreduceExchange(sums, place.state, link)


@pytest.mark.parametrize("is_lead", [True, False])
def test_workers_that_have_drifted_apart_take_over_the_leads_state(
    is_lead: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    lead, _ = worker(CHECK_EVERY, None, None)
    totals = np.zeros(lead.learner.num_statistics)
    lead.state.finish_iteration(0, 0.0)
    lead.state.flat.vector[0] = 0.125
    sums, link = Sums(packed(lead), is_lead=is_lead), Nobody()
    sums.alike = False
    mine, exchange = worker(CHECK_EVERY, sums, link)
    mine.state.flat.vector[0] = 0.125 + 1e-8
    exchange.finish_iteration(totals)
    assert len(sums.asked) == 1
    assert mine.state.flat.vector[0] == np.float32(0.125 + 1e-8 * is_lead)
    assert [m.tobytes() for m in link.boundaries] == [packed(mine).tobytes()] * is_lead
    mine.state.iteration = 2 * CHECK_EVERY - 1
    exchange.finish_iteration(totals)
    assert capsys.readouterr().err.count("drifted apart") == is_lead  # once


def test_equality_is_looked_after_now_and_then() -> None:
    sums = Sums(np.empty(0, np.uint8), is_lead=False)
    mine, exchange = worker(1, sums, Nobody())
    totals = np.zeros(mine.learner.num_statistics)
    before = mine.state.flat.vector.copy()
    for _ in range(3 * CHECK_EVERY):
        exchange.finish_iteration(totals)
    assert len(sums.asked) == 3
    assert (mine.state.flat.vector == before).all()
    sums.num_ranks = 1
    for _ in range(CHECK_EVERY):
        exchange.finish_iteration(totals)
    assert len(sums.asked) == 3
