"""Workers and rank 0's tracker, built as a rank builds them, in one process: tests collect, learn and save."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from gymnasium import spaces
from mpi4py import MPI

from dppo.cluster.signals import Preemption
from dppo.comm.allreduce import Allreduce
from dppo.comm.link import Link
from dppo.config import Config, LogConfig, ModelConfig, PPOConfig
from dppo.console import Console
from dppo.data import Episode, Report, Rollout
from dppo.envs import probes_of_spaces
from dppo.models.policy import ActorCritic
from dppo.run.setup import saved_replays
from dppo.rundir.checkpoint import Checkpoint, newest_valid, write_checkpoint
from dppo.seams import NO_ENVS, Step, VectorEnv
from dppo.seeding import EpisodeSeeds
from dppo.settings.resolve import resolve
from dppo.settings.toml import to_toml
from dppo.training.build import build_parts, make_collector
from dppo.training.collector import Collector
from dppo.training.learner import Learner
from dppo.training.state import TrainingState
from dppo.training.sync_allreduce import AllreduceExchange
from dppo.training.sync_loop import train_worker
from dppo.training.tracker import Tracker

SMALL = Config(
    num_envs=2, horizon=16, total_steps=10_000, model=ModelConfig(hidden=(8,)), ppo=PPOConfig(epochs=2, minibatches=2)
)
"""A configuration that takes milliseconds; not resolved yet."""


def probe(name: str) -> str:
    """The id of one of dppo's own probe environments."""
    module = "probes_of_spaces" if f"Probe{name}" in {p.__name__ for p in probes_of_spaces.PROBES} else "probes"
    return f"dppo.envs.{module}:dppo/Probe{name}-v0"


@dataclass
class Parts:
    """A worker with its environments."""

    config: Config
    collector: Collector
    seeds: EpisodeSeeds
    policy: ActorCritic
    learner: Learner
    state: TrainingState
    reports: list[Report] = field(default_factory=list)
    """What rank 0 was told."""

    def rollout(self, horizon: int | None = None) -> tuple[Rollout, np.ndarray]:
        """The next rollout and its running discounted returns."""
        rows = self.config.horizon if horizon is None else horizon
        assert rows is not None
        rollout = self.collector.collect(rows, self.state.version)
        discounted_returns = self.collector.discounted_returns(rollout)
        self.reports.append(self.collector.report(rollout, 0.0, 0.0, 0.0))
        return rollout, discounted_returns

    def iterate(self) -> None:
        """One whole iteration of synchronous training with this worker alone."""
        link = OneIteration(self.reports)
        exchange = AllreduceExchange(Allreduce(MPI.COMM_SELF), self.state, link)
        train_worker(self.collector, self.learner, self.state, exchange, link, self.config)


class OneIteration(Link):
    """A link to a rank 0 that ends the run at the first boundary."""

    def __init__(self, reports: list[Report]) -> None:
        super().__init__(asked_to_leave=lambda: False)
        self._reports = reports

    def report(self, report: Report, rollout: Rollout) -> None:
        if not self.stopped:
            self._reports.append(report)

    def boundary(self, message: np.ndarray) -> None:
        self.stopped = True

    def _poll(self) -> bool:
        return False


def make_parts(
    config: Config = SMALL,
    *,
    worker: int = 0,
    envs: VectorEnv | None = None,
    run_dir: Path | None = None,
    **changes: Any,
) -> Parts:
    """Worker number `worker` of a run of `config` with `changes`.

    Args:
      envs: stand in for those of `config.env`.
      run_dir: where environments save their states, if they do.
    """
    config = resolve(replace(config, **changes))
    with mock.patch("dppo.training.build.make_vector_env", return_value=envs) if envs else nullcontext():
        built = build_parts(config, worker, run_dir=run_dir)
    learner, collector = built.learner, make_collector(config, built)
    return Parts(config, collector, built.seeds, built.policy, learner, built.state)


def merge_samples(state: TrainingState, observations: np.ndarray, discounted_returns: np.ndarray) -> None:
    """Merges moments of observations [B, D] and of returns [B, 1]."""
    state.merge(state.moments.deltas(observations, discounted_returns))


def settle(place: Parts) -> None:
    """Moments and parameters as they might be in mid-run."""
    rng = np.random.default_rng(9)
    merge_samples(place.state, rng.normal(0.1, 0.5, (50, place.policy.inputs.size)), rng.normal(0, 3, (50, 1)))
    place.state.begin_iteration()
    place.policy.flat.vector += rng.normal(0.0, 0.1, place.policy.flat.size).astype(np.float32)


def save(place: Parts, run_dir: Path, env_steps: int = 1234) -> Path:
    """What evaluation needs of a run directory."""
    run_dir.mkdir(exist_ok=True)
    (run_dir / "config.toml").write_text(to_toml(place.config))
    place.state.env_steps = env_steps
    write_checkpoint(run_dir, Checkpoint(env_steps, 0, place.state.as_dict(), {}, {}), keep=3)
    return run_dir


class NextStep:
    """Two environments with Gymnasium's NEXT_STEP reset: the row after an end is a reset, its reward 0."""

    num_envs, replayable, description = 2, False, "a stub"
    mask_size, masks, restarts = 0, None, 0
    agents: tuple[str, ...] = ()
    curriculum = None
    observation_space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space: spaces.Space[Any] = spaces.Discrete(1)

    def reset(self) -> np.ndarray:
        self.left = np.array([2, 3])  # steps to the end of the episode, 0 at it
        return np.zeros((2, 1), np.float32)

    def step(self, actions: np.ndarray) -> Step:
        resets = self.left == 0
        self.left = np.where(resets, 2, self.left - 1)
        ended = (self.left == 0) & ~resets
        observations = np.where(resets, 0.0, 1.0).astype(np.float32)[:, None]
        final = ended.nonzero()[0] if ended.any() else NO_ENVS
        rewards = np.where(resets, 0.0, 1.0)
        return Step(observations, rewards, ended, np.zeros(2, bool), final, observations[final], ~resets)

    def replay(
        self,
        seeds: Sequence[int],
        actions: Sequence[np.ndarray],
        deadline: float = math.inf,
        rewards: list[np.ndarray] | None = None,
    ) -> tuple[np.ndarray, list[int]]:
        raise NotImplementedError

    def begin_episode(self, index: int) -> np.ndarray:
        raise NotImplementedError

    def close(self) -> None: ...


class Run:
    """Workers, rank 0's tracker, and the iterations between them, in one process; worker 0's state is the run's."""

    def __init__(
        self,
        run_dir: Path,
        *,
        workers: int = 1,
        saved: Checkpoint | None = None,
        restored: bool = True,
        **changes: Any,
    ) -> None:
        self.run_dir = run_dir
        run_dir.mkdir(exist_ok=True)
        changes = {"log": LogConfig(tensorboard=False)} | changes
        self.places = [make_parts(worker=w, run_dir=run_dir, **changes) for w in range(workers)]
        self.state, self.config = self.places[0].state, self.places[0].config
        if saved is not None:
            for place in self.places:
                place.state.load(saved.state)
            states = {e.env: e for _, envs in saved.ranks.values() for e in envs}
            row = max(row for row, _ in saved.ranks.values())
            for place in self.places if restored else ():
                assert place.collector.restore(states, row, 10_000, time.monotonic() + 60) == []
        self.preemption = Preemption(30.0, None)
        self.tracker = Tracker(
            run_dir, self.config, self.state, self.preemption, Console(60.0, enabled=False),
            workers=range(workers), world_size=workers + 1, attempt=1 if saved is None else 2, wall_s=0.0,
            started=time.monotonic(), counters=None if saved is None else saved.counters,
            replays=None if saved is None else saved_replays(saved, range(workers), self.config.num_envs),
            next_segments=None if saved is None else saved.next_segments,
        )  # fmt: skip
        if saved is None:
            self.tracker.saver.write(self.tracker.saver.boundary)
        self.tracker.start_training()

    def iterate(self, episodes: list[Episode] | None = None) -> str | None:
        """Every worker collects and reports, the iteration is closed; nothing is learnt. Returns why the run ends."""
        for place in reversed(self.places):  # whoever is first: the counters do not depend on it
            self.collect(place, episodes)
        self.state.finish_iteration(self.tracker.counters.pending_env_steps, 0.0)
        return self.tracker.close({"extra": 1})

    def collect(self, place: Parts, episodes: list[Episode] | None = None) -> None:
        place.rollout()
        if episodes is not None:
            place.reports[-1].episodes = episodes
        self.tracker.add(place.reports[-1])

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run_dir / "metrics.jsonl").read_text().splitlines()]

    def summary(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.run_dir / "summary.json").read_text())
        return value

    def saved(self) -> Checkpoint:
        checkpoint, skipped = newest_valid(self.run_dir)
        assert checkpoint is not None and skipped == [], skipped
        return checkpoint


def wait_for_checkpoints(run: Run) -> None:
    """They are written in a thread of their own."""
    while run.tracker.files.is_writing:
        time.sleep(0.001)
