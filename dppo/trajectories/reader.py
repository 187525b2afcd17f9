"""Reads trajectory dumps, for notebooks: `dppo.open_trajectories(RUN)` gives whole episodes, also across segments.

One file is open at a time. Memory holds at most one segment and the episodes that this segment leaves unfinished.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dppo.envs.leaves import as_leaves
from dppo.errors import UsageError
from dppo.trajectories.catalogue import Catalogue, opened, read, read_catalogue
from dppo.trajectories.episodes import Episode, read_episodes
from dppo.trajectories.flat import flat_columns, singles, unique
from dppo.trajectories.format import held_steps, rank_folders, segment_files
from dppo.trajectories.unsealed import unsealed

if TYPE_CHECKING:
    import pandas
    import torch

TABLE = (
    "rank", "env", "agent", "case", "id", "seed", "first_row", "last_row", "offset", "length", "return", "terminated",
    "truncated", "complete", "attempt",
)  # fmt: skip
"""Columns of `Trajectories.table`; agent is there where agents share a simulator, case where the run has cases."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A file of a dump; it is open only while it is read."""

    path: Path
    rank: int
    number: int
    attempt: int
    attrs: dict[str, Any]
    """Root attributes, as in docs/trajectories.md."""

    def __getitem__(self, name: str) -> np.ndarray:
        """Reads the values of steps/NAME, or of a dataset by its whole path: segment["final/row"]."""
        with opened(self.path) as file:
            return read(file, name if "/" in name else f"steps/{name}")

    @property
    def episodes(self) -> dict[str, np.ndarray]:
        """The table episodes/, as it is written: by environment, then by start."""
        with opened(self.path) as file:
            return {name: read(file, f"episodes/{name}") for name in file["episodes"]}


class _Dump:
    """The files of a run's dump, as they were when it was opened; their content is read on first use."""

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
        """[E] bool: whether the episode has not ended, and is recorded up to its rank's last row."""
        e = self.catalogue.episodes
        end_rows = {s.rank: s.end_row for s in self.catalogue.segments}
        ends = np.array([end_rows[rank] for rank in e["rank"].tolist()], np.int64)
        mask: np.ndarray = ~(e["terminated"] | e["truncated"]) & (e["last_row"] + 1 == ends)
        return mask


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions that the chosen episodes meet; None: no condition."""

    complete_only: bool | None = None
    min_return: float | None = None
    last: int | None = None
    ranks: Collection[int] | None = None
    policy_version: tuple[int | None, int | None] | None = None

    def __post_init__(self) -> None:
        if self.last is not None and self.last < 1:
            raise ValueError(f"last={self.last} must be at least 1; leave it out for all episodes")
        if self.policy_version is not None and len(self.policy_version) != 2:
            raise ValueError(f"policy_version={self.policy_version} must be (lowest, highest); None leaves an end open")

    def apply(self, chosen: np.ndarray, e: dict[str, np.ndarray], still_open: np.ndarray) -> np.ndarray:
        """Returns those of the indices `chosen` whose episodes pass, in their order."""
        passes = np.ones(len(chosen), bool)
        if self.complete_only:
            passes &= e["complete"][chosen]
        if self.min_return is not None:
            passes &= e["return"][chosen] >= self.min_return
        if self.ranks is not None:
            passes &= np.isin(e["rank"][chosen], list(self.ranks))
        lowest, highest = self.policy_version or (None, None)
        if lowest is not None:
            passes &= e["first_version"][chosen] >= lowest
        if highest is not None:
            passes &= e["last_version"][chosen] <= highest
        chosen = chosen[passes]
        if self.last is not None:
            order = np.lexsort((e["env"][chosen], e["last_row"][chosen], still_open[chosen]))
            chosen = np.sort(chosen[order[-self.last :]])
        return chosen


class Trajectories:
    """Episodes of a dump, by rank and then by their ends; `for episode in trajectories` iterates over them."""

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
        """Returns the episodes that meet all given conditions.

        Args:
          complete_only: whether all steps must be recorded.
          min_return: the lowest return that an episode may have.
          last: the number of episodes to keep of those that meet the other conditions: the ones that ended last over
            all ranks, by row, then environment. Episodes that have not ended yet count as the very last.
          ranks: the ranks that wrote the episodes.
          policy_version: (lowest, highest) version that steps may have, both included; None leaves an end open.
        """
        new = Filter(complete_only, min_return, last, ranks, policy_version)
        unknown = sorted(set(ranks or ()) - set(self._dump.ranks))
        if unknown:
            raise UsageError(
                f"ranks={unknown} have no trajectories in {self._dump.run_dir}; those of {self._dump.ranks} do"
            )
        return Trajectories(self._dump, (*self._filters, new))

    @cached_property
    def _chosen(self) -> np.ndarray:
        """The indices of the chosen episodes in the catalogue, ascending."""
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
        """Returns columns of one value per episode: rank, env, agent (where agents share a simulator), case (where
        the run has cases), id, seed (-1: none), first_row, last_row, offset (steps before the first recorded one),
        length (recorded steps), return, terminated, truncated, complete, attempt.
        """
        e = self._dump.catalogue.episodes
        return {name: e[name][self._chosen] for name in TABLE if name in e}

    @property
    def catalogue(self) -> Catalogue:
        """The catalogue of the whole dump, without the filters."""
        return self._dump.catalogue

    def segments(self) -> Iterator[Segment]:
        """Yields the files of the chosen ranks, by rank and number; other filters choose episodes, not files."""
        for rank, number, path in self._dump.files:
            if all(f.ranks is None or rank in f.ranks for f in self._filters):
                with opened(path) as file:
                    attrs = {name: _plain(value) for name, value in file.attrs.items()}
                yield Segment(path, rank, number, int(attrs["attempt"]), attrs)

    def episodes(self) -> Iterator[Episode]:
        """Reads the episodes, segment by segment."""
        return read_episodes(self._dump.catalogue, self._chosen)

    # -- all at once --------------------

    def to_numpy(self) -> dict[str, np.ndarray]:
        """Returns all steps, with one array each for observations, next_observations, has_next, actions, actions_raw
        and action_mask (where there are any), rewards, terminations, truncations, log_probs, values, policy_version,
        episode (0, 1, … in this order), rank, env, row. Values of a Dict or a Tuple are one structured array.

        The observation after the last step of an unfinished episode is not known: `has_next` is false there, and
        next_observations holds NaN, or 0 of an integer type.
        """
        total = int(self._dump.catalogue.episodes["length"][self._chosen].sum())
        with opened(self._dump.files[0][2]) as file:
            names = [column.name for column in held_steps() if column.name in file["steps"]]
            none = {name: read(file, f"steps/{name}", slice(0, 0)) for name in names}
            out = {name: np.zeros((total, *values.shape[2:]), values.dtype) for name, values in none.items()}
        out["next_observations"] = np.zeros_like(out["observations"])
        for leaf in as_leaves(out["next_observations"]).values():
            leaf[...] = np.nan if leaf.dtype.kind == "f" else 0
        out["has_next"] = np.ones(total, bool)
        out |= {name: np.empty(total, np.int64) for name in ("episode", "rank", "env", "row")}
        start = 0
        for number, episode in enumerate(self):
            span = slice(start, start + episode.length)
            steps = episode.steps
            for name in steps.keys() & names:
                out[name][span] = steps[name]
            following = episode.observations[1:]
            out["next_observations"][start : start + len(following)] = following
            out["has_next"][start + len(following) : span.stop] = False
            out["episode"][span], out["rank"][span], out["env"][span] = number, episode.rank, episode.env
            out["row"][span] = episode.first_row + np.arange(episode.length)
            start = span.stop
        return out

    def to_pandas(self) -> pandas.DataFrame:
        """Returns one line per step, with the names of `to_numpy`, and agent and case as in `table`; vectors as obs_0,
        obs_1, … and action_0, …; images as arrays in one column; the leaves of a Dict or a Tuple as obs_camera, …. Next
        observations are left out: the episode's next line has them.
        """
        try:
            import pandas
        except ImportError as error:
            raise UsageError("to_pandas needs pandas: pip install 'dppo[analysis]'") from error
        columns: list[tuple[str, Any]] = []
        short = {column.name: column.single for column in held_steps() if column.ndim != 2}
        arrays, table = self.to_numpy(), self.table()
        for name in ("agent", "case"):
            if name in table:
                columns.append((name, pandas.Categorical(table[name][arrays["episode"]])))
        for name, whole in arrays.items():
            if name in ("next_observations", "has_next"):
                continue
            for single, values in singles(short.get(name, name), whole):
                is_image = values.ndim > 2
                columns += [(single, list(values))] if is_image else flat_columns(single, values)
        return pandas.DataFrame(unique(columns))

    def to_torch(self) -> dict[str, torch.Tensor]:
        """Returns the arrays of `to_numpy` as tensors; instead of those of a Dict or a Tuple, `observations/camera`, …:
        one for each leaf.
        """
        import torch

        return {
            f"{name}/{leaf}".removesuffix("/"): torch.from_numpy(np.ascontiguousarray(values))
            for name, whole in self.to_numpy().items()
            for leaf, values in as_leaves(whole).items()
        }


def open_trajectories(
    run_dir: str | Path,
    *,
    complete_only: bool | None = None,
    min_return: float | None = None,
    last: int | None = None,
    ranks: Collection[int] | None = None,
    policy_version: tuple[int | None, int | None] | None = None,
) -> Trajectories:
    """Opens the trajectories that a run has written so far. The keywords choose episodes, as in `Trajectories.filter`.
    Raises UsageError where there are no trajectories (a UsageError is a ValueError).
    """
    return Trajectories(_Dump(Path(run_dir))).filter(
        complete_only=complete_only, min_return=min_return, last=last, ranks=ranks, policy_version=policy_version
    )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
