"""What a rank builds for itself: environments, policy, learner, state, and the collector that steps them.

Uses envs, models, learner, rollout and state; run.py calls it on every rank.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from dppo.algo.losses import METRICS
from dppo.algo.moments import Normaliser
from dppo.config import Config
from dppo.envs.vector import VectorEnv, make_vector_env
from dppo.learner import Learner
from dppo.models.policy import ActorCritic, make_policy, observation_size
from dppo.rollout import Collector
from dppo.seeding import ActionNoise, EpisodeSeeds, Purpose, generator
from dppo.state import TrainingState
from dppo.storage.checkpoint import Checkpoint


@dataclass(slots=True)
class Workplace:
    """What a rank has built: environments (workers only), policy, learner and state."""

    envs: VectorEnv | None
    seeds: EpisodeSeeds
    policy: ActorCritic
    learner: Learner
    state: TrainingState
    worker: int


def build_workplace(config: Config, rank: int, world_size: int) -> Workplace:
    """Everything that this rank needs, freshly initialised; the same network on every rank.

    Raises:
      ValueError: for a missing environment, spaces that are not supported, a factory that does not work.
    """
    alone, is_server = world_size == 1, rank == 0
    worker = 0 if alone else max(0, rank - 1)
    first_env = worker * config.num_envs
    seeds = EpisodeSeeds(config.seed, first_env, config.num_envs)
    # a server that steps nothing still needs the spaces, to know the network
    num_envs = config.num_envs if alone or not is_server else 1
    envs = make_vector_env(config.env, num_envs, seeds.next, config.vectorization)
    rng = generator(config.seed, Purpose.INIT)
    policy = make_policy(envs.observation_space, envs.action_space, config.model, rng, len(METRICS))
    normaliser = Normaliser(observation_size(envs.observation_space), config.moments)
    learner = Learner(policy, normaliser, config, worker)
    state = TrainingState(policy.flat, normaliser, config)
    if is_server and not alone:
        envs.close()
    return Workplace(envs if alone or not is_server else None, seeds, policy, learner, state, worker)


def make_collector(config: Config, place: Workplace, saved: Checkpoint | None) -> Collector:
    """The worker's collector; after a resume its environments stand where the checkpoint had them, or say so."""
    envs = place.envs
    assert envs is not None
    first_env = place.worker * config.num_envs
    distribution = place.policy.distribution
    noise = ActionNoise(config.seed, first_env, config.num_envs, distribution.noise_size, distribution.noise_kind)
    collector = Collector(
        envs, place.policy, place.learner.normaliser, place.seeds, noise, place.worker, first_env, place.learner.gamma
    )
    if saved is not None and saved.ranks:
        states = {e.env: e for _, listed in saved.ranks.values() for e in listed}
        row = max(r for r, _ in saved.ranks.values())
        first_new = saved.journal["next_episode"]
        for line in collector.restore(states, row, first_new, time.monotonic() + config.checkpoint.replay_s):
            print(f"dppo: {line}", file=sys.stderr, flush=True)
    return collector
