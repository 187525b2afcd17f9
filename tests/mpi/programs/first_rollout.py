"""Collects two rollouts of a fixed number of environments, dealt out over all ranks, and writes them as one file.

mpirun -n R python first_rollout.py TOTAL_ENVS ENV CORE HORIZON …      writes ENV-CORE-NUMBER_OF_RANKS.npz into the
working directory, for each ENV with its CORE (gru, lstm or none) and HORIZON, on each number of ranks up to R that
TOTAL_ENVS can be dealt out over
"""

from __future__ import annotations

import first  # noqa: F401

# isort: split
import sys
from typing import Any

import numpy as np
from mpi4py import MPI

from dppo.algo.losses import METRICS
from dppo.config import Config, ModelConfig
from dppo.envs.vector import make_vector_env
from dppo.models.policy import make_policy
from dppo.seeding import ActionNoise, EpisodeSeeds, Purpose, generator
from dppo.training.collector import Collector

FIELDS = ("observations", "inputs", "actions", "env_actions", "rewards", "terminations", "truncations")
COMPUTED = ("heads", "log_probs", "values", "next_values", "states")


def main() -> None:
    world, total = MPI.COMM_WORLD, int(sys.argv[1])
    for ranks in (n for n in range(1, world.size + 1) if total % n == 0):
        comm = world.Split(0 if world.rank < ranks else MPI.UNDEFINED, world.rank)
        if comm == MPI.COMM_NULL:
            continue
        for env, core, horizon in zip(sys.argv[2::3], sys.argv[3::3], sys.argv[4::3], strict=True):
            collect(comm, env, core, total, int(horizon))
        comm.Free()


def collect(comm: MPI.Comm, env: str, core: Any, total: int, horizon: int) -> None:
    """Collective over `comm`."""
    model = ModelConfig() if core == "none" else ModelConfig(core=core, core_size=8)
    config, n = Config(seed=3, model=model), total // comm.size
    first_env = comm.rank * n
    seeds = EpisodeSeeds(config.seed, first_env, n)
    envs = make_vector_env(env, n, seeds.next)
    spaces, rng = (envs.observation_space, envs.action_space), generator(config.seed, Purpose.INIT)
    policy = make_policy(*spaces, config.model, config.moments, rng, len(METRICS), envs.mask_size)
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
        out = f"{env.rpartition('/')[2]}-{core}-{comm.size}.npz"
        np.savez(out, episodes=np.array(sorted(e for listed in episodes for e in listed)), **joined)


if __name__ == "__main__":
    main()
