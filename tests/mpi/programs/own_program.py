"""A program of a user's own, with an import of dppo at its top, as most have it."""

from __future__ import annotations

from dppo import Config, train
from dppo.config import LogConfig, PPOConfig

if __name__ == "__main__":
    summary = train(
        Config(
            env="child_envs:child/InAChild-v0",
            num_envs=2,
            horizon=16,
            total_steps=500,
            run_dir="run",
            ppo=PPOConfig(epochs=1, minibatches=1),
            log=LogConfig(tensorboard=False),
        )
    )
    print("the run has", summary.exit)
