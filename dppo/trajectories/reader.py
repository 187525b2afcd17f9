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
from dppo.trajectories.format import rank_folders, segment_files
from dppo.trajectories.unsealed import unsealed

if TYPE_CHECKING:
    import h5py
    import pandas
    import torch

TABLE = (
    "rank", "env", "id", "seed", "first_row", "last_row", "offset", "length", "return", "terminated", "truncated",
    "complete", "attempt",
)  # fmt: skip
"""Columns of `Trajectories.table`."""
_PER_STEP = (
    "observations", "actions", "actions_raw", "rewards", "terminations", "truncations", "log_probs", "values",
    "policy_version",
)  # fmt: skip
_NUMBERS = ("rank", "env", "id", "first_row", "attempt", "length")


@dataclass(frozen=True, slots=True)
class Episode:
    """What is held of an episode, in L steps without a gap; all of it where `complete`."""

    rank: int
    env: int
    """Global number of the environment."""
    id: int
    """Number of the episode in its environment; of environments without seeds of their own, the row it began in."""
    seed: int | None
    """What the environment was reset with; None where it has no seed of its own."""
    first_row: int
    """Of its rank's history, in which the first step that is held was made; the others follow row by row."""
    attempt: int
    """Of the run, that wrote its last step."""
    observations: np.ndarray
    """[L + 1, *obs] where it ended, with its true last one; [L, *obs] where it did not. Raw."""
    actions: np.ndarray
    """[L, *act] as sent to the environment."""
    actions_raw: np.ndarray | None
    """[L, *act] float32 as sampled, where that may differ."""
    rewards: np.ndarray
    """[L] float32, raw."""
    terminations: np.ndarray
    """[L] bool."""
    truncations: np.ndarray
    """[L] bool."""
    log_probs: np.ndarray
    """[L] float32, of the actions as sampled, under the policy that acted."""
    values: np.ndarray
    """[L] float32, in units of the normalised return."""
    policy_version: np.ndarray
    """[L] int64, of the parameters that acted."""
    episode_return: float
    """Sum of its raw rewards since it began, also of those that are not held."""
    length: int
    """L."""
    terminated: bool
    truncated: bool
    complete: bool
    """All its steps are held, from the first to the end."""


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


@dataclass(frozen=True, slots=True)
class Filter:
    """Which episodes are wanted; None: any."""

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
        """Those of the episodes `chosen` that pass, in their order."""
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
        unknown = sorted(set(ranks or ()) - set(self._dump.ranks))
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
        catalogue = self._dump.catalogue
        wanted = np.zeros(len(catalogue.episodes["id"]), bool)
        wanted[self._chosen] = True
        p = catalogue.pieces
        chosen = np.flatnonzero(wanted[p["episode"]])
        held: dict[int, list[dict[str, np.ndarray]]] = {}
        for number in np.unique(p["segment"][chosen]).tolist():
            here = chosen[p["segment"][chosen] == number]
            with opened(catalogue.segments[number].path) as file:
                for episode, steps in _steps(file, {name: p[name][here] for name in p}):
                    held.setdefault(episode, []).append(steps)
                ends = np.sort(p["episode"][here[p["is_last"][here]]])
                finals = _finals(file, catalogue, ends)
            for episode in ends.tolist():
                yield _assembled(catalogue.episodes, episode, held.pop(episode), finals.get(episode))

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
            out = {
                name: np.empty((total, *file[f"steps/{name}"].shape[2:]), file[f"steps/{name}"].dtype)
                for name in _PER_STEP
                if name in file["steps"]
            }
        filler = np.nan if out["observations"].dtype.kind == "f" else 0
        out["next_observations"] = np.full_like(out["observations"], filler)
        out["has_next"] = np.ones(total, bool)
        out |= {name: np.empty(total, np.int64) for name in ("episode", "rank", "env", "row")}
        start = 0
        for number, episode in enumerate(self):
            span = slice(start, start + episode.length)
            for name in _PER_STEP:
                if name in out:
                    out[name][span] = getattr(episode, name)[: episode.length]
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
        short = {"observations": "obs", "actions": "action", "actions_raw": "action_raw"}
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
    """The trajectories that a run has written so far; the arguments are those of `Trajectories.filter`.

    Raises:
      UsageError: (a ValueError) where there are none.
    """
    everything = Trajectories(_Dump(Path(run_dir)))
    return everything.filter(
        complete_only=complete_only, min_return=min_return, last=last, ranks=ranks, policy_version=policy_version
    )


def _steps(file: h5py.File, p: dict[str, np.ndarray]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """(episode, its steps here) of pieces of one segment. Chunks hold one environment each, so that is how they are
    read.
    """
    names = [name for name in _PER_STEP if name in file["steps"]]
    for index in np.unique(p["index"]).tolist():
        mine = np.flatnonzero(p["index"] == index)
        starts, stops = p["start"][mine], p["start"][mine] + p["length"][mine]
        first, last = int(starts.min()), int(stops.max())
        columns = {}
        for name in names:
            whole = file[f"steps/{name}"].ndim == 1
            columns[name] = read(file, f"steps/{name}", slice(first, last) if whole else (slice(first, last), index))
        for episode, start, stop in zip(p["episode"][mine].tolist(), starts - first, stops - first, strict=True):
            yield episode, {name: values[start:stop].copy() for name, values in columns.items()}


def _finals(file: h5py.File, catalogue: Catalogue, ends: np.ndarray) -> dict[int, np.ndarray]:
    """{episode: its true last observation} of those among `ends` that did end, all of them in this segment."""
    e = catalogue.episodes
    ended = ends[e["terminated"][ends] | e["truncated"][ends]]
    if not len(ended):
        return {}
    first_env = catalogue.segments[int(e["last_segment"][ended[0]])].first_env
    rows, envs = read(file, "steps/row")[read(file, "final/row")], read(file, "final/env") + first_env
    places = {key: i for i, key in enumerate(zip(rows.tolist(), envs.tolist(), strict=True))}
    wanted = [places[key] for key in zip(e["last_row"][ended].tolist(), e["env"][ended].tolist(), strict=True)]
    first = min(wanted)
    observations = read(file, "final/observations", slice(first, max(wanted) + 1))
    return {episode: observations[i - first] for episode, i in zip(ended.tolist(), wanted, strict=True)}


def _assembled(
    e: dict[str, np.ndarray], number: int, pieces: list[dict[str, np.ndarray]], final: np.ndarray | None
) -> Episode:
    def joined(name: str) -> np.ndarray:
        parts = [piece[name] for piece in pieces]
        if name == "observations" and final is not None:
            parts.append(final[None])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    seed = int(e["seed"][number])
    values: dict[str, Any] = {name: int(e[name][number]) for name in _NUMBERS}
    values |= {name: bool(e[name][number]) for name in ("terminated", "truncated", "complete")}
    values |= {name: joined(name) if name in pieces[0] else None for name in _PER_STEP}
    return Episode(**values, seed=None if seed == -1 else seed, episode_return=float(e["return"][number]))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
