"""Tools of all exports of trajectory dumps: files that appear whole, and which steps are exported."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dppo.errors import UsageError
from dppo.files import replacing
from dppo.rundir import paths
from dppo.trajectories.catalogue import opened
from dppo.trajectories.episodes import Episode
from dppo.trajectories.format import TEXTS, rank_folders
from dppo.trajectories.names import AGENTS
from dppo.trajectories.reader import Trajectories

T = TypeVar("T")
BATCH_BYTES = 16 * 2**20
"""Bytes that are gathered before they are written: short episodes one by one would cost more than their steps."""


@dataclass(slots=True)
class Exported:
    """The result of an export. It counts what `chosen` yields."""

    path: Path
    episodes: int = 0
    steps: int = 0
    dropped_steps: int = 0
    """Last steps of unfinished episodes, whose next observation is not known."""

    def chosen(self, trajectories: Trajectories, *, only_transitions: bool) -> Iterator[tuple[Episode, int, int]]:
        """Yields (episode, number of its steps to export, number of its steps before the first recorded one). If
        `only_transitions`, steps without a next observation are left out. Raises UsageError where no step is left.
        """
        for episode, offset in zip(trajectories, trajectories.table()["offset"].tolist(), strict=True):
            length = len(episode.observations) - 1 if only_transitions else episode.length
            self.dropped_steps += episode.length - length
            if length:
                self.episodes, self.steps = self.episodes + 1, self.steps + length
                yield episode, length, offset
        if not self.episodes:
            raise UsageError(
                "no step is left to export: relax --complete-only, --min-return, --last or --ranks"
                " (`python -m dppo.trajectories info RUN` shows what there is)"
            )


def labels_of(trajectories: Trajectories) -> dict[str, str]:
    """Reads run_id, dppo_version, config_json, env_spec, observation_space, action_space and, of simulators of agents,
    agents from the first segment.
    """
    first = next(trajectories.segments())
    with opened(first.path) as file:
        texts = {name: file[name].asstr()[()] for name in (*TEXTS, AGENTS) if name in file}
    return {name: str(first.attrs[name]) for name in ("run_id", "dppo_version")} | texts


def refuse_existing(path: Path) -> None:
    try:
        exists = path.exists() or path.is_symlink()
    except OSError as error:  # such as a name that is too long
        raise UsageError(f"{path} cannot be written: {error.strerror}; choose another -o") from error
    if exists:
        raise UsageError(f"{path} exists already, and nothing is overwritten: remove it, or choose another -o")


def refuse_inside_dump(path: Path) -> None:
    """Raises UsageError for a path in a run's folder of trajectories, where a file would be taken for one of them."""
    for place in {path.absolute(), path.resolve()}:
        for folder in (place, *place.parents):
            if folder.name == paths.TRAJECTORIES and rank_folders(folder.parent):
                raise UsageError(f"{path} would lie within the trajectories {folder}: choose another -o")


@contextlib.contextmanager
def appearing(
    path: Path, refuse: Callable[[Path], None] = refuse_existing, *, is_folder: bool = False
) -> Iterator[Path]:
    """Yields a path to write to: an empty file or folder, which becomes `path` as `replacing` says. Makes the folders
    above it, and removes them if the block fails. Raises UsageError where `path` is refused, or its folder cannot be
    written to.
    """
    refuse(path)
    made: list[Path] = []
    try:
        with replacing(path, refuse) as part:
            try:
                made = [folder for folder in path.parents if not folder.exists()]
                path.parent.mkdir(parents=True, exist_ok=True)
                if is_folder:
                    part.mkdir()
                else:
                    part.touch(exist_ok=False)
            except OSError as error:
                raise UsageError(f"{path} cannot be written: {error.strerror}; choose another -o") from error
            yield part
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # not made yet, or somebody else has put something there
                folder.rmdir()
        raise


def in_batches(items: Iterable[tuple[int, T]], num_bytes: int = BATCH_BYTES) -> Iterator[list[T]]:
    """Yields lists of items in their order, not much larger than `num_bytes`. Items come as (size in bytes, item)."""
    held: list[T] = []
    size = 0
    for item_bytes, item in items:
        held.append(item)
        size += item_bytes
        if size >= num_bytes:
            yield held
            held, size = [], 0
    if held:
        yield held
