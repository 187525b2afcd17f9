"""Episodes are counted by case, each once, also after a resume and after the death of a server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dppo.config import Config
from dppo.data import Episode
from dppo.rundir.contents import check_values
from dppo.training.cases import CaseCounter
from dppo.training.counters import Counters
from tests.training.test_counters import report

CASES = [{"name": "cold"}, {"name": "hot", "env_kwargs": {"bath": 0.9}}]
KNOWN = Config(env="X-v0", num_envs=2, cases=CASES).cases


def test_each_case_has_its_own_episodes() -> None:
    counter = CaseCounter(KNOWN)
    assert counter.metrics() == {name: {"episodes": 0, "return_mean_100": None} for name in ("cold", "hot")}
    told = report(0, 0)
    told.episodes = [Episode(0, 0, 1.0, 1), Episode(1, 1, 7.0, 1), Episode(2, 0, 3.0, 1)]
    counter.count([told])
    assert counter.metrics() == {
        "cold": {"episodes": 2, "return_mean_100": 2.0}, "hot": {"episodes": 1, "return_mean_100": 7.0},
    }  # fmt: skip
    assert CaseCounter(KNOWN, json.loads(json.dumps(counter.as_dict()))).metrics() == counter.metrics()


def test_agents_of_a_simulator_count_for_its_case() -> None:
    counter, told = CaseCounter(KNOWN), report(0, 0)
    told.agents, told.episodes = 2, [Episode(0, env, float(env), 1) for env in range(4)]
    counter.count([told])
    assert {name: metrics["return_mean_100"] for name, metrics in counter.metrics().items()} == {
        "cold": 0.5,
        "hot": 2.5,
    }


def test_the_window_has_the_last_hundred_by_row_whatever_the_workers_are() -> None:
    """Of two workers with one environment each, or one worker with both."""
    apart, together = CaseCounter(KNOWN[:1]), CaseCounter(KNOWN[:1])
    both = report(0, 0)
    both.episodes = [Episode(row, env, row + env / 10, 1) for row in range(80) for env in (0, 1)]
    split = []
    for env in (1, 0):
        split.append(report(env, 0))
        split[-1].episodes = [e for e in both.episodes if e.env == env]
    apart.count(split)
    together.count([both])
    assert apart.as_dict() == together.as_dict()
    (case,) = together.metrics().values()
    assert case == {"episodes": 160, "return_mean_100": pytest.approx(54.55)}


def counters(saved: dict[str, Any] | None = None, **changes: Any) -> Counters:
    return Counters(Config(env="X-v0", num_envs=2, **changes), saved)


def test_the_counters_of_a_run_have_the_cases_and_of_another_run_none() -> None:
    assert "cases" not in counters().as_dict(0.0)
    counted = counters(cases=CASES)
    counted.wait_for([0, 1], 0)
    counted.add(report(0, 0, (1.0, 2.0)))
    counted.close_iteration(1)
    saved = counted.as_dict(0.0)
    assert saved["cases"]["cold"] == {"episodes": 2, "returns": [1.0, 2.0]}
    assert counters(saved, cases=CASES).as_dict(0.0) == saved


def test_a_server_that_takes_over_counts_what_the_dead_one_has_written() -> None:
    counted = counters(cases=CASES)
    counted.wait_for([0, 1], 0)
    counted.add(report(0, 0, (1.0, 2.0)))
    line = {"episodes": 5, "train_s": 1.0, "cases": {"cold": {"episodes": 4}, "hot": {"episodes": 1}}}
    counted.catch_up(line)
    assert {name: case["episodes"] for name, case in counted.cases.metrics().items()} == {"cold": 4, "hot": 1}


@pytest.mark.parametrize(
    "case", [3, {"episodes": 1}, {"episodes": -1, "returns": []}, {"episodes": 1, "returns": ["x"]}], ids=str
)
def test_a_damaged_checkpoint_is_found(case: Any) -> None:
    with pytest.raises(ValueError, match=r"^counters\.cases\['cold'\]"):
        check_values({}, {"cases": {"cold": case}})
