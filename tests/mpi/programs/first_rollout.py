"""Collects two rollouts of a fixed number of environments, dealt out over all ranks, and writes them as one file.

mpirun -n R python first_rollout.py ENV TOTAL_ENVS HORIZON OUT.npz
"""

from __future__ import annotations

import first  # noqa: F401

# isort: split
import sys
from typing import Any

import numpy as np
from mpi4py import MPI

from dppo.algo.losses import METRICS
from dppo.config import Config
from dppo.envs.vector import make_vector_env
from dppo.models.policy import make_policy
from dppo.seeding import ActionNoise, EpisodeSeeds, Purpose, generator
from dppo.training.collector import Collector

FIELDS = ("observations", "inputs", "actions", "env_actions", "rewards", "terminations", "truncations")
COMPUTED = ("heads", "log_probs", "values", "next_values")


def main() -> None:
    comm, config = MPI.COMM_WORLD, Config(seed=3)
    env, total, horizon, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    assert total % comm.size == 0
    n = total // comm.size
    first_env = comm.rank * n
    seeds = EpisodeSeeds(config.seed, first_env, n)
    envs = make_vector_env(env, n, seeds.next)
    spaces, rng = (envs.observation_space, envs.action_space), generator(config.seed, Purpose.INIT)
    policy = make_policy(*spaces, config.model, config.moments, rng, len(METRICS))
    distribution = policy.distribution
    noise = ActionNoise(config.seed, first_env, n, distribution.noise_kinds)
    collector = Collector(envs, policy, seeds, noise, comm.rank, first_env, 0.99)

    rollouts = [collector.collect(horizon, 0), collector.collect(horizon, 0)]
    parts = comm.gather({name: np.concatenate([getattr(r, name) for r in rollouts]) for name in FIELDS + COMPUTED})
    episodes = comm.gather([
        (e.row, e.env, e.episode_return, e.length) for r in rollouts for e in r.episodes
    ])  # fmt: skip
    if parts is not None and episodes is not None:
        joined: dict[str, Any] = {name: np.concatenate([p[name] for p in parts], axis=1) for name in parts[0]}
        np.savez(out, episodes=np.array(sorted(e for listed in episodes for e in listed)), **joined)


if __name__ == "__main__":
    main()
