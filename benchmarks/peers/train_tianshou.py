"""One run of Tianshou's PPO, in its own virtual environment; benchmarks/peers.py starts it.

CartPole-v1: the fastest settings that we found. HalfCheetah-v5: the equal work of the
study, with normalised observations and returns, as usual for MuJoCo.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import gymnasium
import torch
from ledger import Ledger, Recorded, TargetReached, arguments, report
from tianshou.algorithm import PPO
from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env import BaseVectorEnv, DummyVectorEnv, VectorEnvNormObs
from tianshou.trainer import OnPolicyTrainerParams
from tianshou.utils.net.common import Net
from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic
from torch.distributions import Categorical, Independent, Normal

CARTPOLE = {"num_envs": 32, "steps": 1024, "epochs": 10, "minibatch": 512, "lr": 3e-3, "gamma": 0.98, "lam": 0.9}
EQUAL_WORK = {"num_envs": 1, "steps": 2048, "epochs": 10, "minibatch": 64, "lr": 3e-4, "gamma": 0.99, "lam": 0.95}


def gaussian(parameters: tuple[torch.Tensor, torch.Tensor]) -> Independent:
    """Independent components with the given means and standard deviations."""
    return Independent(Normal(*parameters), 1)


def build(env: gymnasium.Env[Any, Any], settings: dict[str, Any], continuous: bool) -> PPO:
    """PPO with two towers of two layers of 64 tanh units, initialised orthogonally, the policy's last layer small."""

    def tower() -> Net:
        return Net(state_shape=env.observation_space.shape, hidden_sizes=(64, 64), activation=torch.nn.Tanh)

    if continuous:
        shape = env.action_space.shape
        actor: Any = ContinuousActorProbabilistic(preprocess_net=tower(), action_shape=shape, unbounded=True)
        critic: Any = ContinuousCritic(preprocess_net=tower())
        head = actor.mu
    else:
        actor = DiscreteActor(preprocess_net=tower(), action_shape=env.action_space.n, softmax_output=False)
        critic = DiscreteCritic(preprocess_net=tower())
        head = actor.last
    for network in (actor, critic):
        for module in network.modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.orthogonal_(module.weight, 2**0.5)
                torch.nn.init.zeros_(module.bias)
    for module in head.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.orthogonal_(module.weight, 0.01)
    if continuous:
        torch.nn.init.constant_(actor.sigma_param, -0.5)
    policy = ProbabilisticActorPolicy(
        actor=actor,
        dist_fn=gaussian if continuous else lambda logits: Categorical(logits=logits),
        action_space=env.action_space,
        action_scaling=continuous,
        action_bound_method="clip" if continuous else None,
    )
    return PPO(
        policy=policy,
        critic=critic,
        optim=AdamOptimizerFactory(lr=settings["lr"], eps=1e-5),
        ent_coef=0.0,
        max_grad_norm=0.5,
        gamma=settings["gamma"],
        gae_lambda=settings["lam"],
        return_scaling=continuous,
    )


def main() -> None:
    """Trains, then prints one line of JSON."""
    args = arguments(__doc__.split("\n")[0])
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    ledger = Ledger(args.folder, args.target)
    continuous = args.study == "halfcheetah"
    settings = EQUAL_WORK if continuous else CARTPOLE
    env_id = "HalfCheetah-v5" if continuous else "CartPole-v1"
    num_envs, at_once = int(settings["num_envs"]), int(settings["steps"])
    envs: BaseVectorEnv = DummyVectorEnv([lambda: Recorded(gymnasium.make(env_id), ledger)] * num_envs)
    if continuous:
        envs = VectorEnvNormObs(envs)
    envs.seed(args.seed)
    trainer = build(gymnasium.make(env_id), settings, continuous)
    plan = OnPolicyTrainerParams(
        training_collector=Collector(trainer.policy, envs, VectorReplayBuffer(at_once, num_envs)),
        max_epochs=1,
        epoch_num_steps=args.steps,
        collection_step_num_env_steps=at_once,
        update_step_num_repetitions=int(settings["epochs"]),
        batch_size=int(settings["minibatch"]),
        verbose=False,
        show_progress=False,
    )
    with contextlib.suppress(TargetReached):
        trainer.run_training(plan)
    report(args, "tianshou", env_id, ledger.steps, time.monotonic())


if __name__ == "__main__":
    main()
