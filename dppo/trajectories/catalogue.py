"""Finds where the steps of every episode of a dump lie, from the small tables of its segments alone.

A *piece* is the part of an episode that one segment holds. Pieces that follow each other without a gap form one
episode.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dppo.envs.leaves import from_leaves
from dppo.errors import RefusedFileError, UsageError
from dppo.files import open_regular
from dppo.trajectories.format import EPISODES, FORMAT, FORMAT_VERSION, check_types, run_dir_of
from dppo.trajectories.hdf5 import FILE_BYTES, ZSTD, dataset_names, opened_hdf5
from dppo.trajectories.names import agents_in, cases_in

SURPRISES = (
    OSError, KeyError, ValueError, RuntimeError, TypeError, IndexError, AttributeError, MemoryError, OverflowError,
    RecursionError,
)  # fmt: skip
"""Errors that h5py and NumPy raise for damaged files."""
REPAIR = "`python -m dppo.trajectories validate RUN` says what else is damaged"
_HEAD = 2**22
"""The number of bytes, from a segment's start, in which its texts lie: the bounds of an image's space are long."""


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Opens a segment for reading, also while a run still writes others. Raises UsageError where the file is no
    segment, or something in it cannot be read.
    """
    try:
        if has_endless_heap(path, _HEAD):
            raise ValueError("its texts are damaged")
        with opened_hdf5(path, run_dir_of(path)) as file:
            found = file.attrs.get("format"), file.attrs.get("format_version")
            if found != (FORMAT, FORMAT_VERSION):
                raise UsageError(f"{path} has format {found}, this dppo reads {(FORMAT, FORMAT_VERSION)}")
            yield file
    except UsageError:
        raise
    except RefusedFileError as error:
        raise UsageError(f"{one_line(error)} (`python -m dppo.trajectories validate RUN` says what else)") from error
    except SURPRISES as error:
        raise UsageError(f"{path} cannot be read: {one_line(error)}; {REPAIR}") from error


def gaps(numbers: Collection[int], end: int | None = None) -> list[tuple[int, int]]:
    """Returns (first, last) of each range that the numbers lack, from 0 to below `end` (default: the highest one)."""
    found, expected = [], 0
    for number in (*sorted(numbers), *(() if end is None else (end,))):
        if number > expected:
            found.append((expected, number - 1))
        expected = number + 1
    return found


def read(file: h5py.File, name: str, selection: Any = ()) -> np.ndarray:
    """Reads the values of a dataset, or a part of them; those of a Dict or a Tuple as one structured array. Raises
    UsageError where the values are compressed with zstd, and hdf5plugin is not installed.
    """
    dataset = file[name]
    if isinstance(dataset, h5py.Group):
        num_axes = 1 if name.startswith("final/") or (isinstance(selection, tuple) and selection) else 2
        named = {leaf: read(file, f"{name}/{leaf}", selection) for leaf in dataset_names(dataset)}
        return from_leaves(named, num_axes)
    plist = dataset.id.get_create_plist()
    if ZSTD in {plist.get_filter(i)[0] for i in range(plist.get_nfilters())} and not h5py.h5z.filter_avail(ZSTD):
        try:
            import hdf5plugin  # noqa: F401 (registers its filters)
        except ImportError as error:
            raise UsageError(
                f"{file.filename} is compressed with zstd, which needs hdf5plugin: pip install 'dppo[analysis]'"
            ) from error
    values: np.ndarray = dataset[selection]
    return values


def has_endless_heap(path: Path, length: int | None = None) -> bool:
    """Returns whether HDF5 would never finish reading a heap of texts: it takes zeros there for free space of size 0,
    and steps over that forever. Searches the first `length` bytes; None: all of the file.
    """
    with open_regular(path, max_bytes=FILE_BYTES) as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return False
        with mmap.mmap(file.fileno(), min(size, length or size), access=mmap.ACCESS_READ) as data:
            at = data.find(b"GCOL\1")
            while at >= 0:
                end = at + int.from_bytes(data[at + 8 : at + 16], "little")
                place = at + 16
                while place + 16 <= end and place < len(data):
                    number = int.from_bytes(data[place : place + 2], "little")
                    taken = int.from_bytes(data[place + 8 : place + 16], "little")
                    step = 16 + (taken + 7) // 8 * 8 if number else taken
                    if not step:
                        return True
                    place += step
                at = data.find(b"GCOL\1", at + 4)
    return False


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """Facts about a segment that are known without its steps."""

    path: Path
    rank: int
    number: int
    attempt: int
    first_env: int
    num_envs: int
    num_rows: int
    first_row: int
    end_row: int
    """The row after the last one."""
    num_bytes: int
    agents: tuple[str, ...] = ()
    """The names of a simulator's agents: the environment with the global number g is agent g % A."""
    cases: tuple[str, ...] = ()
    """The name of the case of each environment."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All episodes of a dump."""

    segments: list[SegmentInfo]
    """The segments, by rank and number."""
    pieces: dict[str, np.ndarray]
    """Columns [K], by segment: segment, index (of the environment in it), start, length, episode, is_last."""
    episodes: dict[str, np.ndarray]
    """Columns [E] of the episodes, by rank, last_row and env: rank, env (global), id, seed, first_row, last_row, offset
    (steps before the recorded ones), length (recorded steps), return, terminated, truncated, complete, attempt,
    first_version, last_version, last_segment; also agent and case, the names, where simulators have agents and the
    run has cases.
    """


def read_catalogue(files: Sequence[tuple[int, int, Path]]) -> Catalogue:
    """Makes the catalogue of segments (rank, number, path), in that order. One file is open at a time."""
    segments: list[SegmentInfo] = []
    tables: list[dict[str, np.ndarray]] = []
    for rank, number, path in files:
        with opened(path) as file:
            info, table = _light(file, path, rank, number)
        table["segment"] = np.full(len(table["id"]), len(segments))
        segments.append(info)
        tables.append(table)
    listed = {name: np.concatenate([t[name] for t in tables]) for name in tables[0]}
    return _stitched(segments, listed)


def _light(file: h5py.File, path: Path, rank: int, number: int) -> tuple[SegmentInfo, dict[str, np.ndarray]]:
    check_types(file)
    rows, versions = read(file, "steps/row"), read(file, "steps/policy_version")
    table = {name: read(file, f"episodes/{name}") for name in EPISODES if name != "complete"}
    first_env, attempt = int(file.attrs["first_env"]), int(file.attrs["attempt"])
    num_envs = int(file["steps/rewards"].shape[1])
    for name, most in (("env", num_envs - 1), ("start", len(rows) - 1), ("length", len(rows) - table["start"])):
        if (table[name] < (name == "length")).any() or (table[name] > most).any():
            raise ValueError(f"episodes/{name} holds what {len(rows)} rows of {num_envs} environments do not have")
    info = SegmentInfo(
        path, rank, number, attempt, first_env, num_envs, len(rows), int(rows[0]), int(rows[-1]) + 1,
        path.stat().st_size, agents_in(file), cases_in(file),
    )  # fmt: skip
    index, last = table.pop("env"), table["start"] + table["length"] - 1
    table |= {
        "index": index, "env": index + first_env, "rank": np.full(len(index), rank),
        "attempt": np.full(len(index), attempt), "first_row": rows[table["start"]], "last_row": rows[last],
        "first_version": versions[table["start"]], "last_version": versions[last],
    }  # fmt: skip
    return info, table


def _stitched(segments: list[SegmentInfo], listed: dict[str, np.ndarray]) -> Catalogue:
    """Joins the pieces of each episode: those of one environment and number, without a missing step between them."""
    order = np.lexsort((listed["start"], listed["segment"], listed["env"], listed["rank"]))
    p = {name: values[order] for name, values in listed.items()}
    ended = p["terminated"] | p["truncated"]
    before, after = slice(None, -1), slice(1, None)
    goes_on = ~ended[before] & (p["offset"][after] == p["offset"][before] + p["length"][before])
    for name in ("rank", "env", "id"):
        goes_on &= p[name][after] == p[name][before]
    begins, is_last = np.ones(len(order), bool), np.ones(len(order), bool)
    begins[after], is_last[before] = ~goes_on, ~goes_on
    firsts, lasts = np.flatnonzero(begins), np.flatnonzero(is_last)
    episodes = {name: p[name][firsts] for name in ("rank", "env", "id", "seed", "first_row", "offset", "first_version")}
    episodes |= {
        name: p[name][lasts] for name in ("last_row", "return", "terminated", "truncated", "attempt", "last_version")
    }
    episodes["last_segment"] = p["segment"][lasts]
    episodes["length"] = np.add.reduceat(p["length"], firsts)
    episodes["complete"] = ended[lasts] & (episodes["offset"] == 0)
    episodes |= _names(segments, episodes)

    in_order = np.lexsort((episodes["env"], episodes["last_row"], episodes["rank"]))
    pieces = {name: p[name] for name in ("segment", "index", "start", "length")}
    pieces |= {"episode": np.argsort(in_order)[np.cumsum(begins) - 1], "is_last": is_last}
    by_segment = np.argsort(pieces["segment"], kind="stable")
    return Catalogue(
        segments,
        {name: values[by_segment] for name, values in pieces.items()},
        {name: values[in_order] for name, values in episodes.items()},
    )


def _names(segments: list[SegmentInfo], episodes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the names of the episodes' agents and cases, as far as there are any; "" in segments without."""
    of = [
        (segments[number], env)
        for number, env in zip(*(episodes[n].tolist() for n in ("last_segment", "env")), strict=True)
    ]
    out = {}
    if any(s.agents for s in segments):
        out["agent"] = np.array([s.agents[env % len(s.agents)] if s.agents else "" for s, env in of], np.str_)
    if any(s.cases for s in segments):
        out["case"] = np.array([s.cases[env - s.first_env] if s.cases else "" for s, env in of], np.str_)
    return out
