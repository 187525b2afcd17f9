"""The arrays that travel between collecting and learning, with their shapes.

Axes: T rows (time), N environments of the rank, B samples of a minibatch, D numbers of an observation, K of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, get_origin, get_type_hints

import numpy as np


@dataclass(slots=True)
class Episode:
    """An episode that ended: where it ended, its undiscounted return and its number of transitions."""

    row: int
    """Row in which the episode ended, counted in the worker's whole history (not in the rollout)."""
    env: int
    """Global number of the environment."""
    episode_return: float
    length: int


@dataclass(slots=True)
class EpisodeProgress:
    """The present episodes of a worker's environments between two rows: numbers and transitions so far, [N] int64, and
    returns so far, [N] float64."""

    episodes: np.ndarray
    lengths: np.ndarray
    returns: np.ndarray


Told = list[tuple[int, float]]
"""(row, fraction): told before this row which share of the run is done (envs/curriculum.py)."""
ALL = slice(None)
ArrayType = tuple[tuple[int, ...], np.dtype[Any]]
"""Shape and type of one environment's part of a row."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a rollout: one entry for each row, or for each row and environment."""

    axes: str
    """The first axes: "TN", or "T" for an entry that all environments share."""
    dtype: type | None = None
    """The type of the one number in an entry; None: the policy or the environment decides shape and type."""
    first: Any = None
    """The value that a new rollout has; None: any."""


@dataclass(slots=True)
class Rollout:
    """T rows of N environments, as they were collected. All arrays are C-contiguous.

    This is the one table of what a row leaves behind. A new column is a line here, and the line of the collector that
    fills it; it is learnt from if `Minibatch` has a field of its name, and recorded if trajectories/format.py names it.
    """

    first_row: int
    """Number of row 0 in the worker's whole history."""
    observations: Annotated[np.ndarray, Column("TN")]
    """[T, N, *obs], raw, in the environment's own type."""
    inputs: Annotated[np.ndarray, Column("TN")]
    """[T, N, D] float32, the network's inputs: observations, normalised and flattened; or the raw observations."""
    masks: Annotated[np.ndarray, Column("TN")]
    """[T, N, M] bool: the legal actions; M is 0 where all always are. Segments call them action_mask."""
    actions: Annotated[np.ndarray, Column("TN")]
    """[T, N, *act] as sampled; Box actions in the policy's own units, not clipped. Segments call them actions_raw."""
    env_actions: Annotated[np.ndarray, Column("TN")]
    """[T, N, *act] as sent to the environment. Segments call them actions."""
    heads: Annotated[np.ndarray, Column("TN")]
    """[T, N, K] float32: parameters of the distribution that the action was drawn from."""
    states: Annotated[np.ndarray, Column("TN")]
    """[T, N, S] float32: the network's state before the step, 0 where an episode begins; S is 0 without memory."""
    rewards: Annotated[np.ndarray, Column("TN", np.float32)]
    """[T, N] float32, raw."""
    terminations: Annotated[np.ndarray, Column("TN", bool, first=False)]
    truncations: Annotated[np.ndarray, Column("TN", bool, first=False)]
    """[T, N] bool."""
    valid: Annotated[np.ndarray, Column("TN", bool, first=True)]
    """[T, N] bool: False for no transition: a native environment was reset, or an agent waited for the others."""
    log_probs: Annotated[np.ndarray, Column("TN", np.float32)]
    values: Annotated[np.ndarray, Column("TN", np.float32)]
    """[T, N] float32: the action's log-probability, and the critic's value of the observation."""
    next_values: Annotated[np.ndarray, Column("TN", np.float32)]
    """[T, N] float32: the critic's value of what truly came next, also after a time limit; 0 after a terminal state."""
    versions: Annotated[np.ndarray, Column("T", np.int64)]
    """[T] int64: version of the parameters that acted in a row. Segments call it policy_version."""
    final_rows: np.ndarray
    final_envs: np.ndarray
    """[F] int: the rows in which episodes ended, and their environments, by the index in the rank."""
    final_observations: np.ndarray
    """[F, *obs]: the true last observation of each of these episodes."""
    progress: EpisodeProgress
    """The episodes' progress before row 0."""
    episodes: list[Episode]
    """The episodes that ended, in the order of their last rows."""
    episodes_cut: list[int]
    """Global numbers of environments whose episode could not be restored, which is not counted: another one began."""
    told: Told

    @classmethod
    def blank(
        cls, first_row: int, rows: int, num_envs: int, types: Mapping[str, ArrayType], progress: EpisodeProgress
    ) -> Rollout:
        """Returns a rollout with room for `rows` rows, of which no episode has ended.

        Args:
          types: shape and type of an entry of each column that has no type of its own.
        """
        values: dict[str, np.ndarray] = {}
        for name, column in COLUMNS.items():
            shape, dtype = types[name] if column.dtype is None else ((), np.dtype(column.dtype))
            whole = (rows, num_envs, *shape) if column.axes == "TN" else (rows, *shape)
            values[name] = array = np.empty(whole, dtype)
            if column.first is not None:
                array.fill(column.first)
        none = np.empty(0, np.int64)
        shape, dtype = types["observations"]
        finals = {"final_rows": none, "final_envs": none, "final_observations": np.empty((0, *shape), dtype)}
        return cls(first_row=first_row, progress=progress, episodes=[], episodes_cut=[], told=[], **values, **finals)

    def cut(self, rows: int) -> None:
        """Keeps the first `rows` rows only, in which all ended episodes have ended."""
        for name in COLUMNS:
            setattr(self, name, getattr(self, name)[:rows])

    def joined(self, rest: Rollout) -> Rollout:
        """Returns this rollout, which was cut short, joined with `rest`, which continues where it was cut."""
        assert rest.first_row == self.first_row + self.num_rows
        values: dict[str, Any] = {}
        for name in self.__slots__:
            mine, others = getattr(self, name), getattr(rest, name)
            if name == "final_rows":
                others = others + self.num_rows
            if isinstance(mine, np.ndarray):
                values[name] = np.concatenate((mine, others))
            else:
                values[name] = mine + others if isinstance(mine, list) else mine
        return Rollout(**values)

    def all_steps(self, column: np.ndarray) -> np.ndarray:
        """Returns a column's entries by rows, [T N, ...] from [T, N, ...]: a view."""
        return column.reshape(self.rewards.size, *column.shape[2:])

    def valid_steps(self, *columns: np.ndarray, order: np.ndarray | slice = ALL) -> list[np.ndarray]:
        """Returns the columns' entries for valid transitions, [B, ...] from [T, N, ...], in `order` (of all steps);
        views if all are valid, in their own order."""
        steps, keep = [self.all_steps(column)[order] for column in columns], self.valid.reshape(-1)[order]
        return steps if keep.all() else [column[keep] for column in steps]

    @property
    def num_bytes(self) -> int:
        """The bytes of the columns; memory that two of them share counts once."""
        arrays = (getattr(self, name) for name in COLUMNS)
        return sum({array.ctypes.data: array.nbytes for array in arrays if array.size}.values())

    @property
    def num_rows(self) -> int:
        """T; smaller than the horizon if collection was cut short."""
        return int(self.rewards.shape[0])

    @property
    def num_steps(self) -> int:
        """Number of valid transitions."""
        return int(np.count_nonzero(self.valid))


COLUMNS: dict[str, Column] = {
    name: hint.__metadata__[0]
    for name, hint in get_type_hints(Rollout, include_extras=True).items()
    if get_origin(hint) is Annotated
}
"""The columns of a rollout, by name."""


@dataclass(slots=True)
class Minibatch:
    """B samples, as a loss sees them. A field that `Rollout` has, too, is taken from there."""

    inputs: np.ndarray
    """[B, D] float32; raw observations [B, *obs] for a network that takes these."""
    masks: np.ndarray
    states: np.ndarray
    """[B, M] bool and [B, S] float32."""
    firsts: np.ndarray
    """[B] bool: where the network's state is `states`, not what the sample before leaves (algo/sequences.py)."""
    actions: np.ndarray
    """[B, *act]."""
    heads: np.ndarray
    """[B, K] float32: the acting policy's head, for the exact KL."""
    log_probs: np.ndarray
    values: np.ndarray
    """[B] float32: log-probabilities under the acting policy, and values of its critic."""
    advantages: np.ndarray
    returns: np.ndarray
    """[B] float32; `returns` are the value targets."""

    @classmethod
    def of(cls, rollout: Rollout, order: np.ndarray | slice = ALL, **computed: np.ndarray) -> Minibatch:
        """Returns the valid steps of a rollout as samples, in `order` (of all steps). `computed` has [T, N] arrays: the
        fields that the rollout does not have, or other values of those that it has."""
        columns = [computed[n] if n in computed else getattr(rollout, n) for n in cls.__slots__]
        return cls(*rollout.valid_steps(*columns, order=order))

    def __len__(self) -> int:
        return len(self.log_probs)

    def __getitem__(self, index: np.ndarray | slice) -> Minibatch:
        """Returns the samples `index`: copies, or views if `index` is a slice."""
        if isinstance(index, slice):
            return Minibatch(*[array[index] for array in self.arrays()])
        return Minibatch(*[array.take(index, axis=0) for array in self.arrays()])

    def arrays(self) -> list[np.ndarray]:
        """Returns the fields, in their order; `Minibatch(*arrays)` is the inverse."""
        return [getattr(self, name) for name in self.__slots__]


class SavedState(NamedTuple):
    """A state that an environment has saved itself (rundir/states.py), before `row`, in the episode `episode`."""

    name: str
    row: int
    episode: int


@dataclass(slots=True)
class LastEpisodes:
    """The N episodes before the current ones. A resume compares them if the current ones have no step yet."""

    first_rows: np.ndarray
    """[N] int64, row in which each began; -1: there is none, or its row is not known."""
    returns: np.ndarray
    last_rewards: np.ndarray
    """[N] float64, returns, and rewards of the last steps."""

    @classmethod
    def unknown(cls, num_envs: int) -> LastEpisodes:
        return cls(np.full(num_envs, -1, np.int64), np.zeros(num_envs), np.zeros(num_envs))

    def copy(self) -> LastEpisodes:
        return LastEpisodes(self.first_rows.copy(), self.returns.copy(), self.last_rewards.copy())


@dataclass(slots=True)
class Report:
    """A worker's message to rank 0 about a rollout: counts, episodes, and where its environments are after the rollout.
    Rank 0 keeps the actions since each episode's start, which a resume replays.
    """

    worker: int
    first_env: int
    first_row: int
    env_steps: int
    episodes: list[Episode]
    env_actions: np.ndarray
    """[T, N, *act]; T may be 0."""
    episode_numbers: np.ndarray
    episode_first_rows: np.ndarray
    """[N] int64, number of each environment's current episode, and the row in which it began."""
    observations: np.ndarray
    """[N, *obs], the next observations to act on."""
    episode_returns: np.ndarray
    episode_lengths: np.ndarray
    discounted_returns: np.ndarray
    """[N] float64, int64, float64: returns and lengths of the current episodes so far; running discounted returns."""
    network_states: np.ndarray
    """[N, S] float32, the network's states before the next step."""
    last_episodes: LastEpisodes | None
    """The episodes before the current ones; None if no environment is between two episodes."""
    collect_s: float
    learn_s: float
    exchange_s: float
    """Seconds of waiting for other ranks, a part of learn_s; both are of the iteration before."""
    moment_sums: np.ndarray | None = None
    """Sums of the rollout about `moment_means`, in async; in sync they travel with the statistics."""
    moment_means: tuple[np.ndarray, np.ndarray] | None = None
    """The means about which moment sums are taken; in sync only before the first sums are merged, the same from all."""
    iteration: int = 0
    """Number of iterations that were finished when the rollout began, in sync."""
    episodes_cut: list[int] = field(default_factory=list)
    """Global numbers of environments whose episode could not be restored, as in `Rollout`."""
    env_seconds: tuple[float, ...] | None = None
    """Seconds in step and reset (envs/clock.py); None: not measured."""
    env_restarts: int = 0
    """How often an environment was made anew since the last report."""
    saved: list[SavedState | None] | None = None
    """The newest saved state of each current episode; None: the environments save none."""
    agents: int = 1
    """The number of agents of each simulator."""
    told: Told = field(default_factory=list)

    def __reduce__(self) -> tuple[type[Report], tuple[Any, ...]]:
        """Pickles a report, once in a rollout, in half the time of what a dataclass does by itself."""
        return Report, tuple([getattr(self, name) for name in self.__slots__])


@dataclass(slots=True)
class EnvState:
    """The place of an environment (global number `env`) within its episode, in a row of the worker's history."""

    env: int
    row: int
    episode: int
    """Number of the episode; with the run's seed it gives the episode's seed."""
    actions: np.ndarray
    """[L, *act], actions since the episode's start."""
    observation: np.ndarray
    """[*obs], the observation to which a replay of the actions must lead."""
    network_state: np.ndarray
    """[S] float32, the network's state before the next step; S is 0 without memory."""
    episode_return: float
    episode_length: int
    discounted_return: float
    last_actions: np.ndarray
    """[K, *act]: if the episode has no step yet, the actions of the episode before, except the last; else empty."""
    last_return: float
    last_reward: float
    """Return and last reward of the episode before; 0 if they are not compared."""
    saved: SavedState | None = None
    """A state to begin from, instead of the episode's start; `actions` are those since then."""
    told: np.ndarray = field(default_factory=lambda: np.empty((0, 2)))
    """[C, 2] float64: `Told` of the rows since the episodes of these actions began, with the fraction before that."""


@dataclass(slots=True)
class Batch:
    """A worker's rollout, ready for minibatches, and the statistics that the ranks have to add up first."""

    samples: Minibatch
    statistics: np.ndarray
    """[len(STATISTICS) + moments] float64: sums over this worker's samples, or over all samples after the exchange."""
    parts: tuple[tuple[int, int], ...]
    """(worker, number of samples) of the rollouts that `samples` joins, in this order: nearly always one."""
    stop: bool = False
    """Whether a worker of these samples knows that the run has ended."""

    @classmethod
    def joined(cls, batches: Sequence[Batch]) -> Batch:
        """Joins the batches of several workers, whose gradients one of them computes."""
        columns = zip(*(batch.samples.arrays() for batch in batches), strict=True)
        statistics = np.sum([batch.statistics for batch in batches], axis=0)
        samples, parts = Minibatch(*map(np.concatenate, columns)), tuple(p for batch in batches for p in batch.parts)
        return cls(samples, statistics, parts, stop=any(batch.stop for batch in batches))
