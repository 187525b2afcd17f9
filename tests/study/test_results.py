"""Runs are grouped by the settings in which they differ, ranked, and summed up."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dppo.rundir.runs import Run, read_run
from dppo.study.results import POINTS, Setting, by_setting, learning_curve
from dppo.study.statistics import interquartile_mean
from tests.fakeruns import write_run


@pytest.fixture
def runs(tmp_path: Path) -> Any:
    """Makes a run with settings and a final return; its steps are 1000."""

    def make(
        settings: dict[str, Any] | None = None, reached: float | None = 1.0, steps: int = 1000, **more: Any
    ) -> Run:
        number = len(list(tmp_path.iterdir()))
        return read_run(write_run(tmp_path / f"r{number}", settings, curve=((steps, reached),), **more))

    return make


def labels(settings: list[Setting]) -> list[str]:
    return [s.label for s in settings]


# -- groups --------------------


def test_seeds_and_what_changes_no_result_make_no_setting(runs: Any) -> None:
    made = [
        runs({"seed": 1}),
        runs({"seed": 2, "log": {"interval-s": 1.0}, "time-limit-s": 9.0}),
        runs({"seed": 3, "checkpoint": {"every": 0}, "trajectories": {"enabled": True}}),
    ]
    (setting,) = by_setting(made)
    assert (setting.label, setting.values, setting.runs) == ("Env-v0", {}, made)


def test_settings_in_which_runs_differ_tell_them_apart(runs: Any) -> None:
    made = [
        runs({"optim": {"lr": lr}, "model": {"hidden": hidden}, "seed": seed})
        for lr in (0.1, 0.2)
        for hidden in ([8], [8, 8])
        for seed in (1, 2)
    ]
    found = by_setting(made)
    assert sorted(labels(found)) == [
        "optim.lr=0.1, model.hidden=8",
        "optim.lr=0.1, model.hidden=8 8",
        "optim.lr=0.2, model.hidden=8",
        "optim.lr=0.2, model.hidden=8 8",
    ]
    assert {len(s.runs) for s in found} == {2}
    assert found[0].values.keys() == {"optim.lr", "model.hidden"}


def test_what_follows_from_another_setting_is_not_in_the_label(runs: Any) -> None:
    """With the mode go exchange, loss, horizon and optimiser."""
    found = by_setting([runs({"mode": "sync"}), runs({"mode": "async"})])
    assert sorted(labels(found)) == ["mode=async", "mode=sync"]
    assert {"mode", "exchange", "loss", "horizon", "optim.name"} <= found[0].values.keys()


def test_a_sweeps_own_names_come_first(runs: Any) -> None:
    made = [runs({"loss": "ppo"}), runs({"loss": "a3c"})]
    assert sorted(labels(by_setting(made, ["seed", "optim.name"]))) == ["optim.name=adam", "optim.name=rmsprop"]


def test_a_setting_that_only_some_have(runs: Any) -> None:
    found = by_setting([runs({"target-return": 3.0}), runs()])
    assert sorted(labels(found)) == ["target-return=3.0", "target-return=default"]


def test_runs_without_settings_are_left_out(tmp_path: Path) -> None:
    assert by_setting([Run(tmp_path, "missing")]) == []


# -- the best first --------------------


def test_highest_return_first_and_none_last(runs: Any) -> None:
    made = [runs({"optim": {"lr": lr}}, reached) for lr, reached in ((0.1, -5.0), (0.2, None), (0.3, 0.0), (0.4, 9.0))]
    assert labels(by_setting(made)) == ["optim.lr=0.4", "optim.lr=0.3", "optim.lr=0.1", "optim.lr=0.2"]


def test_with_a_target_fewest_steps_first(runs: Any) -> None:
    def to_target(lr: float, steps: int, state: str, reached: float = 5.0) -> Run:
        return runs({"optim": {"lr": lr}, "target-return": 5.0}, reached, steps, exit=state)

    made = [
        to_target(0.1, 900, "finished", 4.0),
        to_target(0.2, 900, "finished", 4.5),
        to_target(0.3, 500, "target"),
        to_target(0.4, 400, "target"),
    ]
    assert labels(by_setting(made)) == ["optim.lr=0.4", "optim.lr=0.3", "optim.lr=0.2", "optim.lr=0.1"]


def test_environments_are_not_compared(runs: Any) -> None:
    made = [runs({"env": "B-v0"}, 100.0), runs({"env": "A-v0"}, 1.0)]
    assert labels(by_setting(made)) == ["env=A-v0", "env=B-v0"]


# -- figures --------------------


def test_figures_are_of_the_runs_that_ended(runs: Any) -> None:
    made = [runs(reached=r, steps=s, train_s=s / 10) for r, s in ((1.0, 10), (4.0, 20), (7.0, 60))]
    made += [runs(reached=99.0, exit=state) for state in ("failed", "running", "preempted")]
    (setting,) = by_setting(made)
    assert (len(setting.ended), len(setting.runs), setting.has_target) == (3, 6, False)
    assert setting.returns.tolist() == [1, 4, 7]
    assert (setting.median_return(), setting.iqm(), setting.median("env_steps"), setting.median("train_s")) == (
        4, pytest.approx(4), 20, 2,
    )  # fmt: skip
    low, high = setting.interval() or (0, 0)
    assert 1 <= low < 4 < high <= 7
    assert setting.interval() == (low, high)


def test_a_run_without_an_episode_counts_as_a_run_only(runs: Any) -> None:
    (setting,) = by_setting([runs(reached=None), runs(reached=3.0)])
    assert (len(setting.ended), setting.returns.tolist(), setting.interval()) == (2, [3.0], None)
    (setting,) = by_setting([runs(reached=None)])
    assert (setting.median_return(), setting.iqm(), setting.interval()) == (None, None, None)


def test_steps_to_a_target_that_half_of_the_runs_missed_are_not_known(runs: Any) -> None:
    def setting(*states: str) -> Setting:
        return by_setting([runs({"target-return": 5.0}, steps=100, exit=state) for state in states])[0]

    assert (setting("target", "target", "finished").median("env_steps"), setting("target").reached) == (100, 1)
    assert setting("target", "finished", "finished").median("train_s") == math.inf
    assert setting("target", "finished").median("env_steps") == math.inf
    assert setting("running").median("env_steps") is None


# -- learning curves --------------------


def test_curve_worked_by_hand() -> None:
    """Two runs: a line from 0 to 99 over 99 steps, and 10 from step 33 to step 66; below and beyond, half of them."""
    curve = learning_curve([(np.array([0.0, 99.0]), np.array([0.0, 99.0])), (np.array([33.0, 66.0]), np.full(2, 10.0))])
    assert curve is not None and curve.shape == (4, POINTS)
    steps, iqm, low, high = curve
    np.testing.assert_allclose(steps, np.arange(100.0))
    np.testing.assert_allclose(iqm[:33], np.arange(33.0), atol=1e-9)
    np.testing.assert_allclose(iqm[34:66], (np.arange(34.0, 66.0) + 10) / 2)
    np.testing.assert_allclose(iqm[67:], np.arange(67.0, 100.0))
    np.testing.assert_allclose((low[50], high[50]), (10, 50))


def test_no_value_where_fewer_than_half_of_the_runs_are() -> None:
    short, long = (np.array([0.0, 10.0]), np.zeros(2)), (np.array([0.0, 99.0]), np.zeros(2))
    curve = learning_curve([short, short, long])
    assert curve is not None
    assert np.isfinite(curve[1][:11]).all() and np.isnan(curve[1:, 11:]).all()


def test_a_curve_is_the_statistic_at_each_step() -> None:
    rng = np.random.default_rng(0)
    runs = [(np.arange(100.0), rng.normal(size=100)) for _ in range(5)]
    curve = learning_curve(runs)
    assert curve is not None
    np.testing.assert_allclose(curve[1], interquartile_mean(np.array([y for _, y in runs]).T))
    assert (curve[2] <= curve[1]).all() and (curve[1] <= curve[3]).all()


def test_curves_of_one_point_or_none() -> None:
    empty = np.empty(0)
    assert learning_curve([]) is None and learning_curve([(empty, empty)]) is None
    one = learning_curve([(np.array([5.0]), np.array([2.0])), (empty, empty)])
    assert one is not None and (one[1:] == 2.0).all()
