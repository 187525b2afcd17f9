"""The Kuramoto-Sivashinsky example: its physics, the same flow on any number of ranks, a training on groups."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.launch import PROGRAMS, Launcher
from tests.run_directory import summary

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "kuramoto_sivashinsky"
PATHS = {"PYTHONPATH": f"{ROOT}:{PROGRAMS}:{EXAMPLE}"}
SAVED = 8
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(EXAMPLE)
    return import_module("kuramoto_sivashinsky")


def test_it_plays_the_same_on_any_number_of_ranks(launch: Launcher, tmp_path: Path) -> None:
    played = json.loads(launch.run(4, tmp_path, program="flow.py", timeout=200, **PATHS).stdout)
    alone = np.array(played["1"]["whole"])
    assert len(played) == 3 and alone.shape == (20, 9)
    for ranks, both in played.items():
        np.testing.assert_allclose(both["whole"], alone, atol=1e-6, err_msg=ranks)
        assert both["again"] == both["whole"][SAVED:], f"a state that {ranks} ranks saved continues as the first time"


def test_it_trains_on_groups(launch: Launcher, tmp_path: Path) -> None:
    launch.run(
        5, "--env", "kuramoto_sivashinsky:KuramotoSivashinsky", "--env-ranks", 2, "--num-envs", 1, "--horizon", 50,
        "--ppo.minibatches", 2, "--total-steps", 200, "--run-dir", tmp_path / "run", "--log.no-tensorboard",
        timeout=200, **PATHS,
    )  # fmt: skip
    ended = summary(tmp_path / "run")
    assert (ended["exit"], ended["env_steps"]) == ("finished", 200)


def test_the_power_balance_is_that_of_the_equation(module: Any) -> None:
    """The energy of u grows by what -u_xx produces and f puts in, less what u_xxxx dissipates; the mean stays 0."""
    env = module.KuramotoSivashinsky()
    env.reset(seed=1)
    u, force = env._u.copy(), env._jets @ np.array([1.0, -0.5, 0.25, -1.0])
    env._advance(force, 1)
    grown = (np.square(env._u).mean() - np.square(u).mean()) / 2 / module.TIME_STEP
    middle = (u + env._u) / 2
    power = np.square(env._d1 @ middle) - np.square(env._d2 @ middle) + middle * force
    assert grown == pytest.approx(power.mean(), abs=0.02)
    assert abs(env._u.mean()) < 1e-12 and np.abs(env._u).max() < 5


def test_opposition_lowers_the_power(module: Any) -> None:
    none, opposed = module.mean_return(0.0, 2), module.mean_return(module.BEST_GAIN, 2)
    assert -400 < none < -250 and opposed > 0.75 * none
