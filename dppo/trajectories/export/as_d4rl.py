"""Writes trajectory dumps as one flat HDF5 file with the names of D4RL, which offline learners read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from dppo.errors import UsageError
from dppo.trajectories.episodes import Episode
from dppo.trajectories.export.selection import Exported, appearing, in_batches, labels_of
from dppo.trajectories.format import compression_filter, held_steps
from dppo.trajectories.reader import Trajectories

CHUNK_BYTES = 2**18
_NAMES = {"log_probs": "action_log_probs"}
"""D4RL's names for infos, where they differ from the dump's."""


def to_d4rl(trajectories: Trajectories, path: Path | str) -> Exported:
    """Writes observations, actions, rewards, terminals, timeouts, next_observations [K, …], and infos/… beside them.

    The last step of an episode is a terminal or a timeout, never both: a step that is both terminated and truncated is
    a terminal. An unfinished episode loses its last step, whose next observation is not known, and ends with a timeout.
    `d3rlpy.dataset.MDPDataset(observations, actions, rewards, terminals, timeouts)` takes the arrays. Raises UsageError
    where `path` exists, there is nothing to export, or observations or actions are of a Dict or a Tuple.
    """
    done = Exported(Path(path))

    def columns() -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        for episode, count, _ in done.chosen(trajectories, only_transitions=True):
            arrays = _columns(episode, count)
            yield sum(a.nbytes for a in arrays.values()), arrays

    with appearing(done.path) as part, h5py.File(part, "w", libver=("earliest", "v110")) as file:
        for batch in in_batches(columns()):
            for name in batch[0]:
                _append(file, name, np.concatenate([arrays[name] for arrays in batch]))
        for name, text in labels_of(trajectories).items():
            file[f"metadata/{name}"] = text
    return done


def _columns(episode: Episode, count: int) -> dict[str, np.ndarray]:
    """Returns the columns of the episode's first `count` steps. Raises UsageError for those of a Dict or a Tuple."""
    for name, values in (("observations", episode.observations), ("actions", episode.actions)):
        if values.dtype.names is not None:
            raise UsageError(
                f"D4RL holds {name} as one array, and here they are of a Dict or a Tuple with the parts"
                f" {', '.join(values.dtype.names)}: export --to minari, or train with --wrappers that flatten them"
            )
    terminals = episode.terminations[:count].copy()
    timeouts = episode.truncations[:count] & ~terminals
    if not terminals[-1]:
        timeouts[-1] = True
    columns = {
        "observations": episode.observations[:count],
        "actions": episode.actions[:count],
        "rewards": episode.rewards[:count],
        "terminals": terminals,
        "timeouts": timeouts,
        "next_observations": episode.observations[1 : count + 1],
        "infos/rank": np.full(count, episode.rank),
        "infos/env": np.full(count, episode.env),
        "infos/episode": np.full(count, episode.id),
    }
    if episode.case is not None:
        columns["infos/case"] = np.full(count, episode.case, "S64")
    steps = episode.steps
    infos = [column.name for column in held_steps() if column.is_info and column.name in steps]
    return columns | {f"infos/{_NAMES.get(name, name)}": steps[name][:count] for name in infos}


def _append(file: h5py.File, name: str, data: np.ndarray) -> None:
    if name not in file:
        rows = max(1, min(16_384, CHUNK_BYTES // max(1, data[:1].nbytes)))
        shape, chunks, maxshape = ((n, *data.shape[1:]) for n in (0, rows, None))
        file.create_dataset(name, shape, data.dtype, chunks=chunks, maxshape=maxshape, **compression_filter("gzip"))
    dataset = file[name]
    dataset.resize(len(dataset) + len(data), axis=0)
    dataset[-len(data) :] = data
