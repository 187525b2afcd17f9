"""One run of Sample Factory's synchronous PPO, in its own virtual environment; benchmarks/peers.py starts it.

One thread is its serial mode, two its parallel one: two processes of environments besides the learner's. Its Gymnasium
has HalfCheetah-v4, whose dynamics, observations and rewards are those of v5. HalfCheetah: the equal work of the study.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

import gymnasium
import torch
from ledger import Ledger, Recorded, arguments, reached, report
from sample_factory.algo.runners.runner import AlgoObserver, Runner
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from sample_factory.train import make_runner

FOLDER = "PEER_FOLDER"  # environment variable: its processes are started anew and know no more
SHARED = {
    "device": "cpu",
    "async_rl": False,
    "use_rnn": False,
    "nonlinearity": "tanh",
    "decorrelate_envs_on_one_worker": False,
    "shuffle_minibatches": True,
    "ppo_clip_ratio": 0.2,
    "max_grad_norm": 0.5,
    "exploration_loss_coeff": 0.0,
    "value_loss_coeff": 0.5,
    "value_bootstrap": True,  # a time limit is no termination
}
CARTPOLE = {
    "worker_num_splits": 2,
    "rollout": 32,
    "batch_size": 640,
    "num_batches_per_epoch": 2,
    "num_epochs": 6,
    "learning_rate": 2e-3,
    "gamma": 0.98,
    "gae_lambda": 0.9,
}
EQUAL_WORK = {
    "worker_num_splits": 1,
    "rollout": 64,
    "batch_size": 64,
    "num_epochs": 10,
    "learning_rate": 3e-4,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "actor_critic_share_weights": False,
    "adaptive_stddev": False,
    "initial_stddev": 0.6065,
}
LEDGER: list[Ledger] = []  # of this process


def make_env(env_id: str, *_: Any, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """An environment that writes into its process's ledger."""
    if not LEDGER:
        LEDGER.append(Ledger(os.environ[FOLDER]))
    return Recorded(gymnasium.make(env_id, render_mode=render_mode), LEDGER[0])


class Clock(AlgoObserver):
    """Counts steps and seconds up to the latest training iteration, and ends the run."""

    def __init__(self, args: argparse.Namespace, per_iteration: int) -> None:
        self.args, self.per_iteration = args, per_iteration
        self.steps, self.ended = 0, 0.0

    def on_training_step(self, runner: Runner, training_iteration_since_resume: int) -> None:
        if runner.stopped:
            return
        self.steps, self.ended = training_iteration_since_resume * self.per_iteration, time.monotonic()
        rewards = runner.policy_avg_stats.get("reward")
        at_target = self.args.target is not None and rewards is not None and reached(rewards[0], self.args.target)
        if at_target or self.steps >= self.args.steps:
            runner._stop_training()


def main() -> None:
    """Trains, then prints one line of JSON."""
    args = arguments(__doc__.split("\n")[0])
    os.environ[FOLDER] = args.folder
    torch.set_num_threads(1)
    workers = args.threads
    if args.study == "cartpole":
        env_id, num_envs, settings = "CartPole-v1", 40, CARTPOLE
    else:  # each process of environments adds its 2,048 steps to an iteration
        env_id, num_envs, settings = "HalfCheetah-v4", workers, {**EQUAL_WORK, "num_batches_per_epoch": 32 * workers}
    settings = {
        **SHARED,
        **settings,
        "env": env_id,
        "experiment": "run",
        "train_dir": f"{args.folder}/train",
        "seed": args.seed,
        "serial_mode": workers == 1,
        "num_workers": workers,
        "num_envs_per_worker": num_envs // workers,
    }
    register_env(env_id, make_env)
    command = [f"--{name}={value}" for name, value in settings.items()]
    command += ["--encoder_mlp_layers", "64", "64"]
    parser, _ = parse_sf_args(command)
    _, runner = make_runner(parse_full_cfg(parser, command))
    clock = Clock(args, runner.cfg.batch_size * runner.cfg.num_batches_per_epoch)
    runner.register_observer(clock)
    runner.init()
    runner.run()
    report(args, "sample-factory", env_id, clock.steps, clock.ended)


if __name__ == "__main__":
    main()
