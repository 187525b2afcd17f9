"""The examples of one file each: their settings, their environments, a short training, what their commands print."""

from __future__ import annotations

import importlib.util
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from dppo.envs.maker import EnvMaker
from dppo.settings.flags import parse
from tests.launch import train_in_one_start

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
FILES = {"scheduling": "jobshop", "trading": "market", "robot": "cheetah", "game": "pong"}
LINES = 120
NEEDS = {"robot": "mujoco", "game": "ale_py"}
INSTALLED = [name for name in FILES if name not in NEEDS or importlib.util.find_spec(NEEDS[name])]
BEST_FT06 = "210023152350414232534103502415541430"
"""Jobs in the order in which a plan of makespan 55 takes them; an exhaustive search found none of 54."""

each = pytest.mark.parametrize("name", FILES)
each_installed = pytest.mark.parametrize("name", INSTALLED)


def settings(name: str) -> Path:
    return EXAMPLES / name / f"{FILES[name]}.toml"


def module(name: str) -> Any:
    return import_module(f"examples.{name}.{FILES[name]}")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of each example, in a folder of its name."""
    folder = tmp_path_factory.mktemp("runs")
    short = ("--num-envs", 1, "--horizon", 72, "--ppo.epochs", 1, "--ppo.minibatches", 1, "--total-steps", 72)
    flags = {name: (settings(name), *short, "--log.no-tensorboard") for name in INSTALLED}
    train_in_one_start(folder, 1, flags, timeout=100)
    return folder


@each
def test_an_example_is_short_and_has_a_picture(name: str) -> None:
    for path in (settings(name), settings(name).with_suffix(".py")):
        assert len(path.read_text().splitlines()) <= LINES, path
    (picture,) = (ROOT / "docs" / "pictures").glob(f"{name}.*")
    assert picture.stat().st_size < 150_000
    assert f"](pictures/{picture.name})" in (ROOT / "docs" / "examples.md").read_text()


@each_installed
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_its_environment_is_a_sound_one(name: str) -> None:
    config, _ = parse([str(settings(name))])
    check_env(EnvMaker(config.env, config.env_kwargs, config.wrappers).make(), skip_render_check=True)


def test_the_commands_compare_what_was_trained(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module("scheduling").main(str(runs / "scheduling"), str(tmp_path / "shop.png"), shops=2)
    assert [line.rsplit(" ", 1)[1] for line in capsys.readouterr().out.splitlines()[:3]] == ["88", "61", "65"]
    module("trading").main(str(runs / "trading"), str(tmp_path / "market.png"), years=2)
    assert len(capsys.readouterr().out.splitlines()) == 3
    if "robot" in INSTALLED:
        module("robot").main([str(runs / "robot")], episodes=1)
        assert "J/m" in capsys.readouterr().out
    if "game" in INSTALLED:
        monkeypatch.setattr(module("game"), "SECONDS", 1)
        module("game").draw(str(runs / "game"), tmp_path / "pong.gif")
    assert all(path.stat().st_size > 1000 for path in tmp_path.iterdir())


def test_ft06_is_the_well_known_shop() -> None:
    shop = module("scheduling").JobShop("ft06")
    shop.reset(seed=0)
    assert (shop.first_bound, shop.durations.sum()) == (47.0, 197)
    total = 0.0
    for job in BEST_FT06:
        assert shop.mask[int(job)]
        total += shop.step(int(job))[1]
    assert shop.bound == 55.0 and total == pytest.approx(1.0 - 55.0 / 47.0)


def test_a_plan_is_one_that_machines_and_jobs_can_keep() -> None:
    shop, random = module("scheduling").JobShop(), np.random.default_rng(0)
    for seed in range(3):
        shop.reset(seed=seed)
        while len(shop.plan) < 36:
            shop.step(random.choice(np.flatnonzero(shop.mask)))
        for column in (0, 1):
            for one in range(6):
                times = sorted((start, end) for *who, start, end in shop.plan if who[column] == one)
                assert len(times) == 6 and all(a[1] <= b[0] for a, b in pairwise(times))
        assert shop.bound == max(end for *_, end in shop.plan)


def test_a_market_pays_for_positions_and_charges_for_changes() -> None:
    market = module("trading")
    env = market.Market()
    env.reset(seed=0)
    begin = env.day
    _, first, *_ = env.step(np.array([1.0]))
    change = np.exp(env.prices[begin + 1] - env.prices[begin]) - 1.0
    assert first == pytest.approx(100.0 * np.log(1.0 + change - market.COST))
    _, held, *_ = env.step(np.array([1.0]))
    assert held == pytest.approx(100.0 * (env.prices[begin + 2] - env.prices[begin + 1]))
    assert env.step(np.array([0.0]))[1] == pytest.approx(100.0 * np.log(1.0 - market.COST))
    assert env.step(np.array([0.0]))[1] == 0.0


@pytest.mark.skipif("robot" not in INSTALLED, reason="needs mujoco: pip install 'dppo[mujoco]'")
def test_power_is_torque_times_speed_and_has_its_price() -> None:
    import gymnasium

    robot = module("robot")
    plain = gymnasium.make("HalfCheetah-v5")
    priced = robot.EnergyPrice(gymnasium.make("HalfCheetah-v5"))
    for env in (plain, priced):
        env.reset(seed=0)
    action = np.full(6, 0.5, np.float32)
    _, reward, *_ = plain.step(action)
    _, less, _, _, info = priced.step(action)
    data: Any = priced.unwrapped.data
    torques = 0.5 * priced.unwrapped.model.actuator_gear[:, 0]
    np.testing.assert_allclose(data.qfrc_actuator[3:], torques)
    before = data.qvel - data.qacc * priced.unwrapped.model.opt.timestep  # of the last 10 ms
    watts = np.abs(torques * before[3:]).sum()
    assert info["power"] == pytest.approx(watts / 1000.0, rel=0.1)
    assert float(reward) - less == pytest.approx(robot.PRICE * info["power"])
