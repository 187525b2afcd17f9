"""The actions since the present episodes of a worker's environments began, which bring the environments back."""

from __future__ import annotations

import numpy as np

from dppo.data import EnvState, LastEpisodes, Report, SavedState, Told
from dppo.training.told import as_array, merged, since, told_of


class Replay:
    """The replay of one worker's environments; chunks are never changed."""

    def __init__(self) -> None:
        self.chunks: tuple[tuple[int, np.ndarray], ...] = ()
        self.last: Report | None = None
        self._told: Told = []
        self._saved: tuple[int, list[EnvState]] = (0, [])

    def copy(self) -> Replay:
        """Returns a copy, which shares the chunks."""
        out = Replay()
        out.chunks, out.last, out._saved, out._told = self.chunks, self.last, self._saved, self._told
        return out

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known of these environments."""
        return self.last is None and not self._saved[1]

    @property
    def next_row(self) -> int:
        """The first row that the replay does not hold yet."""
        return self._saved[0] if self.last is None else self.last.first_row + len(self.last.env_actions)

    @property
    def saved_names(self) -> list[str]:
        """The names of the saved states that environments begin from."""
        if self.last is not None:
            return [state.name for state in self.last.saved or () if state is not None]
        return [env.saved.name for env in self._saved[1] if env.saved is not None]

    def extend(self, report: Report) -> None:
        """Adds a rollout. A rollout that was added before, because it was reported twice, changes nothing."""
        if self.last is not None and report.first_row < self.next_row:
            return
        firsts = report.episode_first_rows
        if report.last_episodes is not None:
            last = self._last_first_rows(report)
            firsts = np.where(last >= 0, last, firsts)
        starts = [first if s is None else s.row for first, s in zip(firsts, self._saved_states(report), strict=True)]
        oldest = int(min(starts))
        chunks = (*self.chunks, (report.first_row, report.env_actions))
        self.chunks = tuple((row, a) for row, a in chunks if len(a) and row + len(a) > oldest)
        self._told = since(merged(self._told, report.told), oldest)
        self.last = report

    @staticmethod
    def _saved_states(report: Report) -> list[SavedState | None]:
        return [None] * len(report.episode_numbers) if report.saved is None else report.saved

    @staticmethod
    def _last_first_rows(report: Report) -> np.ndarray:
        """Returns [N] int: the row in which the episode before began, for environments whose present episode has no
        step yet; -1 for the others, and if the row is not known.
        """
        if report.last_episodes is None:
            return np.full(len(report.episode_first_rows), -1)
        next_row = report.first_row + len(report.env_actions)
        return np.where(report.episode_first_rows == next_row, report.last_episodes.first_rows, -1)

    def start_from(self, row: int, envs: list[EnvState]) -> None:
        """Takes over the replays of a checkpoint: one chunk that ends at `row`, as long as the longest episode."""
        self._saved, self._told = (row, envs), told_of(envs, row)
        longest = max((len(e.actions) for e in envs), default=0)
        if longest:
            template = next(e.actions for e in envs if len(e.actions))
            chunk = np.zeros((longest, len(envs), *template.shape[1:]), template.dtype)
            for i, e in enumerate(envs):
                if len(e.actions):
                    chunk[longest - len(e.actions) :, i] = e.actions
            self.chunks = ((row - longest, chunk),)

    def states(self) -> tuple[int, list[EnvState]]:
        """Returns the number of rows so far, and the state of each environment."""
        report = self.last
        if report is None:
            return self._saved
        row = report.first_row + len(report.env_actions)
        n, last_first_rows = len(report.episode_numbers), self._last_first_rows(report)
        last = report.last_episodes or LastEpisodes.unknown(n)
        is_between, saved = last_first_rows >= 0, self._saved_states(report)
        starts = [int(f) if s is None else s.row for f, s in zip(report.episode_first_rows, saved, strict=True)]
        return row, [
            EnvState(
                report.first_env + i,
                row,
                int(report.episode_numbers[i]),
                self._actions(i, starts[i], row),
                np.asarray(report.observations[i]),
                report.network_states[i],
                float(report.episode_returns[i]),
                int(report.episode_lengths[i]),
                float(report.discounted_returns[i]),
                self._actions(i, int(last_first_rows[i]) if is_between[i] else row, row - 1),
                float(last.returns[i] * is_between[i]),
                float(last.last_rewards[i] * is_between[i]),
                saved[i],
                as_array(since(self._told, int(last_first_rows[i]) if is_between[i] else starts[i])),
            )
            for i in range(n)
        ]

    def _actions(self, i: int, first_row: int, end_row: int) -> np.ndarray:
        """Returns the actions [L, *act] of environment `i`, from row `first_row` up to, but without, `end_row`."""
        parts = [
            a[max(0, first_row - row) : max(0, end_row - row), i] for row, a in self.chunks if row + len(a) > first_row
        ]
        if parts:
            return np.concatenate(parts)
        return self.chunks[0][1][:0, i] if self.chunks else np.empty((0,), np.int64)
