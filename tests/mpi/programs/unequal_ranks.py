"""Synchronous training in which every worker brings another number of samples, and what one rank makes of them all.

    mpirun -n R python unequal_ranks.py EXCHANGE LOSS ENV OUT.npz …      one training after another

Worker w has 1 + w environments and rollouts of 8 + 9 w rows. Rank 0 writes what the ranks came to after each of two
iterations (got_*), and what follows from the samples of all workers put together (expected_*). The optimiser is plain
gradient descent with rate 1, so that parameters before minus parameters after are the gradient.
"""

from __future__ import annotations

import first  # noqa: F401

# isort: split
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mpi4py import MPI

from dppo.algo import returns
from dppo.algo.losses import METRICS
from dppo.algo.moments import RewardScale
from dppo.cluster.signals import Preemption
from dppo.comm.allreduce import Allreduce
from dppo.comm.link import MPILink
from dppo.comm.server import serve
from dppo.config import Config, OptimConfig, PPOConfig
from dppo.data import Minibatch, Report, Rollout
from dppo.envs.vector import make_vector_env
from dppo.models.policy import make_policy
from dppo.seams import Exchange
from dppo.seeding import ActionNoise, EpisodeSeeds, Purpose, generator
from dppo.settings.resolve import resolve
from dppo.training import sync_loop
from dppo.training.collector import Collector
from dppo.training.coordinator import BaseCoordinator
from dppo.training.learner import Learner
from dppo.training.moments import RunMoments
from dppo.training.state import TrainingState
from dppo.training.sync_allreduce import AllreduceCoordinator, AllreduceExchange
from dppo.training.sync_p2p import P2PCoordinator, P2PExchange

ITERATIONS = 2


@dataclass
class FakeTracker:
    """Keeps what the state was after each iteration, and ends the run."""

    state: TrainingState
    preemption: Preemption
    after: list[dict[str, Any]] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)

    def add(self, report: Report) -> None:
        self.reports.append(report)

    @property
    def counters(self) -> FakeTracker:
        return self

    @property
    def saver(self) -> FakeTracker:
        return self

    @property
    def evaluations(self) -> FakeTracker:
        return self

    def poll(self) -> None:
        """There are no evaluations to look for."""

    @property
    def pending_env_steps(self) -> int:
        return sum(r.env_steps for r in self.reports)

    def take_seal_orders(self) -> dict[int, int]:
        return {}

    def close(self, extra: dict[str, Any]) -> str | None:
        self.reports.clear()
        s = self.state
        self.after.append({
            "parameters": s.flat.vector.copy(), "moments": s.moments.pack(), "env_steps": s.env_steps,
            **s.metrics(), **extra,
        })  # fmt: skip
        return "finished" if len(self.after) == ITERATIONS else None


class Recorder(Collector):
    """A collector that keeps its rollouts."""

    def collect(self, *args: Any) -> Rollout:
        rollout = super().collect(*args)
        self.__dict__.setdefault("rollouts", []).append(rollout)
        return rollout


class Rank:
    """What a rank needs, as run/command.py builds it."""

    def __init__(self, config: Config, worker: int, num_envs: int, first_env: int) -> None:
        self.seeds = EpisodeSeeds(config.seed, first_env, num_envs)
        self.envs = make_vector_env(config.env, num_envs, self.seeds.next)
        rng = generator(config.seed, Purpose.INIT)
        spaces = self.envs.observation_space, self.envs.action_space
        self.policy = make_policy(*spaces, config.model, config.moments, rng, len(METRICS))
        moments = RunMoments(self.policy.inputs, RewardScale(is_used=config.moments.returns))
        self.learner = Learner(self.policy, moments, config, worker)
        self.state = TrainingState(self.policy.flat, moments, config)


def main() -> None:
    for cell in zip(*(sys.argv[i::4] for i in range(1, 5)), strict=True):
        comm = MPI.COMM_WORLD.Dup()
        train(comm, *cell)
        comm.Free()


def train(comm: MPI.Comm, exchange: str, loss: str, env: str, out: str) -> None:
    """Collective over `comm`."""
    worker = comm.rank - 1
    config = resolve(
        Config(
            env=env, exchange=exchange, loss=loss, seed=5, horizon=8 + 9 * max(worker, 0), num_envs=1 + max(worker, 0),  # type: ignore[arg-type]
            ppo=PPOConfig(epochs=1, minibatches=1, target_kl=0.0, entropy_coef=0.02),
            optim=OptimConfig(name="sgd", lr=1.0, momentum=0.0, schedule="constant", max_grad_norm=0.0),
        )
    )  # fmt: skip
    first_env = sum(1 + w for w in range(max(worker, 0)))
    rank = Rank(config, max(worker, 0), config.num_envs, first_env)
    workers = comm.Split(int(comm.rank > 0), comm.rank)
    rollouts: list[Rollout] = []
    after: list[dict[str, Any]] = []
    initial = rank.policy.flat.vector.copy()
    if comm.rank == 0:
        tracker: Any = FakeTracker(rank.state, Preemption(1e9, None), after)
        numbers = range(comm.size - 1)
        coordinator: BaseCoordinator = AllreduceCoordinator(tracker, rank.state, config, numbers)
        if exchange == "p2p":
            coordinator = P2PCoordinator(tracker, rank.state, rank.learner, config, numbers, len(numbers))
        serve(comm, coordinator, first_worker_rank=1)
    else:
        distribution = rank.policy.distribution
        noise = ActionNoise(config.seed, first_env, config.num_envs, distribution.noise_kinds)
        collector = Recorder(rank.envs, rank.policy, rank.seeds, noise, worker, first_env, rank.learner.gamma)
        link = MPILink(comm, lambda: False)
        way: Exchange
        if exchange == "allreduce":
            way = AllreduceExchange(Allreduce(workers), rank.state, link)
        else:
            way = P2PExchange(rank.state, link)
        sync_loop.train_worker(collector, rank.learner, rank.state, way, link, config)
        link.bye()
        rollouts = collector.__dict__["rollouts"]
    workers.Free()
    gathered = comm.gather(rollouts)
    if gathered is not None:
        write(out, config, initial, after, gathered[1:])


def write(
    out: str, config: Config, initial: np.ndarray, after: list[dict[str, Any]], rollouts: list[list[Rollout]]
) -> None:
    """Puts what the ranks came to beside what one rank makes of all samples."""
    values: dict[str, Any] = {}
    before = initial
    for i in range(ITERATIONS):
        parts = [r[i] for r in rollouts]
        seen = [np.concatenate([flat(r.observations) for w in rollouts for r in w[:k]]) for k in (i, i + 1) if k]
        values |= {f"got_{name}_{i}": np.asarray(value) for name, value in after[i].items()}
        values[f"got_gradient_{i}"] = before - after[i]["parameters"]
        scale = 1.0 if i == 0 else reward_scale([w[:i] for w in rollouts], config)
        values[f"expected_gradient_{i}"] = gradient(config, before, parts, scale)
        values[f"expected_mean_{i}"], values[f"expected_std_{i}"] = seen[-1].mean(0), seen[-1].std(0)
        values[f"expected_reward_scale_{i + 1}"] = reward_scale([w[: i + 1] for w in rollouts], config)
        values[f"samples_{i}"] = [r.rewards.size for r in parts]
        before = after[i]["parameters"]
    np.savez(out, **values)


def flat(array: np.ndarray) -> np.ndarray:
    """[T, N, …] -> [T N, …] float64."""
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:]).astype(np.float64)


def reward_scale(rollouts: list[list[Rollout]], config: Config) -> float:
    """1 / standard deviation of the running discounted return, over all workers' rows so far."""
    gamma = config.ppo.gamma if config.loss == "ppo" else config.a3c.gamma
    all_returns = []
    for worker in rollouts:
        running = np.zeros(worker[0].rewards.shape[1])
        for rollout in worker:
            for t in range(rollout.num_rows):
                running = gamma * running + rollout.rewards[t]
                all_returns.append(running)
                running = np.where(rollout.terminations[t] | rollout.truncations[t], 0.0, running)
    return float(1.0 / np.std(np.concatenate(all_returns)))


def gradient(config: Config, parameters: np.ndarray, rollouts: list[Rollout], scale: float) -> np.ndarray:
    """Of the mean loss over all samples: one minibatch, one rank, no message."""
    one = Rank(config, 0, 1, 0)
    one.policy.flat.vector[:] = parameters
    cfg = config.ppo if config.loss == "ppo" else config.a3c
    fields: dict[str, list[np.ndarray]] = {name: [] for name in Minibatch.__slots__}
    for r in rollouts:
        dones = r.terminations | r.truncations
        advantages, targets = returns.gae(
            r.rewards * np.float32(scale), r.values, r.next_values, dones, cfg.gamma, cfg.lam
        )
        for name in ("inputs", "masks", "states", "actions", "heads", "log_probs", "values"):
            array = getattr(r, name)
            fields[name].append(array.reshape(array.shape[0] * array.shape[1], *array.shape[2:]))
        fields["advantages"].append(advantages.reshape(-1))
        fields["returns"].append(targets.reshape(-1))
        fields["firsts"].append(np.ones(r.rewards.size, bool))
    batch = Minibatch(**{name: np.concatenate(parts) for name, parts in fields.items()})
    if cfg.normalize_advantages:
        a = batch.advantages.astype(np.float64)
        batch.advantages = ((a - a.mean()) / (a.std() + 1e-6)).astype(np.float32)
    one.learner.gradient(batch)
    result: np.ndarray = one.policy.flat.gradient / len(batch)
    return result


if __name__ == "__main__":
    main()
