"""Builds a segment in memory: the HDF5 image of a worker's rollouts."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dppo.trajectories.buffer import Part
from dppo.trajectories.chunks import write_dataset
from dppo.trajectories.format import (  # fmt: skip
    ATTRIBUTES,
    FINAL,
    FORMAT,
    FORMAT_VERSION,
    TEXTS,
    compression_filter,
    episode_table,
    merged_tables,
    rank_folder,
)
from dppo.trajectories.hdf5 import MAX_LEAVES, MAX_NESTING, RAW_BYTES
from dppo.trajectories.names import AGENTS, CASES

if TYPE_CHECKING:
    import h5py

MAX_BYTES = RAW_BYTES * 7 // 8
"""The most bytes of the steps in a segment; everything else in it is far smaller."""


@dataclass(frozen=True)
class Labels:
    """Values that are the same for all segments of a worker."""

    run_dir: Path
    run_id: str
    attempt: int
    rank: int
    world_size: int
    first_env: int
    config_json: str
    env_spec: str
    observation_space: str
    action_space: str
    version: str
    agents: tuple[str, ...] = ()
    """The names of a simulator's agents (`VectorEnv.agents`)."""
    cases: tuple[str, ...] = ()
    """The name of the case of each environment; (): there are no cases."""

    @property
    def folder(self) -> Path:
        return rank_folder(self.run_dir, self.rank)


class SegmentBuilder:
    """Builds the segments of a worker.

    Args:
      seed_of: (index of an environment, number of an episode) -> the episode's seed; None where episodes have none.
      every: of each `every` rollouts, one is recorded.
    """

    def __init__(
        self, labels: Labels, seed_of: Callable[[int, int], int] | None, *, every: int, compression: str
    ) -> None:
        self._labels, self._seed_of, self._every = labels, seed_of, every
        self._filter = compression_filter(compression)

    def build(self, parts: list[Part], number: int, end_before: int) -> memoryview:
        """Builds the HDF5 image of a segment. Empties the parts meanwhile, so that nothing is in memory three times.
        (With HDF5's own driver for memory it would be, because the driver's image can only be copied.)

        Args:
          number: the segment's number.
          end_before: the row after the last one of the segment before.
        """
        import h5py

        if (size := sum(part.num_bytes for part in parts)) > MAX_BYTES:
            raise ValueError(f"a rollout of {size:,} bytes is more than readers take: lower --horizon or --num-envs")
        _refuse_large_trees(parts[0])
        image = io.BytesIO()
        with h5py.File(image, "w", libver=("earliest", "v110")) as file:
            self._write_labels(file, parts[0], number, end_before)
            self._write_episodes(file, parts)
            self._write_finals(file, parts)
            for name in list(parts[0].steps):
                _make_groups(file, f"steps/{name}")
                write_dataset(file, f"steps/{name}", [part.steps.pop(name) for part in parts], self._filter)
        return image.getbuffer()

    def _write_labels(self, file: h5py.File, first: Part, number: int, end_before: int) -> None:
        labels, num_envs = self._labels, first.steps["rewards"].shape[1]
        values = {
            "format": FORMAT, "format_version": FORMAT_VERSION, "run_id": labels.run_id, "attempt": labels.attempt,
            "rank": labels.rank, "world_size": labels.world_size, "segment": number, "first_env": labels.first_env,
            "first_env_step": first.first_row * num_envs, "skipped_rows": first.first_row - end_before,
            "every": self._every, "complete": True, "dppo_version": labels.version,
        }  # fmt: skip
        file.attrs.update({name: values[name] for name in ATTRIBUTES})
        for name in TEXTS:
            file[name] = getattr(labels, name)
        if labels.agents:
            file[AGENTS] = json.dumps(labels.agents)
        if labels.cases:
            file[CASES] = json.dumps(labels.cases)

    def _write_episodes(self, file: h5py.File, parts: list[Part]) -> None:
        tables: list[dict[str, np.ndarray]] = []
        start = 0
        for run in _runs(parts):
            rewards, terminations, truncations, valid = (
                np.concatenate([part.steps[name] for part in run])
                for name in ("rewards", "terminations", "truncations", "valid")
            )
            table, _ = episode_table(rewards, terminations, truncations, valid, run[0].progress)
            if self._seed_of is None:  # its episodes have no numbers of their own
                table["id"] = run[0].first_row + table["start"] - table["offset"]
            table["start"] += start
            start += run[-1].end_row - run[0].first_row
            tables.append(table)
        merged = merged_tables(tables)
        seeds = [
            -1 if self._seed_of is None else self._seed_of(int(n), int(e))
            for n, e in zip(merged["env"], merged["id"], strict=True)
        ]
        for name, values in (merged | {"seed": np.array(seeds, np.int64)}).items():
            write_dataset(file, f"episodes/{name}", [values], self._filter)

    def _write_finals(self, file: h5py.File, parts: list[Part]) -> None:
        start = 0
        for part in parts:
            part.final["row"] = part.final["row"] + start
            start += part.end_row - part.first_row
        types = {column.name: column.dtype for column in FINAL}
        for name in parts[0].final:
            _make_groups(file, f"final/{name}")
            values = [np.asarray(part.final[name], types.get(name)) for part in parts]
            write_dataset(file, f"final/{name}", values, self._filter)


def _make_groups(file: h5py.File, path: str) -> None:
    """Makes the groups above a leaf of a Dict or a Tuple. They keep the order of the leaves."""
    above = path.split("/")[:-1]
    for end in range(2, len(above) + 1):
        if "/".join(above[:end]) not in file:
            file.create_group("/".join(above[:end]), track_order=True)


def _refuse_large_trees(part: Part) -> None:
    """Raises ValueError where readers would not take so many datasets, or so many groups within each other."""
    deepest = max(name.count("/") for name in part.steps)
    if deepest > MAX_NESTING or len(part.steps) > 2 * MAX_LEAVES:
        raise ValueError(
            f"{len(part.steps)} datasets, spaces {deepest} deep: readers take spaces of {MAX_LEAVES} leaves that are"
            f" {MAX_NESTING} deep; --wrappers can flatten them"
        )


def _runs(parts: list[Part]) -> list[list[Part]]:
    """Groups the parts, so that no row is missing within a group."""
    runs: list[list[Part]] = []
    for part in parts:
        if runs and runs[-1][-1].end_row == part.first_row:
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs
