"""The files of trajectory segments: their paths, their datasets, their checksums and their tables of episodes.

docs/trajectories.md explains every dataset.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dppo.data import EpisodeProgress
from dppo.files import fsync_folder, open_regular
from dppo.rundir import paths
from dppo.trajectories.hdf5 import FILE_BYTES, dataset_names, opened_hdf5

if TYPE_CHECKING:
    import h5py

FORMAT, FORMAT_VERSION = "dppo-trajectories", 1
USER_BLOCK = 512
_SEGMENT = re.compile(r"seg_(\d{6,})\.h5")
_RANK = re.compile(r"rank_(\d{5,})")
_MB = 2**20


# -- paths --------------------


def rank_folder(run_dir: Path, rank: int) -> Path:
    """Returns the folder that a worker writes to; `rank` is its rank at the start of the run."""
    return run_dir / paths.TRAJECTORIES / paths.rank_name(rank)


def run_dir_of(segment: Path) -> Path:
    """Returns the run directory of a segment: RUN of RUN/trajectories/rank_00001/seg_000000.h5."""
    return segment.parent.parent.parent


def segment_path(folder: Path, number: int) -> Path:
    return folder / f"seg_{number:06d}.h5"


def rank_folders(run_dir: Path) -> dict[int, Path]:
    """Returns {rank: its folder}, ascending."""
    return _numbered(run_dir / paths.TRAJECTORIES, _RANK)


def segment_files(folder: Path) -> dict[int, Path]:
    """Returns {number: visible segment}, ascending."""
    return _numbered(folder, _SEGMENT)


def _numbered(folder: Path, name: re.Pattern[str]) -> dict[int, Path]:
    found = {path: name.fullmatch(path.name) for path in folder.iterdir()} if folder.is_dir() else {}
    return dict(sorted((int(match[1]), path) for path, match in found.items() if match))


def next_segments(run_dir: Path) -> dict[int, int]:
    """Returns {rank: number of its next segment}, by the visible segments."""
    return {rank: max(segment_files(folder), default=-1) + 1 for rank, folder in rank_folders(run_dir).items()}


def set_aside_orphans(run_dir: Path, named: dict[int, int], attempt: int) -> int:
    """Moves segments that no checkpoint names to trajectories/orphaned, and removes half-written files. Returns the
    number of moved segments.
    """
    moved = 0
    for rank, folder in rank_folders(run_dir).items():
        for part in folder.glob("*.part"):
            part.unlink(missing_ok=True)
        target = run_dir / paths.ORPHANED / f"attempt_{attempt:05d}" / folder.name
        # the last one first: if the process is killed in between, the rest is still without a gap
        for number, path in reversed(segment_files(folder).items()):
            if number >= named.get(rank, 0):
                target.mkdir(parents=True, exist_ok=True)
                os.replace(path, target / path.name)
                moved += 1
        fsync_folder(folder)
    return moved


def end_row(folder: Path) -> int:
    """Returns the row after the last one of a rank's last readable segment; 0 where there is none."""
    return segments_until(folder, None)[1]


def segments_until(folder: Path, row: int | None) -> tuple[int, int]:
    """Returns (number + 1, row after) of the last readable segment that ends by `row`, else (0, 0); None: any row."""
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
    """Raises ValueError where a link leads trajectories out of the run directory: no reader follows it."""
    for folder in (run_dir / paths.TRAJECTORIES, *rank_folders(run_dir).values()):
        if folder.is_symlink():
            raise ValueError(
                f"{folder} is a link, and what reads a run stays in its directory: put a folder there, or give a"
                " --run-dir on that other disk"
            )


# -- what is in it --------------------

_I, _F, _D, _B = (np.dtype(t) for t in (np.int64, np.float32, np.float64, bool))


@dataclass(frozen=True, slots=True)
class Column:
    """A dataset of a segment."""

    name: str
    dtype: np.dtype[Any] | None
    """The type of the values; None: the environment's own type."""
    axes: str
    """The axes: T rows, N environments, F ends, E episodes, M entries of a mask; * for the axes of an observation or an
    action. Values of a Dict or a Tuple are a group, with a dataset for each leaf.
    """
    rollout: str = ""
    """Field of `Rollout` that holds the values; "": they are computed from other fields."""
    single: str = ""
    """Name in tables with a line per step. "": the column says which steps there are; no table or episode has it."""
    is_info: bool = False
    """Whether the column is about the policy: Minari and D4RL have it in `infos`, beside the transitions."""
    is_optional: bool = False
    """Whether a segment may lack the column: the writer leaves it out where a rollout has no values of it. Older
    segments may lack it, too, so that it needs no other FORMAT_VERSION.
    """

    @property
    def ndim(self) -> int | None:
        """The number of axes; None where it depends on the environment."""
        return None if self.axes.endswith("*") else len(self.axes)

    @property
    def absence(self) -> str | None:
        """The problem of a segment without the column; None where it may lack the column."""
        return None if self.is_optional else "is missing"


ATTRIBUTES: dict[str, type] = {
    "format": str, "format_version": int, "run_id": str, "attempt": int, "rank": int, "world_size": int,
    "segment": int, "first_env": int, "first_env_step": int, "skipped_rows": int, "every": int, "complete": bool,
    "dppo_version": str,
}  # fmt: skip
"""The root's attributes, in the order in which they are written."""
TEXTS = ("config_json", "env_spec", "observation_space", "action_space")
STEPS = (
    Column("row", _I, "T"),
    Column("observations", None, "TN*", "observations", "obs"),
    Column("actions", None, "TN*", "env_actions", "action"),
    Column("actions_raw", _F, "TN*", "actions", "action_raw", is_info=True, is_optional=True),
    Column("action_mask", _B, "TNM", "masks", "action_mask", is_info=True, is_optional=True),
    Column("rewards", _F, "TN", "rewards", "reward"),
    Column("terminations", _B, "TN", "terminations", "terminated"),
    Column("truncations", _B, "TN", "truncations", "truncated"),
    Column("valid", _B, "TN", "valid"),
    Column("log_probs", _F, "TN", "log_probs", "log_prob", is_info=True),
    Column("values", _F, "TN", "values", "value", is_info=True),
    Column("policy_version", _I, "T", "versions", "policy_version", is_info=True),
)
"""The columns of a step. To record another one, add a line: writer, validator, reader and exports use it. Older
segments lack the new column, and readers and validator refuse them unless it is optional: raise FORMAT_VERSION as well.
"""
FINAL = (Column("row", _I, "F"), Column("env", _I, "F"), Column("observations", None, "F*"))
EPISODES = {
    "id": _I, "env": _I, "start": _I, "length": _I, "offset": _I, "return": _D, "terminated": _B, "truncated": _B,
    "complete": _B, "seed": _I,
}  # fmt: skip


def written_steps() -> list[Column]:
    """Returns STEPS in the order in which format 1 has always been written."""
    return sorted(STEPS, key=lambda column: column.is_optional)


def held_steps() -> list[Column]:
    """Returns the columns that an episode has of each step."""
    return [column for column in STEPS if column.single]


def datasets() -> dict[str, Column]:
    """Returns {path: column} of all groups."""
    episodes = [Column(name, dtype, "E") for name, dtype in EPISODES.items()]
    groups: dict[str, Sequence[Column]] = {"steps": written_steps(), "final": FINAL, "episodes": episodes}
    return {f"{group}/{column.name}": column for group, columns in groups.items() for column in columns}


def datasets_in(file: h5py.File) -> dict[str, Column]:
    """Returns {path: column} of the datasets in a segment: instead of a Dict or a Tuple, those of its leaves. Includes
    the paths of columns that are missing.
    """
    import h5py

    found: dict[str, Column] = {}
    for path, column in datasets().items():
        item = file.get(path)
        is_tree = column.ndim is None and isinstance(item, h5py.Group)
        found |= dict.fromkeys([f"{path}/{leaf}" for leaf in dataset_names(item)] if is_tree else [], column) or {
            path: column
        }
    return found


def column_path(path: str) -> str:
    """Returns the path of a dataset's column: steps/observations of steps/observations/camera."""
    return "/".join(path.split("/")[:2])


def misfit(column: Column, values: h5py.Dataset | np.ndarray, *, is_leaf: bool = False) -> str | None:
    """Returns why values are not of a column's type and number of axes; None if they are. The leaves of a Dict or a
    Tuple may be integers, whatever the column's type.
    """
    dtype, ndim = column.dtype, column.ndim
    if values.dtype.kind not in "biuf" or (
        dtype is not None and values.dtype != dtype and not (is_leaf and values.dtype.kind in "biu")
    ):
        return f"is of type {values.dtype}{'' if dtype is None else f', not {dtype}'}"
    if values.ndim != ndim if ndim is not None else values.ndim < 1:
        return f"has the shape {values.shape}; {ndim or 'one or more'} axes are expected"
    return None


def check_types(file: h5py.File) -> None:
    """Raises ValueError for the first dataset that is missing, or not of its type and number of axes."""
    for name, column in datasets_in(file).items():
        problem = misfit(column, file[name], is_leaf=name != column_path(name)) if name in file else column.absence
        if problem is not None:
            raise ValueError(f"{name} {problem}")


# -- one file --------------------


def compression_filter(name: str) -> dict[str, Any]:
    """Returns arguments for h5py's create_dataset. Raises ValueError where the filter is not installed."""
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


def seal_image(image: bytes | memoryview) -> tuple[bytes, bytes | memoryview]:
    """Returns (user block with the checksum, HDF5 image), the content of a segment's file."""
    text = f"{FORMAT} {FORMAT_VERSION}\nsha256 {hashlib.sha256(image).hexdigest()}\n"
    return text.encode().ljust(USER_BLOCK, b"\n"), image


def checksum_problem(path: Path) -> str | None:
    """Returns why the bytes of a segment are not those that were written; None if they are."""
    digest = hashlib.sha256()
    with open_regular(path, run_dir_of(path), FILE_BYTES) as file:
        lines = file.read(USER_BLOCK).split(b"\n")
        while block := file.read(_MB):
            digest.update(block)
    if lines[0] != f"{FORMAT} {FORMAT_VERSION}".encode() or len(lines) < 2 or any(lines[2:]):
        return "its user block is not that of a segment"
    if lines[1] != f"sha256 {digest.hexdigest()}".encode():
        return "its bytes do not match its checksum"
    return None


# -- episodes of a segment --------------------


def episode_table(
    rewards: np.ndarray, terminations: np.ndarray, truncations: np.ndarray, valid: np.ndarray, progress: EpisodeProgress
) -> tuple[dict[str, np.ndarray], EpisodeProgress]:
    """Makes the datasets of episodes/, without the seeds, of T consecutive rows of N environments. Returns them and the
    progress after those rows.

    Args:
      progress: the progress before row 0.
    """
    rewards = np.where(valid, rewards.astype(np.float64), 0.0)
    rows: list[tuple[Any, ...]] = []
    ids, lengths, returns = progress.episodes.copy(), progress.lengths.copy(), progress.returns.copy()
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
    dtypes = {name: dtype for name, dtype in EPISODES.items() if name != "seed"}
    columns = zip(*rows, strict=True) if rows else [()] * len(dtypes)
    table = {name: np.array(c, dtype) for (name, dtype), c in zip(dtypes.items(), columns, strict=True)}
    return table, EpisodeProgress(ids, lengths, returns)


def merged_tables(tables: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Merges several tables into one, ordered by environment, then by start."""
    merged = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    order = np.lexsort((merged["start"], merged["env"]))
    return {name: values[order] for name, values in merged.items()}
