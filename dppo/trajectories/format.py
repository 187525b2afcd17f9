"""Trajectory segments as files: where they are, how one is laid out, its checksum and its table of episodes.

docs/trajectories.md explains every dataset.
"""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dppo.data import EpisodeProgress
from dppo.files import fsync_folder, open_regular
from dppo.rundir import paths
from dppo.trajectories.hdf5 import FILE_BYTES, opened_hdf5

if TYPE_CHECKING:
    import h5py

FORMAT, FORMAT_VERSION = "dppo-trajectories", 1
USER_BLOCK = 512
CHUNK_ROWS, CHUNK_ROWS_IMAGE, SMALL_BYTES = 1024, 64, 4096
_SEGMENT = re.compile(r"seg_(\d{6,})\.h5")
_RANK = re.compile(r"rank_(\d{5,})")
_MB = 2**20


# -- paths --------------------


def rank_folder(run_dir: Path, rank: int) -> Path:
    """Where a worker writes; `rank` is the one that it had at the start of the run."""
    return run_dir / paths.TRAJECTORIES / paths.rank_name(rank)


def run_dir_of(segment: Path) -> Path:
    """The run directory of RUN/trajectories/rank_00001/seg_000000.h5."""
    return segment.parent.parent.parent


def segment_path(folder: Path, number: int) -> Path:
    return folder / f"seg_{number:06d}.h5"


def rank_folders(run_dir: Path) -> dict[int, Path]:
    """{rank: its folder}, ascending."""
    root = run_dir / paths.TRAJECTORIES
    found = {p: _RANK.fullmatch(p.name) for p in root.iterdir()} if root.is_dir() else {}
    return dict(sorted((int(match[1]), path) for path, match in found.items() if match))


def segment_files(folder: Path) -> dict[int, Path]:
    """{number: visible segment}, ascending."""
    found = {p: _SEGMENT.fullmatch(p.name) for p in folder.iterdir()} if folder.is_dir() else {}
    return dict(sorted((int(match[1]), path) for path, match in found.items() if match))


def next_segments(run_dir: Path) -> dict[int, int]:
    """{rank: number of its next segment}, by what is visible."""
    return {rank: max(segment_files(folder), default=-1) + 1 for rank, folder in rank_folders(run_dir).items()}


def set_aside_orphans(run_dir: Path, named: dict[int, int], attempt: int) -> int:
    """Moves what no checkpoint names to trajectories/orphaned, and removes what was half written. Returns how many
    segments were moved.
    """
    moved = 0
    for rank, folder in rank_folders(run_dir).items():
        for part in folder.glob("*.part"):
            part.unlink(missing_ok=True)
        target = run_dir / paths.ORPHANED / f"attempt_{attempt:05d}" / folder.name
        # the last one first: killed in between, what is left is still without a gap
        for number, path in reversed(segment_files(folder).items()):
            if number >= named.get(rank, 0):
                target.mkdir(parents=True, exist_ok=True)
                os.replace(path, target / path.name)
                moved += 1
        fsync_folder(folder)
    return moved


def end_row(folder: Path) -> int:
    """The row behind the last one of a rank's last segment; 0 where there is none that can be read."""
    return segments_until(folder, None)[1]


def segments_until(folder: Path, row: int | None) -> tuple[int, int]:
    """(number of the first segment that ends behind `row`, row behind the last one of those before); None: any row."""
    for number, path in reversed(segment_files(folder).items()):
        end = _end_row(path)
        if end is not None and (row is None or end <= row):
            return number + 1, end
    return 0, 0


def _end_row(path: Path) -> int | None:
    try:
        with opened_hdf5(path, run_dir_of(path)) as file:
            return int(file["steps/row"][-1]) + 1
    except (OSError, KeyError, ValueError, IndexError, TypeError, RuntimeError):
        return None


def refuse_links(run_dir: Path) -> None:
    """Raises ValueError where trajectories would be written to where no reader follows: out of the run directory."""
    for folder in (run_dir / paths.TRAJECTORIES, *rank_folders(run_dir).values()):
        if folder.is_symlink():
            raise ValueError(
                f"{folder} is a link, and what reads a run stays in its directory: put a folder there, or give a"
                " --run-dir on that other disk"
            )


# -- what is in it --------------------

_I, _F, _D, _B = (np.dtype(t) for t in (np.int64, np.float32, np.float64, bool))
_STEPS: dict[str, tuple[np.dtype[Any] | None, int | None]] = {
    "row": (_I, 1), "observations": (None, None), "actions": (None, None), "rewards": (_F, 2), "terminations": (_B, 2),
    "truncations": (_B, 2), "valid": (_B, 2), "log_probs": (_F, 2), "values": (_F, 2), "policy_version": (_I, 1),
}  # fmt: skip
"""Type and number of axes; None: any, of at least two."""
_FINAL: dict[str, tuple[np.dtype[Any] | None, int | None]] = {
    "row": (_I, 1), "env": (_I, 1), "observations": (None, None),
}  # fmt: skip
EPISODES = {
    "id": _I, "env": _I, "start": _I, "length": _I, "offset": _I, "return": _D, "terminated": _B, "truncated": _B,
    "complete": _B, "seed": _I,
}  # fmt: skip


def expected_datasets() -> dict[str, tuple[np.dtype[Any] | None, int | None]]:
    """{path: (type, number of axes)} of all groups; None: any type, at least two axes."""
    steps = {f"steps/{name}": how for name, how in _STEPS.items()} | {"steps/actions_raw": (_F, None)}
    final = {f"final/{name}": how for name, how in _FINAL.items()}
    return steps | final | {f"episodes/{name}": (dtype, 1) for name, dtype in EPISODES.items()}


def check_types(file: h5py.File) -> None:
    """Raises ValueError for the first dataset that is missing, or not of its type and number of axes."""
    for name, (dtype, ndim) in expected_datasets().items():
        if name not in file:
            if name == "steps/actions_raw":
                continue
            raise ValueError(f"{name} is missing")
        found = file[name]
        if found.dtype.kind not in "biuf" or (dtype is not None and found.dtype != dtype):
            raise ValueError(f"{name} is of type {found.dtype}{'' if dtype is None else f', not {dtype}'}")
        if found.ndim != ndim if ndim is not None else found.ndim < 1:
            raise ValueError(f"{name} has the shape {found.shape}; {ndim or 'one or more'} axes are expected")


# -- one file --------------------


def compression_filter(name: str) -> dict[str, Any]:
    """Arguments of h5py's create_dataset. Raises ValueError where the filter is not installed."""
    if name == "none":
        return {}
    if name == "gzip":
        return {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    assert name == "zstd", name
    try:
        import hdf5plugin
    except ImportError as error:
        raise ValueError("trajectories.compression=zstd needs hdf5plugin: pip install 'dppo[analysis]'") from error
    return {**hdf5plugin.Zstd(clevel=3), "shuffle": True}


def write_dataset(file: h5py.File, path: str, data: np.ndarray | list[np.ndarray], how: dict[str, Any]) -> None:
    """Of a group of the format: chunked by rows and environments; a small one as it is, for a chunk needs an index of
    several kilobytes.

    Args:
      data: or its parts, which are taken out of the list as they are written.
    """
    data = data if isinstance(data, list) else [data]
    length, rest = sum(map(len, data)), data[0].shape[1:]
    if sum(part.nbytes for part in data) <= SMALL_BYTES:
        file.create_dataset(path, data=np.concatenate(data))
        return
    rows = min(length, CHUNK_ROWS_IMAGE if len(rest) >= 4 else CHUNK_ROWS)
    each = rest if path.startswith("final/") else (*(1,) * (len(rest) > 0), *rest[1:])
    maxshape = (None, *rest)
    dataset = file.create_dataset(path, (length, *rest), data[0].dtype, chunks=(rows, *each), maxshape=maxshape, **how)
    data.reverse()
    start, slab = 0, data[0][:0]
    while data or len(slab):  # slabs of whole chunks, so that none is compressed twice, nor all in memory twice
        parts = [slab]
        while data and sum(map(len, parts)) < rows:
            parts.append(data.pop())
        joined = np.concatenate(parts)
        _write_rows(dataset, start, joined[:rows])
        start, slab = start + rows, joined[rows:]


def _write_rows(dataset: h5py.Dataset, start: int, values: np.ndarray) -> None:
    """A row of chunks; gzip is done here, for HDF5's own takes two to three times as long."""
    if dataset.compression != "gzip":
        dataset[start : start + len(values)] = values
        return
    shape = dataset.chunks
    if len(values) < shape[0]:  # the last ones: what lies beyond the dataset is nobody's
        values = np.concatenate((values, np.zeros((shape[0] - len(values), *values.shape[1:]), values.dtype)))
    if len(shape) == 1 or shape[1] == values.shape[1]:
        dataset.id.write_direct_chunk((start, *(0,) * (len(shape) - 1)), _deflated(values))
        return
    for n in range(values.shape[1]):
        dataset.id.write_direct_chunk((start, n, *(0,) * (len(shape) - 2)), _deflated(values[:, n]))


def _deflated(chunk: np.ndarray) -> bytes:
    """What HDF5's filters shuffle and deflate give to be read. What repeats in the shuffled bytes of floats are runs;
    zlib finds nothing else in them, however long it looks.
    """
    shuffled = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).reshape(-1, chunk.itemsize).T.tobytes()
    strategy = zlib.Z_RLE if chunk.dtype.kind == "f" else zlib.Z_DEFAULT_STRATEGY
    deflate = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
    return deflate.compress(shuffled) + deflate.flush()


def seal_image(image: bytes | memoryview) -> tuple[bytes, bytes | memoryview]:
    """(user block with the checksum, the HDF5 image itself): what a segment's file holds."""
    text = f"{FORMAT} {FORMAT_VERSION}\nsha256 {hashlib.sha256(image).hexdigest()}\n"
    return text.encode().ljust(USER_BLOCK, b"\n"), image


def checksum_problem(path: Path) -> str | None:
    """Why the bytes of a segment are not those that were written; None if they are."""
    digest = hashlib.sha256()
    with open_regular(path, max_bytes=FILE_BYTES) as file:
        lines = file.read(USER_BLOCK).split(b"\n")
        while block := file.read(_MB):
            digest.update(block)
    if lines[0] != f"{FORMAT} {FORMAT_VERSION}".encode() or len(lines) < 2 or any(lines[2:]):
        return "its user block is not that of a segment"
    if lines[1] != f"sha256 {digest.hexdigest()}".encode():
        return "its bytes do not match its checksum"
    return None


# -- episodes of a segment --------------------

_COLUMNS = {
    "id": np.int64, "env": np.int64, "start": np.int64, "length": np.int64, "offset": np.int64,
    "return": np.float64, "terminated": bool, "truncated": bool, "complete": bool,
}  # fmt: skip


def episode_table(
    rewards: np.ndarray, terminations: np.ndarray, truncations: np.ndarray, valid: np.ndarray, standing: EpisodeProgress
) -> tuple[dict[str, np.ndarray], EpisodeProgress]:
    """The datasets of episodes/, but for the seeds, of [T, N] steps in a row; and how environments stand after them.

    Args:
      standing: before row 0.
    """
    rewards = np.where(valid, rewards.astype(np.float64), 0.0)
    rows: list[tuple[Any, ...]] = []
    ids, lengths, returns = standing.episodes.copy(), standing.lengths.copy(), standing.returns.copy()
    for n in range(rewards.shape[1]):
        start = 0
        for end in [*np.flatnonzero(terminations[:, n] | truncations[:, n]).tolist(), None]:
            steps = start + np.flatnonzero(valid[start : None if end is None else end + 1, n])
            offset, length = int(lengths[n]), len(steps)
            returns[n] += rewards[steps, n].sum()
            lengths[n] += length
            if length:
                how = (False, False) if end is None else (bool(terminations[end, n]), bool(truncations[end, n]))
                complete = any(how) and not offset
                rows.append((ids[n], n, steps[0], length, offset, returns[n], *how, complete))
            if end is not None:
                ids[n], lengths[n], returns[n], start = ids[n] + 1, 0, 0.0, end + 1
    columns = zip(*rows, strict=True) if rows else [()] * len(_COLUMNS)
    table = {name: np.array(c, dtype) for (name, dtype), c in zip(_COLUMNS.items(), columns, strict=True)}
    return table, EpisodeProgress(ids, lengths, returns)
