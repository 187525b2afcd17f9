"""What travels between collecting and learning: arrays, with a legend of their shapes.

Axes: T rows (time), N environments of the rank, B samples of a minibatch, D numbers of an observation, K numbers that
parametrise the action distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np


@dataclass(slots=True)
class Episode:
    """An episode that ended: where, and what it was worth."""

    row: int
    """Row of the worker's whole history (not of the rollout) in which it ended."""
    env: int
    """Global number of the environment."""
    episode_return: float
    """Undiscounted sum of raw rewards."""
    length: int
    """Transitions."""


@dataclass(slots=True)
class EpisodeProgress:
    """How a worker's environments stand between two rows: their present episodes, [N] each."""

    episodes: np.ndarray
    """int64, numbers."""
    lengths: np.ndarray
    """int64, transitions so far."""
    returns: np.ndarray
    """float64, so far."""


@dataclass(slots=True)
class Rollout:
    """T rows of N environments, as they were lived through. All arrays are C-contiguous.

    `Collector._complete` makes it, and gives the fields in this order.
    """

    first_row: int
    """Number of row 0 in the worker's whole history."""
    observations: np.ndarray
    """[T, N, *obs] in the environment's own type, raw."""
    inputs: np.ndarray
    """[T, N, D] float32, what the network saw: normalised and flattened."""
    actions: np.ndarray
    """[T, N, *act] as sampled; Box actions in the policy's own units, not clipped. Segments call them actions_raw."""
    env_actions: np.ndarray
    """[T, N, *act] as sent to the environment. Segments call them actions."""
    rewards: np.ndarray
    """[T, N] float32, raw."""
    terminations: np.ndarray
    """[T, N] bool."""
    truncations: np.ndarray
    """[T, N] bool."""
    valid: np.ndarray
    """[T, N] bool: False for a row that a native environment spent on a reset; it is no transition."""
    heads: np.ndarray
    """[T, N, K] float32: parameters of the distribution that the action was drawn from."""
    log_probs: np.ndarray
    """[T, N] float32: log-probability of the action."""
    values: np.ndarray
    """[T, N] float32: the critic's value of the observation."""
    next_values: np.ndarray
    """[T, N] float32: its value of what truly came next (also where a time limit cut the episode); 0 after a terminal
    state.
    """
    final_rows: np.ndarray
    """[F] int: rows in which an episode ended."""
    final_envs: np.ndarray
    """[F] int: the environment of each of these episodes, by its index in the rank."""
    final_observations: np.ndarray
    """[F, *obs]: the true last observation of each."""
    versions: np.ndarray
    """[T] int64: version of the parameters that acted in a row. Segments call it policy_version."""
    progress: EpisodeProgress
    """Before row 0."""
    episodes: list[Episode] = field(default_factory=list)
    episodes_cut: list[int] = field(default_factory=list)
    """Global numbers of environments whose episode could not be restored: it came to nothing, and another began in row
    0.
    """

    def joined(self, rest: Rollout) -> Rollout:
        """This rollout, which was cut short, and the one that goes on where it was cut."""
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

    @property
    def num_rows(self) -> int:
        """T; smaller than the horizon where collection was cut short."""
        return int(self.rewards.shape[0])

    @property
    def num_steps(self) -> int:
        """Valid transitions."""
        return int(np.count_nonzero(self.valid))


@dataclass(slots=True)
class Minibatch:
    """B samples, as a loss sees them."""

    inputs: np.ndarray
    """[B, D] float32."""
    actions: np.ndarray
    """[B, *act]."""
    heads: np.ndarray
    """[B, K] float32: the acting policy's head, for the exact KL."""
    log_probs: np.ndarray
    """[B] float32: of the acting policy."""
    values: np.ndarray
    """[B] float32: of the acting policy's critic."""
    advantages: np.ndarray
    """[B] float32."""
    returns: np.ndarray
    """[B] float32: the value targets."""

    def __len__(self) -> int:
        return len(self.log_probs)

    def __getitem__(self, index: np.ndarray | slice) -> Minibatch:
        """The samples `index`, copied; views of a slice."""
        if isinstance(index, slice):
            return Minibatch(*[array[index] for array in self.arrays()])
        return Minibatch(*[array.take(index, axis=0) for array in self.arrays()])

    def arrays(self) -> list[np.ndarray]:
        """The fields, in their order; `Minibatch(*arrays)` is the inverse."""
        return [
            self.inputs, self.actions, self.heads, self.log_probs, self.values, self.advantages, self.returns,
        ]  # fmt: skip


@dataclass(slots=True)
class LastEpisodes:
    """Of N environments, the episodes before their current ones; what a resume compares where those have no step yet.

    first_rows: [N] int64, row in which each began; -1: there is none, or it is not known.
    returns: [N] float64.
    last_rewards: [N] float64, of their last steps.
    """

    first_rows: np.ndarray
    returns: np.ndarray
    last_rewards: np.ndarray

    @classmethod
    def unknown(cls, num_envs: int) -> LastEpisodes:
        return cls(np.full(num_envs, -1, np.int64), np.zeros(num_envs), np.zeros(num_envs))

    def copy(self) -> LastEpisodes:
        return LastEpisodes(self.first_rows.copy(), self.returns.copy(), self.last_rewards.copy())


@dataclass(slots=True)
class Report:
    """What a worker tells rank 0 of a rollout: counts, episodes, and where its environments stand after it.

    The actions are only those of this rollout; rank 0 keeps the history since each episode's start, which is what a
    resume replays.
    """

    worker: int
    first_env: int
    first_row: int
    env_steps: int
    episodes: list[Episode]
    env_actions: np.ndarray
    """[T, N, *act], T may be 0."""
    episode_numbers: np.ndarray
    """[N] int64, number of each environment's current episode."""
    episode_first_rows: np.ndarray
    """[N] int64, row in which it began."""
    observations: np.ndarray
    """[N, *obs], the next to act on."""
    episode_returns: np.ndarray
    """[N] float64, so far."""
    episode_lengths: np.ndarray
    """[N] int64, so far."""
    discounted_returns: np.ndarray
    """[N] float64, the running discounted return."""
    last_episodes: LastEpisodes | None
    """Of the environments, before their current ones; None where no environment is between two episodes."""
    collect_s: float
    learn_s: float
    """Of the iteration before."""
    exchange_s: float
    """Of the iteration before: waiting for other ranks, a part of learn_s."""
    moment_sums: np.ndarray | None = None
    """Async: sums of the rollout about the means that follow; in sync they travel with the statistics."""
    moment_means: tuple[np.ndarray, np.ndarray] | None = None
    """In sync only before the first sums are merged: what all workers have taken them about."""
    iteration: int = 0
    """Sync: iterations that were finished when it was begun."""
    episodes_cut: list[int] = field(default_factory=list)
    """As in `Rollout`."""

    def __reduce__(self) -> tuple[type[Report], tuple[Any, ...]]:
        """Pickled once in a rollout: half the time of what a dataclass does by itself."""
        return Report, tuple([getattr(self, name) for name in self.__slots__])


@dataclass(slots=True)
class EnvState:
    """Where one environment stands, so that it can be brought there again."""

    env: int
    """Global number."""
    row: int
    """Row of its worker's history."""
    episode: int
    """Number of the episode; with the run's seed it gives the episode's seed."""
    actions: np.ndarray
    """[L, *act] since the episode's start."""
    observation: np.ndarray
    """[*obs], what replaying them must lead to."""
    episode_return: float
    episode_length: int
    discounted_return: float
    last_actions: np.ndarray
    """[K, *act]: where the episode has no step yet, those of the one before, but for its last; else empty."""
    last_return: float
    """Of that episode; 0 where none is compared."""
    last_reward: float
    """Of its last step."""


NO_ENVS = np.empty(0, np.intp)
NO_ENVS.setflags(write=False)  # shared by every row in which nothing ended


@dataclass(slots=True)
class Step:
    """One row of N environments: what came of one action in each.

    The arrays are not for the caller to write to. They outlive the next `step` and are overwritten by the one
    after that: "this observation" and "the next" may be held together, a whole rollout of them may not.
    `final_*` are never overwritten.
    """

    observations: np.ndarray
    """[N, *obs], the space's dtype: those to act on next. Where an episode ended, already the first of the
    next one (in a native NEXT_STEP environment still the last of the old one: the next row is its reset)."""
    rewards: np.ndarray
    """[N] float32 or float64."""
    terminations: np.ndarray
    """[N] bool: the episode reached an end of the task; nothing is to be earned after it."""
    truncations: np.ndarray
    """[N] bool: the episode was cut, as a rule by a time limit; its value goes on. Both can be true."""
    final_envs: np.ndarray
    """[F] intp, ascending: the environments whose episode ended in this row. Nearly always empty."""
    final_observations: np.ndarray
    """[F, *obs]: their true last observations."""
    valid: np.ndarray | None = None
    """[N] bool, None for all: false where a NEXT_STEP environment was reset instead: not a transition."""


@dataclass(slots=True)
class Batch:
    """A worker's rollout, ready for minibatches, and what the ranks have to add up first."""

    samples: Minibatch
    statistics: np.ndarray
    """[len(STATISTICS) + moments] float64, sums over this worker's samples; once the workers have met, over all."""
    parts: tuple[tuple[int, int], ...]
    """(worker, samples) of the rollouts that `samples` joins, in its order: nearly always one."""
    stop: bool = False
    """A worker whose samples these are knows that the run has ended."""

    @classmethod
    def joined(cls, batches: Sequence[Batch]) -> Batch:
        """Of several workers, whose gradients one of them computes."""
        columns = zip(*(batch.samples.arrays() for batch in batches), strict=True)
        statistics = np.sum([batch.statistics for batch in batches], axis=0)
        parts = tuple(part for batch in batches for part in batch.parts)
        stop = any(batch.stop for batch in batches)
        return cls(Minibatch(*(np.concatenate(column) for column in columns)), statistics, parts, stop)


class Sealed(NamedTuple):
    """A worker's answer to `TrajectoryWriter.seal`, or its account of what went wrong meanwhile."""

    rank: int
    row: int | None
    """That was asked for; None: nobody asked."""
    next_segment: int | None
    """Segments below it hold all rows before `row` that could be written; None: a later row is in one already."""
    end_row: int = 0
    """Behind the last row in them."""
    problem: str | None = None
    """What is not written, and why; told once."""
    failed: bool = False
    """It is an error, not a limit that was set."""
    refusal: str | None = None
    """What the disk says, which is asked again; "": it has taken everything."""
