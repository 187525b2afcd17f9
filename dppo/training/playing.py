"""Plays episodes with a trained policy, in environments made for that."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dppo.config import SOLVER, Config
from dppo.envs.given import Given
from dppo.envs.group_link import HeadLink
from dppo.envs.maker import EnvMaker
from dppo.envs.process import kept_as_it_was
from dppo.envs.vector import make_vector_env
from dppo.errors import UsageError
from dppo.seams import VectorEnv
from dppo.seeding import EpisodeSeeds, Purpose, seed_global_generators
from dppo.training.build import close_environments, max_restarts
from dppo.training.played import Played
from dppo.training.policy import Policy

MAX_STEPS = 30_000
"""The default limit of an episode's steps: a little above that of Atari's games, which is the longest in use."""
MOST_ENVS = 20
"""The most environments that play side by side."""


class Progress(NamedTuple):
    """The progress of an evaluation."""

    played: int
    """Episodes that were played."""
    steps: int
    longest: int
    """Steps in all environments, and of the longest episode under way."""


class Player:
    """Environments in which policies play a fixed number of episodes, in a fixed order.

    Each of several environments (or agents) plays a fixed number of episodes, however long they take. If the episodes
    that end first counted, short ones would push long ones out of the sample.

    Args:
      episodes: how many; up to `MOST_ENVS` environments play them. The cases of `config` are dealt to them in turn.
      given: what the environments are given.

    Raises:
      UsageError: the environment cannot be made.
    """

    def __init__(self, config: Config, episodes: int, given: Given) -> None:
        # a policy is not judged by a native vector form, whose environments cannot be started from a seed
        vectorization = "auto" if config.vectorization == "native" else config.vectorization
        num_envs = 1 if config.env == SOLVER else min(episodes, MOST_ENVS)
        self._episodes = episodes
        try:
            with kept_as_it_was():
                self._envs: VectorEnv = make_vector_env(
                    config.env, num_envs, lambda index: self._seeds.next(index), vectorization,
                    kwargs=config.env_kwargs, wrappers=config.wrappers, cases=config.cases,
                    max_restarts=max_restarts(config), given=given, rounds_up=True,
                )  # fmt: skip
        except ValueError as error:
            raise UsageError(str(error)) from error

    def play(
        self,
        policy: Policy,
        seed: int,
        *,
        stochastic: bool = False,
        max_steps: int = MAX_STEPS,
        progress: Callable[[Progress], None] = lambda now: None,
    ) -> list[Played]:
        """Plays the episodes of `seed`, each to its end or for `max_steps`. The same seed gives the same episodes.

        Raises:
          UsageError: the environment is not the one that the policy was trained in.
        """
        envs, episodes = self._envs, self._episodes
        policy.require(envs.observation_space, envs.action_space)
        num_envs, together = envs.num_envs, max(1, len(envs.agents))
        self._seeds = EpisodeSeeds(seed, 0, num_envs, Purpose.EVALUATION, together)
        policy.seed(seed)
        seed_global_generators(seed)
        quota = np.full(num_envs, episodes // num_envs) + (np.arange(num_envs) < episodes % num_envs)
        done: list[list[Played]] = [[] for _ in range(num_envs)]
        returns, lengths = np.zeros(num_envs), np.zeros(num_envs, np.int64)
        observations = envs.reset()
        policy.reset()
        num_played = steps = 0
        while num_played < episodes:
            restarts = envs.restarts
            step = envs.step(policy.act(observations, stochastic=stochastic, mask=envs.masks))
            observations = step.observations
            plays = np.ones(num_envs, bool) if step.valid is None else step.valid
            returns += step.rewards
            lengths += plays
            steps += int(plays.sum())
            longest = int(lengths.max())
            over = np.flatnonzero(lengths >= max_steps) if longest >= max_steps else ()
            new = list(dict.fromkeys((*step.final_envs, *over)))
            policy.reset([*new, *np.flatnonzero(~plays)])
            begun: set[int] = set()
            for i in new:
                at_end = i in step.final_envs
                failed = envs.restarts > restarts and not step.terminations[i]
                if len(done[i]) < quota[i]:
                    done[i].append(Played(float(returns[i]), int(lengths[i]), at_end and not failed))
                    num_played += 1
                returns[i], lengths[i] = 0.0, 0
                if not at_end:
                    begun.add(int(i) // together * together)
            for first in sorted(begun):
                observations = observations.copy()
                observations[first : first + together] = envs.begin_episode(first)
            progress(Progress(num_played, steps, longest))
        return [played for d in done for played in d]

    def close(self) -> None:
        """Closes the environments."""
        close_environments(self._envs)


def given_to_play(
    config: Config, at_end: contextlib.ExitStack, own_comm: Callable[[], Any], group: HeadLink | None = None
) -> Given:
    """Returns what environments are given that are played outside of a run: folders that are removed at the end, and
    the communicator of this process alone.

    Args:
      own_comm: returns that communicator; called, and MPI started by it, for a constructor that takes one only.
    """
    comm = None
    if group is None and config.own_env_ranks > 1:
        raise ValueError(
            f"its environments have {config.env_ranks} ranks: mpirun -n {config.env_ranks} python -m dppo.evaluate RUN"
        )
    if group is None and "comm" in EnvMaker(config.env, config.env_kwargs, config.wrappers).takes:
        comm = own_comm()
    given = Given(comm, group=group)
    at_end.callback(given.workdirs.remove_new)
    return given
