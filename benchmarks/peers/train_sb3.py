"""One run of Stable-Baselines3's PPO, in its own virtual environment; benchmarks/peers.py starts it.

CartPole-v1: the fastest settings that we found, or those tuned by its authors in the RL Zoo. HalfCheetah-v5: the equal
work of the study, which are PPO's defaults, with VecNormalize, as usual for MuJoCo. Images: the equal work of the
studies, those of the RL Zoo for Atari games.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import gymnasium
import torch
from ledger import Ledger, Recorded, TargetReached, arguments, report
from pictures import make
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

ZOO: dict[str, Any] = {
    "n_steps": 32,
    "batch_size": 256,
    "n_epochs": 20,
    "learning_rate": lambda left: 1e-3 * left,
    "clip_range": lambda left: 0.2 * left,
    "gamma": 0.98,
    "gae_lambda": 0.8,
}
CARTPOLE = {"n_steps": 32, "batch_size": 512, "n_epochs": 10, "learning_rate": 3e-3, "gamma": 0.98, "gae_lambda": 0.9}
EQUAL_WORK = {
    "n_steps": 2048,
    "batch_size": 64,
    "n_epochs": 10,
    "learning_rate": 3e-4,
    "clip_range": 0.2,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "policy_kwargs": {"log_std_init": -0.5},
}
IMAGES = {
    "n_steps": 128,
    "batch_size": 256,
    "n_epochs": 4,
    "learning_rate": lambda left: 2.5e-4 * left,
    "clip_range": 0.1,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "ent_coef": 0.01,
}


def main() -> None:
    """Trains, then prints one line of JSON."""
    args = arguments(__doc__.split("\n")[0], variants=("best", "zoo"))
    torch.set_num_threads(args.threads)
    ledger = Ledger(args.folder, args.target)
    env_id, num_envs, settings = {
        ("cartpole", "best"): ("CartPole-v1", 32, CARTPOLE),
        ("cartpole", "zoo"): ("CartPole-v1", 8, ZOO),
        ("halfcheetah", "best"): ("HalfCheetah-v5", 1, EQUAL_WORK),
        ("images", "best"): ("images", 8, IMAGES),
        ("pong", "best"): ("pong", 8, IMAGES),
    }[args.study, args.variant]
    has_images = args.study in ("images", "pong")
    made = (lambda: make(args.study)) if has_images else (lambda: gymnasium.make(env_id))
    envs: VecEnv = DummyVecEnv([lambda: Recorded(made(), ledger)] * num_envs)
    if args.study == "halfcheetah":
        envs = VecNormalize(envs, gamma=settings["gamma"])
    trainer = PPO("CnnPolicy" if has_images else "MlpPolicy", envs, seed=args.seed, device="cpu", **settings)
    with contextlib.suppress(TargetReached):
        trainer.learn(args.steps)
    report(args, "stable-baselines3", env_id, ledger.steps, time.monotonic())


if __name__ == "__main__":
    main()
