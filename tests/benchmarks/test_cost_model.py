"""benchmarks/cost_model.py: cases worked by hand, and constants that are found again."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from benchmarks.cost_model import CELLS, Model, Point, fit, of_groups, on_cluster, shared_row_s

MODEL = Model(
    "sync/allreduce", rows=100, envs=2, updates=4, cores=2, sleep_s=5e-3, row_s=1e-3, gradient_s=3e-3, service_s=1e-3
)  # fmt: skip


def test_one_worker_never_queues_and_many_are_bound_by_the_cores() -> None:
    assert shared_row_s(5e-3, 1e-3, 2, 1) == pytest.approx(6e-3)
    assert shared_row_s(5e-3, 1e-3, 2, 1000) == pytest.approx(1000 * 1e-3 / 2, rel=0.01)
    assert shared_row_s(5e-3, 1e-3, math.inf, 1000) == pytest.approx(6e-3)


def test_two_workers_on_one_core_by_hand() -> None:
    # R(1) = 1, q(1) = 1 / (3 + 1) = 1/4, R(2) = 1 + 1/4
    assert shared_row_s(3.0, 1.0, 1, 2) == pytest.approx(3.0 + 1.25)


def test_an_iteration_of_each_cell_by_hand() -> None:
    own = replace(MODEL, cores=math.inf, hop_s=1e-4, round_s=2e-3)
    assert own.iteration_s(8) == pytest.approx(100 * 6e-3 + 4 * 3e-3 + 5 * 3 * 1e-4)
    assert replace(own, cores=2, pooled_s=2e-3).gradients_s(8) == pytest.approx(4 * 3e-3 + 3 * 2e-3)
    assert replace(own, cores=2, cell="sync/p2p").exchange_s(8) == pytest.approx(2e-3 + 2 * 1e-3)
    assert replace(own, cell="sync/p2p").iteration_s(8) == pytest.approx(0.6 + 0.012 + 5 * (2e-3 + 8 * 1e-3))
    a3c = replace(own, cell="async", updates=1)
    assert a3c.iteration_s(8) == pytest.approx(0.6 + 3e-3 + 1e-3)
    assert a3c.saturation() == pytest.approx(604)
    assert a3c.steps_per_s(302) == pytest.approx(302 * 200 / 0.604)
    assert a3c.steps_per_s(5000) == pytest.approx(200 / 1e-3)  # T N / service


def test_half_of_an_iteration_is_exchange_where_p2p_saturates() -> None:
    model = on_cluster(replace(MODEL, cell="sync/p2p"), 10_000, 1e-6, 1e9)
    workers = round(model.saturation())
    assert 5 * workers * model.service_s == pytest.approx(model.iteration_s(workers) / 2, rel=0.01)


def test_groups_divide_the_solvers_work_by_hand() -> None:
    # two environments of 2 ms a step, on 4 ranks each: 2 * 2 ms * 3/4 less sleep, 2 * 0.1 ms more CPU
    model = of_groups(MODEL, 4, 2e-3, 1e-4)
    assert (model.sleep_s, model.row_s) == (pytest.approx(2e-3), pytest.approx(1.2e-3))
    assert of_groups(MODEL, 1, 2e-3, 0.0) == MODEL


@pytest.mark.parametrize("cell", CELLS)
def test_a_fit_finds_the_constants_again(cell: str) -> None:
    waits = {"sync/allreduce": {"pooled_s": 1e-3}, "sync/p2p": {"pooled_s": 1e-3, "round_s": 2e-3}, "async": {}}[cell]
    truth = replace(MODEL, cell=cell, spread_s=2e-4, updates=1 if cell == "async" else 4, row_s=2e-4, **waits)
    points = {}
    for w in (1, 2, 4, 8, 16):
        row_s = shared_row_s(truth.sleep_s, truth.shared_s, truth.cores, w)
        learn_s = truth.updates * truth.gradient_s
        if cell == "async":
            collect_s, exchange_s = truth.rows * row_s - learn_s, 0.0
        else:
            collect_s = truth.rows * row_s
            exchange_s = truth.iteration_s(w) - collect_s - learn_s
        points[w] = Point(truth.steps_per_s(w), collect_s, truth.straggling_s(w), learn_s + exchange_s, exchange_s)
    cpu_s = truth.row_s + truth.updates * truth.gradient_s / truth.rows
    unfitted = replace(truth, sleep_s=1e-3, row_s=cpu_s, gradient_s=0.0, spread_s=0.0, pooled_s=0.0, round_s=0.0)
    found = fit(unfitted, points, cpu_s)
    for name in ("sleep_s", "row_s", "gradient_s", "spread_s", "pooled_s", "round_s"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=1e-6, abs=1e-12), name
