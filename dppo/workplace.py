"""What a rank builds for itself: environments, policy, learner, state, and the collector that steps them.

Uses envs, models, learner, rollout and state; run.py calls it on every rank, also when a rank takes over another's
work.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from dppo.algo.losses import METRICS
from dppo.algo.moments import Normaliser
from dppo.batch import EnvState
from dppo.config import Config
from dppo.envs.process import kept_as_it_was
from dppo.envs.vector import VectorEnv, make_vector_env
from dppo.learner import Learner
from dppo.models.policy import ActorCritic, make_policy, observation_size
from dppo.rollout import Collector
from dppo.seeding import ActionNoise, EpisodeSeeds, Purpose, generator, seed_global_generators
from dppo.state import TrainingState


@dataclass(slots=True)
class Workplace:
    """What a rank has built: environments (workers only), policy, learner and state."""

    envs: VectorEnv | None
    seeds: EpisodeSeeds
    policy: ActorCritic
    learner: Learner
    state: TrainingState
    worker: int | None
    """Its stable number, which seeds and environments follow; None: a server that steps nothing."""


def build_workplace(config: Config, worker: int | None) -> Workplace:
    """Everything that this worker needs, or a server (None), freshly initialised; the same network on every rank.

    Raises:
      ValueError: for a missing environment, spaces that are not supported, a factory that does not work.
    """
    number = worker or 0
    # a server that steps nothing still needs the spaces, to know the network
    seeds, envs = _make_envs(config, number, 1 if worker is None else config.num_envs)
    rng = generator(config.seed, Purpose.INIT)
    policy = make_policy(envs.observation_space, envs.action_space, config.model, rng, len(METRICS))
    normaliser = Normaliser(observation_size(envs.observation_space), config.moments)
    learner = Learner(policy, normaliser, config, number)
    state = TrainingState(policy.flat, normaliser, config)
    if worker is None:
        envs.close()
    return Workplace(None if worker is None else envs, seeds, policy, learner, state, worker)


def _make_envs(config: Config, worker: int, num_envs: int) -> tuple[EpisodeSeeds, VectorEnv]:
    first_env = worker * config.num_envs
    seeds = EpisodeSeeds(config.seed, first_env, num_envs)
    with kept_as_it_was():
        return seeds, make_vector_env(config.env, num_envs, seeds.next, config.vectorization, first_env)


def furnish(place: Workplace, config: Config, worker: int) -> None:
    """A server that has none gets the environments of `worker`."""
    place.seeds, place.envs = _make_envs(config, worker, config.num_envs)
    place.worker = worker


def make_collector(
    config: Config,
    place: Workplace,
    states: dict[int, EnvState] | None = None,
    row: int = 0,
    first_new_episode: int = 0,
) -> Collector:
    """The worker's collector.

    Args:
      states: where environments stand, by global number; they are brought there, or it is said why not. None: the run
        begins.
      row, first_new_episode: as in `Collector.restore`.
    """
    envs, worker = place.envs, place.worker
    assert envs is not None and worker is not None
    seed_global_generators(config.seed, worker, row)  # not before: an environment may seed them when it is made
    first_env = worker * config.num_envs
    distribution = place.policy.distribution
    noise = ActionNoise(config.seed, first_env, config.num_envs, distribution.noise_size, distribution.noise_kind)
    collector = Collector(
        envs, place.policy, place.learner.normaliser, place.seeds, noise, worker, first_env, place.learner.gamma
    )
    if states is not None:
        deadline = time.monotonic() + config.checkpoint.replay_s
        for line in collector.restore(states, row, first_new_episode, deadline):
            print(f"dppo: {line}", file=sys.stderr, flush=True)
    return collector
