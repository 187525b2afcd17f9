"""Trajectory dumps written by the real writer, of episodes that can be worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dppo.data import EpisodeProgress, Rollout
from dppo.envs.cases import names_of
from dppo.seams import Sealed
from dppo.trajectories.format import USER_BLOCK, seal_image
from dppo.trajectories.writer import Labels, TrajectoryWriter

SPACE = '{"type": "Discrete", "n": 2, "start": 0}'
CONFIG = '{"env": "Fake-v0", "trajectories": {"enabled": true}}'


def config_of(cases: Sequence[str]) -> str:
    """The settings of a run, with cases of these names."""
    return json.dumps(json.loads(CONFIG) | {"cases": [{"name": name} for name in cases]}) if cases else CONFIG


class FakeWorker:
    """Environment n plays episodes of lengths[n] steps. Step k of one, from 0: observation [global env, id, k], reward
    k + 1; those with an even id end, odd ones are truncated; the last observation is [global env, id, length].

    Args:
      row: where it begins.
      resets: each end is followed by a row that is no step; nobody numbers these episodes.
      raw: actions are vectors, sent clipped.
      agents: the environments are agents of a simulator, of these names.
      cases: the names of the run's cases.
    """

    def __init__(
        self, run_dir: Path, lengths: Sequence[int] = (3, 5), *, rank: int = 1, first_env: int = 0, attempt: int = 1,
        row: int = 0, every: int = 1, resets: bool = False, raw: bool = False, run_id: str = "run",
        compression: str = "gzip", agents: tuple[str, ...] = (), cases: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.lengths, self.first_env, self.row, self.resets, self.raw = np.array(lengths), first_env, row, resets, raw
        spaces = SPACE, SPACE
        labels = Labels(
            run_dir,
            run_id,
            attempt,
            rank,
            3,
            first_env,
            config_of(cases),
            '{"id": "Fake-v0"}',
            *spaces,
            "0.1",
            agents,
            names_of([{"name": name} for name in cases], first_env, len(lengths), max(1, len(agents))),
        )
        self.folder = labels.folder
        seed_of = None if resets else lambda env, episode: 1000 * (first_env + env) + episode
        self.writer = TrajectoryWriter(
            labels, seed_of, has_raw_actions=raw, segment_bytes=2**40, every=every, compression=compression
        )

    def go(self, rows: int, version: int = 0) -> FakeWorker:
        """Plays on."""
        self.writer.add(self._rollout(rows, version))
        return self

    def seal(self) -> FakeWorker:
        """What was played so far becomes a segment."""
        self.writer.seal(self.row)
        return self

    def finish(self) -> list[Sealed]:
        answers = self.writer.settle(None)
        self.writer.close()
        return answers

    def path(self, number: int) -> Path:
        return self.folder / f"seg_{number:06d}.h5"

    def _rollout(self, rows: int, version: int) -> Rollout:
        num_envs = len(self.lengths)
        t = (self.row + np.arange(rows))[:, None]
        period = self.lengths + self.resets
        ids, k = t // period, t % period
        valid = k < self.lengths
        ended = k == self.lengths - 1
        env = np.broadcast_to(self.first_env + np.arange(num_envs), ids.shape)
        observations = np.stack((env, ids, k), -1).astype(np.float32)
        final_rows, final_envs = ended.nonzero()
        final = observations[final_rows, final_envs] + np.array([0, 0, 1], np.float32)
        raw = np.stack((k, -k), -1).astype(np.float32) if self.raw else (k % 2).astype(np.int64)
        at, step = self.row // period, np.minimum(self.row % period, self.lengths)
        over = step == self.lengths  # a reset comes first
        step = np.where(over, 0, step)
        zeros = np.zeros((rows, num_envs), np.float32)
        rollout = Rollout(
            first_row=self.row, observations=observations, inputs=observations, actions=raw,
            masks=np.empty((rows, num_envs, 0), bool), states=np.empty((rows, num_envs, 0), np.float32),
            env_actions=np.clip(raw, -2, 2) if self.raw else raw, rewards=np.where(valid, k + 1, 0).astype(np.float32),
            terminations=ended & (ids % 2 == 0), truncations=ended & (ids % 2 == 1), valid=valid, heads=zeros,
            log_probs=zeros - t.astype(np.float32), values=zeros + np.float32(0.5), next_values=zeros,
            final_rows=final_rows, final_envs=final_envs, final_observations=final,
            versions=np.full(rows, version), progress=EpisodeProgress(at + over, step, step * (step + 1) / 2),
            episodes=[], episodes_cut=[], told=[],
        )  # fmt: skip
        self.row += rows
        return rollout


def write_dump(run_dir: Path, *, ranks: Sequence[int] = (1, 2), **options: Any) -> Path:
    """Two segments of 4 and 7 rows, under versions 0 and 1, of each rank."""
    for i, rank in enumerate(ranks):
        FakeWorker(run_dir, rank=rank, first_env=2 * i, **options).go(4).seal().go(7, 1).finish()
    return run_dir


def edit(path: Path, change: Callable[[h5py.File], None], *, seal: bool = True) -> None:
    """Changes a segment and gives it the checksum of what it holds now: a lie, but not a flipped byte."""
    with h5py.File(path, "r+") as file:
        change(file)
    if seal:
        path.write_bytes(b"".join(seal_image(path.read_bytes()[USER_BLOCK:])))


def replace(file: h5py.File, name: str, values: np.ndarray) -> None:
    """Puts other values, of another shape perhaps, in the place of a dataset."""
    del file[name]
    file[name] = values
