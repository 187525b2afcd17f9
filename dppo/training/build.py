"""Builds the parts of a rank: environments, policy, learner, state, and the collector that steps the environments."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import gymnasium

from dppo.algo.losses import METRICS
from dppo.algo.moments import RewardScale
from dppo.cluster import guard
from dppo.cluster.launcher import local_ranks, rank_name
from dppo.config import Config
from dppo.data import EnvState
from dppo.envs.env_list import EnvList
from dppo.envs.given import Given, Workdirs
from dppo.envs.group_link import Call, HeadLink
from dppo.envs.process import kept_as_it_was
from dppo.envs.registration import is_of_this_program
from dppo.envs.vector import make_vector_env
from dppo.models import gpus
from dppo.models.policy import ActorCritic, make_policy
from dppo.seams import Closable, VectorEnv
from dppo.seeding import ActionNoise, EpisodeSeeds, Purpose, generator, seed_global_generators
from dppo.settings.resolve import require_sequences
from dppo.training.collector import Collector
from dppo.training.env_states import StateSaver
from dppo.training.learner import Learner
from dppo.training.moments import RunMoments
from dppo.training.state import TrainingState

CLOSE_S, CLOSE_AFTER_FAILURE_S = 10.0, 2.0
"""Seconds that environments may take to close. After a failure the other ranks wait for them."""
LAST_S = 2.0
"""Further seconds for environments that cannot be interrupted: C code that waits lets no signal through."""


@dataclass(slots=True)
class Parts:
    """The parts that a rank has built: environments (workers only), policy, learner and state."""

    envs: VectorEnv | None
    seeds: EpisodeSeeds
    policy: ActorCritic
    learner: Learner
    state: TrainingState
    worker: int | None
    """The worker's stable number, which decides seeds and environments; None: a server that steps nothing."""
    spaces: tuple[gymnasium.Space[Any], gymnasium.Space[Any]]
    """The observation space and the action space of one environment."""
    gpus: tuple[gpus.GPU, ...] = ()
    """The GPUs that the network may compute on."""
    given: Given = field(default_factory=Given)
    """What the environments of this rank are given."""
    run_dir: Path | None = None
    """Where the environments save their states, if they do; None: they save none."""
    seen: Seen | None = None
    """What the network depends on in an environment."""

    @property
    def has_envs(self) -> bool:
        """Whether this rank has environments to step."""
        return self.envs is not None

    @property
    def why_no_gpu(self) -> str:
        """The reason why there is no GPU for the network, which is torch's."""
        return gpus.why_none()

    def close(self, limit_s: float = CLOSE_S) -> None:
        """Closes the environments, once."""
        envs, self.envs = self.envs, None
        if envs is not None:
            close_environments(envs, limit_s)


def close_environments(envs: Closable, limit_s: float = CLOSE_S) -> None:
    """Closes environments that are not needed any more. An error of `close` is only shown, and a `close` that does not
    return is interrupted. If it cannot be interrupted, this process ends.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise _TooLong

    in_main_thread = threading.current_thread() is threading.main_thread()  # the only one that may handle signals
    before = signal.signal(signal.SIGALRM, interrupt) if in_main_thread else None
    last = threading.Timer(limit_s + LAST_S, _leave)
    last.daemon = True
    last.start()
    try:
        if in_main_thread:
            signal.setitimer(signal.ITIMER_REAL, limit_s, 1.0)
        envs.close()
    except _TooLong:
        _say_of_close(f"did not come back within {limit_s:g} s")
    except (Exception, SystemExit) as error:
        _say_of_close(f"raised {type(error).__name__}: {error}")
    finally:
        last.cancel()
        if in_main_thread:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


class _TooLong(BaseException):
    """The interruption of a `close` that takes too long; not an Exception, which simulators suppress."""


def _leave() -> None:
    _say_of_close("does not come back, and cannot be interrupted: its process ends")
    guard.leave_at_once(1)


def _say_of_close(what: str) -> None:
    print(f"dppo: {rank_name()}: close() of an environment {what}", file=sys.stderr, flush=True)


class Seen(NamedTuple):
    """What a network depends on in an environment, in place of one."""

    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    mask_size: int


def build_parts(
    config: Config,
    worker: int | None,
    given: Given | None = None,
    run_dir: Path | None = None,
    seen: Seen | None = None,
) -> Parts:
    """Builds everything that this worker, or a server (None), needs, freshly initialised; the same network on every
    rank.

    Args:
      given: what the worker's environments are given. The one of a server, which only shows its spaces, has the number
        of worker 0's first, and a temporary folder.
      run_dir: where environments save their states, if they do; None: they save none.
      seen: what others have seen of the environment, for a server that makes none.

    Raises:
      ValueError: an environment is missing, spaces are not supported, a factory does not work, or there is no GPU.
    """
    number = worker or 0
    if config.eval.every and is_of_this_program(config.env):
        raise ValueError(
            f"eval.every={config.eval.every} plays episodes in a process of its own, which cannot make {config.env}:"
            " this program has registered it; move its class into a module and name that, module:Class, or leave"
            " eval.every out, and use dppo.evaluate.play_episodes after the run"
        )
    if config.device == "cuda" and worker is not None:  # a server's network never runs
        gpus.require_gpu()
    given, for_a_look = given or Given(), Workdirs()
    envs: VectorEnv | None = None
    with contextlib.ExitStack() as unless_needed:
        unless_needed.callback(for_a_look.remove_new)
        if seen is not None:
            seeds = EpisodeSeeds(config.seed, 0, 1)
        elif worker is None:  # a server that steps nothing still needs the spaces, to know the network
            seeds, envs = _make_envs(config, number, None, replace(given, workdirs=for_a_look))
        else:
            seeds, envs = _make_envs(config, number, config.num_envs, given)
        if envs is not None:
            unless_needed.callback(close_environments, envs)
        rng = generator(config.seed, Purpose.INIT)
        if envs is not None:
            seen = Seen(envs.observation_space, envs.action_space, envs.mask_size)
        assert seen is not None
        spaces = seen.observation_space, seen.action_space
        policy = make_policy(*spaces, config.model, config.moments, rng, len(METRICS), seen.mask_size)
        if policy.state_size:
            require_sequences(config)
        own_gpus = _own_gpus(config, policy)
        if worker is not None:
            _require_memory(config, policy)
        moments = RunMoments(policy.inputs, RewardScale(is_used=config.moments.returns))
        learner = Learner(policy, moments, config, number)
        state = TrainingState(policy.flat, moments, config)
        if worker is not None:
            unless_needed.pop_all()
    steps = None if worker is None else envs
    return Parts(steps, seeds, policy, learner, state, worker, spaces, own_gpus, given, run_dir, seen)


def _own_gpus(config: Config, policy: ActorCritic) -> tuple[gpus.GPU, ...]:
    """Returns the GPUs that this rank's network may compute on."""
    if config.device == "cpu":
        return ()
    if policy.place is None:
        if config.device == "cuda":  # only a resumed run: a new one gets a network of torch
            raise ValueError(
                "--device cuda: this run's network is the closed-form one in NumPy, which computes on the CPU: leave it"
                " out"
            )
        return ()
    return gpus.visible_gpus()


def _require_memory(config: Config, policy: ActorCritic) -> None:
    """Raises ValueError, with the repair, if the rollouts of this node's workers do not fit into its memory."""
    assert config.horizon is not None, "the configuration is resolved"
    wanted = config.horizon * config.num_envs * policy.blank_rollout(0, 1, 1).num_bytes
    there, ranks = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), local_ranks()
    if wanted * max(1, (ranks - 1) // config.own_env_ranks) > there:
        raise ValueError(
            f"horizon*num_envs={config.horizon}*{config.num_envs} samples take {wanted / 1e9:,.1f} GB on each of this"
            f" node's {ranks} rank(s), and it has {there / 1e9:,.1f} GB: lower one of them"
        )


def max_restarts(config: Config) -> int:
    """Returns how often in a row an environment that fails is made anew; 0: its error ends the run."""
    return config.max_env_restarts if config.on_env_error == "restart" else 0


def _make_envs(config: Config, worker: int, num_envs: int | None, given: Given) -> tuple[EpisodeSeeds, VectorEnv]:
    """Makes environments with the seeds of their episodes; None: as few as possible."""
    first_env = worker * config.num_envs
    _seed_globally(given.group, config.seed, worker)  # a constructor may draw from them
    with kept_as_it_was():
        envs = make_vector_env(
            config.env, num_envs or 1, lambda index: seeds.next(index), config.vectorization, first_env,
            kwargs=config.env_kwargs, wrappers=config.wrappers, cases=config.cases,
            max_restarts=max_restarts(config),
            close_broken=lambda env: close_environments(env, CLOSE_AFTER_FAILURE_S),  # it may never come back
            given=given, rounds_up=num_envs is None,
        )  # fmt: skip
    seeds = EpisodeSeeds(config.seed, first_env, envs.num_envs, agents=max(1, len(envs.agents)))
    return seeds, envs


def _seed_globally(group: HeadLink | None, *key: int) -> None:
    """Seeds the global generators of all ranks that an environment has."""
    if group is not None:
        group.tell(Call.RUN, arguments=(seed_global_generators, *key))
    seed_global_generators(*key)


def build_envs(parts: Parts, config: Config, worker: int) -> None:
    """Gives a server, which has no environments, those of `worker`."""
    parts.seeds, parts.envs = _make_envs(config, worker, config.num_envs, parts.given)
    parts.worker = worker


def make_collector(
    config: Config,
    parts: Parts,
    states: dict[int, EnvState] | None = None,
    row: int = 0,
    first_new_episode: int = 0,
    fraction_done: float = 0.0,
) -> Collector:
    """Makes the worker's collector.

    Args:
      states: states of environments, by global number; environments are brought there, or a line says why not. None:
        the run begins.
      row, first_new_episode, fraction_done: see `Collector.restore`.
    """
    envs, worker = parts.envs, parts.worker
    assert envs is not None and worker is not None
    _seed_globally(
        parts.given.group, config.seed, worker, row
    )  # again: an environment may have seeded them when it was made
    first_env = worker * config.num_envs
    noise = ActionNoise(config.seed, first_env, config.num_envs, parts.policy.distribution.noise_kinds)
    saver = None
    if parts.run_dir is not None and isinstance(envs, EnvList) and envs.states.are_saved:
        saver = StateSaver(envs, parts.run_dir, first_env, config.checkpoint.states_s)
    collector = Collector(envs, parts.policy, parts.seeds, noise, worker, first_env, parts.learner.gamma, saver)
    if states is not None:
        deadline = time.monotonic() + config.checkpoint.replay_s
        for line in collector.restore(states, row, first_new_episode, deadline, fraction_done):
            print(f"dppo: {line}", file=sys.stderr, flush=True)
    return collector
