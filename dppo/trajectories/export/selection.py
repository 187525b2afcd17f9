"""Tools of all exports of trajectory dumps: files that appear whole, counts, and which steps are transitions."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from dppo.errors import UsageError
from dppo.files import fsync_folder
from dppo.rundir import paths
from dppo.trajectories.catalogue import opened
from dppo.trajectories.episodes import Episode
from dppo.trajectories.format import TEXTS, rank_folders
from dppo.trajectories.reader import Trajectories

T = TypeVar("T")
BATCH_BYTES = 16 * 2**20
"""Bytes that are gathered before they are written: short episodes one by one would cost more than their steps."""


class Exported(NamedTuple):
    """The result of an export."""

    path: Path
    episodes: int
    steps: int
    dropped_steps: int = 0
    """Last steps of unfinished episodes, whose next observation is not known."""


def transitions_of(episode: Episode) -> int:
    """Returns how many of an episode's steps have a next observation: all if it ended, else all but the last one."""
    return len(episode.observations) - 1


def with_offsets(trajectories: Trajectories) -> Iterator[tuple[Episode, int]]:
    """Yields each episode with the number of its steps before the first recorded one."""
    return zip(trajectories, trajectories.table()["offset"].tolist(), strict=True)


def labels_of(trajectories: Trajectories) -> dict[str, str]:
    """Reads run_id, dppo_version, config_json, env_spec, observation_space and action_space from the first segment."""
    first = next(trajectories.segments())
    with opened(first.path) as file:
        texts = {name: file[name].asstr()[()] for name in TEXTS}
    return {name: str(first.attrs[name]) for name in ("run_id", "dppo_version")} | texts


def nothing_to_export() -> UsageError:
    return UsageError(
        "no step is left to export: relax --complete-only, --min-return, --last or --ranks"
        " (`python -m dppo.trajectories info RUN` shows what there is)"
    )


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
def made_folder(folder: Path) -> Iterator[None]:
    """Makes `folder` with its parents. Removes those that it made if the block fails.

    Raises:
      UsageError: the folder cannot be made.
    """
    made: list[Path] = []
    try:
        try:
            made = [place for place in (folder, *folder.parents) if not place.exists()]
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{folder} cannot be written: {error.strerror}; choose another -o") from error
        yield
    except BaseException:
        for place in made:
            with contextlib.suppress(OSError):  # not made yet, or somebody else has put something there
                place.rmdir()
        raise


def temporary_name(folder: Path, suffix: str = ".part") -> Path:
    """Returns a path in `folder` with a random name, so that nothing is there yet."""
    return folder / f".dppo-{secrets.token_hex(8)}{suffix}"


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Yields a path to write to. The file gets the name `path` when the block ends, and is removed if it fails.

    Raises:
      UsageError: `path` exists, or its folder cannot be written to.
    """
    refuse_existing(path)
    part = temporary_name(path.parent)
    with made_folder(path.parent):
        try:
            part.touch(exist_ok=False)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}; choose another -o") from error
        try:
            yield part
            with open(part, "rb") as file:
                os.fsync(file.fileno())
            refuse_existing(path)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    fsync_folder(path.parent)


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
