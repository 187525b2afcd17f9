"""Trajectory dumps for notebooks: `dppo.open_trajectories(RUN)` gives whole episodes, however many segments hold them.

One file is open at a time, and no more than one segment is in memory beside the episodes that it leaves open.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dppo.errors import UsageError
from dppo.trajectories.catalogue import Catalogue, opened, read, read_catalogue
from dppo.trajectories.episodes import Episode, read_episodes
from dppo.trajectories.filters import Filter
from dppo.trajectories.format import held_steps, rank_folders, segment_files
from dppo.trajectories.unsealed import unsealed

if TYPE_CHECKING:
    import pandas
    import torch

TABLE = (
    "rank", "env", "id", "seed", "first_row", "last_row", "offset", "length", "return", "terminated", "truncated",
    "complete", "attempt",
)  # fmt: skip
"""Columns of `Trajectories.table`."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A file of a dump; it is open only while something is read."""

    path: Path
    rank: int
    number: int
    attempt: int
    attrs: dict[str, Any]
    """Root attributes, as in docs/trajectories.md."""

    def __getitem__(self, name: str) -> np.ndarray:
        """The values of steps/NAME, or of a dataset by its whole path: segment["final/row"]."""
        with opened(self.path) as file:
            return read(file, name if "/" in name else f"steps/{name}")

    @property
    def episodes(self) -> dict[str, np.ndarray]:
        """The table episodes/, as it is written: by environment, then by start."""
        with opened(self.path) as file:
            return {name: read(file, f"episodes/{name}") for name in file["episodes"]}


class _Dump:
    """The files of a run as they were when it was opened; what is known of them is read when it is first asked for."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        folders = rank_folders(run_dir)
        self.files = [(r, n, path) for r, folder in folders.items() for n, path in segment_files(folder).items()]
        if not self.files:
            empty = unsealed(run_dir)
            raise UsageError(
                empty.text
                if empty is not None
                else f"{run_dir} has no trajectories: no trajectories/rank_*/seg_*.h5; a run writes them with "
                "--trajectories.enabled"
            )
        self.ranks = sorted({rank for rank, _, _ in self.files})

    @cached_property
    def catalogue(self) -> Catalogue:
        return read_catalogue(self.files)

    @cached_property
    def still_open(self) -> np.ndarray:
        """[E] bool: has not ended, and is held up to its rank's last row."""
        e = self.catalogue.episodes
        end_rows = {s.rank: s.end_row for s in self.catalogue.segments}
        ends = np.array([end_rows[rank] for rank in e["rank"].tolist()], np.int64)
        mask: np.ndarray = ~(e["terminated"] | e["truncated"]) & (e["last_row"] + 1 == ends)
        return mask


class Trajectories:
    """Episodes of a dump, by rank and then by when they ended; `for episode in trajectories` walks through them."""

    def __init__(self, dump: _Dump, filters: tuple[Filter, ...] = ()) -> None:
        self._dump, self._filters = dump, filters

    def filter(
        self,
        *,
        complete_only: bool | None = None,
        min_return: float | None = None,
        last: int | None = None,
        ranks: Collection[int] | None = None,
        policy_version: tuple[int | None, int | None] | None = None,
    ) -> Trajectories:
        """Those of these episodes that pass all that is given.

        Args:
          complete_only: all steps are held.
          min_return: the return is at least this.
          last: so many of those that pass the rest: the ones that ended last over all ranks, by row, then environment.
            Those that have not ended yet count as the very last.
          ranks: whose.
          policy_version: (lowest, highest), both included, of all steps; None leaves an end open.
        """
        new = Filter(complete_only, min_return, last, ranks, policy_version)
        return self.chosen_by(new)

    def chosen_by(self, new: Filter) -> Trajectories:
        """Those of these episodes that pass the filter."""
        unknown = sorted(set(new.ranks or ()) - set(self._dump.ranks))
        if unknown:
            raise UsageError(
                f"ranks={unknown} have no trajectories in {self._dump.run_dir}; those of {self._dump.ranks} do"
            )
        return Trajectories(self._dump, (*self._filters, new))

    @cached_property
    def _chosen(self) -> np.ndarray:
        """Indices into the catalogue's episodes, ascending."""
        e = self._dump.catalogue.episodes
        chosen = np.arange(len(e["id"]))
        for one in self._filters:
            chosen = one.apply(chosen, e, self._dump.still_open)
        return chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __iter__(self) -> Iterator[Episode]:
        return self.episodes()

    def table(self) -> dict[str, np.ndarray]:
        """One value per episode, without its steps: rank, env, id, seed (-1: none), first_row, last_row, offset (steps
        before the first that is held), length (steps that are held), return, terminated, truncated, complete, attempt.
        """
        return {name: self._dump.catalogue.episodes[name][self._chosen] for name in TABLE}

    @property
    def catalogue(self) -> Catalogue:
        """Of the whole dump, whatever the filters."""
        return self._dump.catalogue

    def segments(self) -> Iterator[Segment]:
        """The files of the ranks that are asked for, by rank and number; other filters choose episodes, not files."""
        for rank, number, path in self._dump.files:
            if all(f.ranks is None or rank in f.ranks for f in self._filters):
                with opened(path) as file:
                    attrs = {name: _plain(value) for name, value in file.attrs.items()}
                yield Segment(path, rank, number, int(attrs["attempt"]), attrs)

    def episodes(self) -> Iterator[Episode]:
        """The episodes, read segment by segment."""
        return read_episodes(self._dump.catalogue, self._chosen)

    # -- all at once --------------------

    def to_numpy(self) -> dict[str, np.ndarray]:
        """All steps in one array each: observations, next_observations, has_next, actions, actions_raw (where there
        is), rewards, terminations, truncations, log_probs, values, policy_version, episode (0, 1, … in this order),
        rank, env, row.

        What came after the last step of an episode that has not ended is not known: `has_next` is false there, and
        next_observations holds NaN, or 0 of an integer type.
        """
        total = int(self._dump.catalogue.episodes["length"][self._chosen].sum())
        with opened(self._dump.files[0][2]) as file:
            first = file["steps"]
            names = [column.name for column in held_steps() if column.name in first]
            out = {name: np.empty((total, *first[name].shape[2:]), first[name].dtype) for name in names}
        filler = np.nan if out["observations"].dtype.kind == "f" else 0
        out["next_observations"] = np.full_like(out["observations"], filler)
        out["has_next"] = np.ones(total, bool)
        out |= {name: np.empty(total, np.int64) for name in ("episode", "rank", "env", "row")}
        start = 0
        for number, episode in enumerate(self):
            span = slice(start, start + episode.length)
            steps = episode.steps
            for name in names:
                out[name][span] = steps[name]
            following = episode.observations[1:]
            out["next_observations"][start : start + len(following)] = following
            out["has_next"][start + len(following) : span.stop] = False
            out["episode"][span], out["rank"][span], out["env"][span] = number, episode.rank, episode.env
            out["row"][span] = episode.first_row + np.arange(episode.length)
            start = span.stop
        return out

    def to_pandas(self) -> pandas.DataFrame:
        """One line per step, with the names of `to_numpy`; vectors as obs_0, obs_1, … and action_0, …; images as arrays
        in one column. Next observations are left out: they are those of the next line of the episode.
        """
        try:
            import pandas
        except ImportError as error:
            raise UsageError("to_pandas needs pandas: pip install 'dppo[analysis]'") from error
        columns: dict[str, Any] = {}
        short = {column.name: column.single for column in held_steps() if column.ndim is None}
        for name, values in self.to_numpy().items():
            if name in ("next_observations", "has_next"):
                continue
            if values.ndim == 1:
                columns[short.get(name, name)] = values
            elif values.ndim == 2:
                columns |= {f"{short[name]}_{i}": values[:, i] for i in range(values.shape[1])}
            else:
                columns[short[name]] = list(values)
        return pandas.DataFrame(columns)

    def to_torch(self) -> dict[str, torch.Tensor]:
        """The arrays of `to_numpy`, as tensors."""
        import torch

        return {name: torch.from_numpy(values) for name, values in self.to_numpy().items()}


def open_trajectories(
    run_dir: str | Path,
    *,
    complete_only: bool | None = None,
    min_return: float | None = None,
    last: int | None = None,
    ranks: Collection[int] | None = None,
    policy_version: tuple[int | None, int | None] | None = None,
) -> Trajectories:
    """The trajectories that a run has written so far; of the episodes those that `Trajectories.filter`, with the same
    keywords, leaves.

    Raises:
      UsageError: (a ValueError) where there are none.
    """
    wanted = Filter(complete_only, min_return, last, ranks, policy_version)
    return Trajectories(_Dump(Path(run_dir))).chosen_by(wanted)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
