"""Atari games by their id alone: the preset's wrappers, their replay, and the whole circle of a run. Where ale_py is
missing, the command says what installs it.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from dppo.config import Config
from dppo.envs.atari import preprocess
from dppo.envs.vector import make_vector_env
from dppo.seams import VectorEnv
from dppo.settings.flags import parse
from dppo.trajectories.__main__ import main as trajectories
from tests.any_space import counting_seeds
from tests.launch import Launcher

HAS_ALE = all(importlib.util.find_spec(name) is not None for name in ("ale_py", "cv2"))
needs_ale = pytest.mark.skipif(not HAS_ALE, reason="needs ale_py and cv2: pip install 'dppo[atari]'")
PONG = ("--env", "ALE/Pong-v5")


def games(config: Config, num_envs: int) -> VectorEnv:
    return make_vector_env(
        config.env, num_envs, counting_seeds(), config.vectorization, kwargs=config.env_kwargs, wrappers=config.wrappers
    )


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_every_game_has_the_preset_of_its_namespace(mode: str) -> None:
    for game in ("Pong", "Breakout", "Enduro"):
        config, notes = parse(["--env", f"ALE/{game}-v5", "--mode", mode])
        assert notes == [f"preset ALE.{'ppo' if mode == 'sync' else 'a3c'}.toml"]
        assert (config.wrappers, config.env_kwargs) == (("dppo.envs.atari:preprocess",), {"frameskip": 1})
    config, notes = parse([*PONG, "--wrappers", "mine:wrapper", "--env-kwargs", "repeat_action_probability=0.0"])
    assert config.wrappers == ("mine:wrapper",)
    assert config.env_kwargs == {"frameskip": 1, "repeat_action_probability": 0.0}


def test_a_game_without_pictures_is_told_how_to_go_without_the_wrappers() -> None:
    with pytest.raises(ValueError, match=r"the game gives Box.*no pictures: leave these wrappers out .*frameskip=4"):
        preprocess(gymnasium.make("CartPole-v1"))


@pytest.mark.skipif(HAS_ALE, reason="needs an installation without ale_py")
def test_without_ale_py_the_command_says_what_installs_it(launch: Launcher) -> None:
    for job in [launch.start(ranks, *PONG) for ranks in (None, 3)]:
        ended = job.wait(60)
        assert ended.code == 2, ended
        assert len(ended.messages) == 1 and "pip install 'dppo[atari]'" in ended.messages[0], ended


@needs_ale
def test_what_is_observed_is_four_grey_images_of_84_x_84() -> None:
    env = games(parse(list(PONG))[0], 2)
    try:
        assert env.observation_space.shape == (4, 84, 84) and env.observation_space.dtype == np.uint8
        first = env.reset()
        assert (first[:, 0] == first[:, 3]).all()  # a new stack holds its first image four times
        for _ in range(3):
            step = env.step(np.array([2, 3]))
        assert (step.observations[:, 3] != first[:, 3]).any()
    finally:
        env.close()


@needs_ale
def test_an_episode_is_that_of_its_seed_and_actions() -> None:
    """Sticky actions and noops included: so it can be resumed, and does not depend on its neighbours."""
    config = parse(list(PONG))[0]
    actions = np.random.default_rng(0).integers(6, size=(40, 3))
    env, others = games(config, 3), games(config, 2)
    try:
        env.reset()
        seen = [env.step(row).observations.copy() for row in actions]
        again, failed = others.replay([2_000_001, 1], [actions[:, 2], actions[:25, 0]])
        assert failed == []
        assert np.array_equal(again[0], seen[-1][2]) and np.array_equal(again[1], seen[24][0])
    finally:
        env.close()
        others.close()


@needs_ale
@pytest.mark.slow
def test_pong_is_trained_resumed_evaluated_and_dumped(launch: Launcher, tmp_path: Path) -> None:
    """A run that is resumed gives the lines of one that was not stopped."""
    short = (*PONG, "--num-envs", 2, "--horizon", 8, "--optim.no-anneal", "--trajectories.enabled")
    launch.run(3, *short, "--total-steps", 64, "--run-dir", "run", timeout=120)
    launch.run(3, "--run-dir", "run", "--resume", "--total-steps", 128, timeout=120)
    launch.run(3, *short, "--total-steps", 128, "--run-dir", "whole", timeout=120)
    run, whole = (read_metrics(tmp_path / name) for name in ("run", "whole"))
    assert run == whole and run[-1]["env_steps"] == 128
    assert trajectories(["validate", str(tmp_path / "run")]) == 0
    played = subprocess.run(
        [sys.executable, "-m", "dppo.evaluate", str(tmp_path / "run"), "--episodes", "1", "--json"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert -21.0 <= json.loads(played.stdout)["mean"] <= 21.0


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if not k.endswith(("_s", "_per_s"))} for line in lines]
