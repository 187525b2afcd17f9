"""Pong: plays with a run's policy, and makes an animated picture of it.

python examples/game/pong.py RUN [--picture FILE.gif]     points of the policy, and of random actions
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ale_py
import gymnasium
import numpy as np
import tyro

import dppo
from dppo.envs.atari import preprocess

GAME = "PongNoFrameskip-v4"
SECONDS, PER_SECOND = 12, 15
"""Of the picture, after the first frames; a step of the game is a fifteenth of a second."""


def play(act: Any, seed: int, limit: int | None = None) -> tuple[float, list[np.ndarray]]:
    """Plays a game, to `limit` steps at most. Returns its return, the points won less those lost, and its pictures."""
    gymnasium.register_envs(ale_py)
    env = preprocess(gymnasium.make(GAME, render_mode="rgb_array"))
    observation, total, done, pictures = env.reset(seed=seed)[0], 0.0, False, []
    env.action_space.seed(seed)
    while not done and (limit is None or len(pictures) < limit):
        observation, reward, terminated, truncated, _ = env.step(act(env, observation))
        total, done = total + float(reward), terminated or truncated
        pictures.append(env.render())
    env.close()
    return total, pictures


def draw(run: str, picture: str | Path) -> None:
    """Makes an animated GIF of the first seconds of a game, without its score."""
    from PIL import Image

    policy = dppo.load_policy(run)
    _, frames = play(lambda _, observation: policy.act(observation), 0, SECONDS * PER_SECOND)
    images = [Image.fromarray(frame[30:]).quantize(8) for frame in frames]
    images[0].save(picture, save_all=True, append_images=images[1:], duration=1000 // PER_SECOND, loop=0)


def main(run: tyro.conf.Positional[str], picture: str | None = None, games: int = 5) -> None:
    """Prints the mean returns of the run's policy, which takes the most probable action, and of random actions."""
    policy = dppo.load_policy(run)
    ways = {
        "policy": lambda _, observation: policy.act(observation),
        "random actions": lambda env, _: env.action_space.sample(),
    }
    for name, way in ways.items():
        print(f"{name:14} mean return {np.mean([play(way, seed)[0] for seed in range(games)]):.1f}", flush=True)
    if picture:
        draw(run, picture)


if __name__ == "__main__":
    tyro.cli(main)
