"""Sums over a worker's present episodes, and how a resume brings the episodes back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from dppo.algo.returns import sums_behind
from dppo.data import EnvState, Episode, EpisodeProgress, LastEpisodes, Rollout
from dppo.envs.leaves import are_equal
from dppo.envs.reasons import reason as reason_of
from dppo.seams import VectorEnv
from dppo.seeding import EpisodeSeeds

OTHER_REWARDS = "other rewards came of it; it remembers what the seed of an episode does not restore"


class EpisodeSums:
    """Sums over the present episodes of N environments, and the rows in which the episodes began.

    Args:
      first_env: global number of the first environment.
      gamma: discount of the running return whose deviation scales rewards.
    """

    def __init__(self, num_envs: int, first_env: int, gamma: float) -> None:
        self._first_env, self._gamma = first_env, gamma
        self.returns = np.zeros(num_envs)
        self.lengths = np.zeros(num_envs, np.int64)
        self.first_rows = np.zeros(num_envs, np.int64)
        """Rows in which the episodes began."""
        self.discounted_returns = np.zeros(num_envs)
        self.last = LastEpisodes.unknown(num_envs)
        self._discounted = 0, np.empty((0, num_envs))  # first row of the rollout asked for last, and its result

    def progress(self, numbers: np.ndarray) -> EpisodeProgress:
        """Returns a copy of how far the episodes with these `numbers` [N] are."""
        return EpisodeProgress(numbers.copy(), self.lengths.copy(), self.returns.copy())

    def count(
        self,
        first_row: int,
        rewards: np.ndarray,
        terminations: np.ndarray,
        truncations: np.ndarray,
        valid: np.ndarray,
        final_rows: np.ndarray,
        final_envs: np.ndarray,
    ) -> list[Episode]:
        """Returns the episodes that ended, in the order of their last rows; keeps the sums of the other episodes."""
        episodes: list[Episode] = []
        if not len(rewards):
            return episodes
        dones = terminations | truncations
        returns = sums_behind(rewards, dones, 1.0, self.returns)
        lengths = sums_behind(valid, dones, 1.0, self.lengths)
        for row, env in zip(final_rows.tolist(), final_envs.tolist(), strict=True):
            ended = first_row + row, self._first_env + env, float(returns[row, env]), int(lengths[row, env])
            episodes.append(Episode(*ended))
            last = self.last
            last.first_rows[env], last.returns[env] = self.first_rows[env], ended[2]
            last.last_rewards[env] = rewards[row, env]
            self.first_rows[env] = first_row + row + 1
        goes_on = ~dones[-1]
        self.returns, self.lengths = returns[-1] * goes_on, (lengths[-1] * goes_on).astype(np.int64)
        return episodes

    def discount(self, rollout: Rollout) -> np.ndarray:
        """Returns [T, N] float64 running discounted returns of the last rollout; moves the running sums."""
        first_row, known = self._discounted
        if first_row != rollout.first_row:
            known = known[:0]
        new = slice(len(known), None)  # no row if it is asked again, some rows if a kept rollout was continued
        dones = rollout.terminations[new] | rollout.truncations[new]
        out = sums_behind(rollout.rewards[new], dones, self._gamma, self.discounted_returns)
        if len(out):
            self.discounted_returns = out[-1] * ~dones[-1]
        out = np.concatenate((known, out)) if len(known) else out
        self._discounted = rollout.first_row, out
        return out

    def restore(
        self,
        envs: VectorEnv,
        seeds: EpisodeSeeds,
        states: dict[int, EnvState],
        row: int,
        first_new_episode: int,
        deadline: float,
        load: Callable[[EnvState], dict[str, Any]] | None = None,
    ) -> tuple[np.ndarray, list[int], list[str]]:
        """Brings every environment back to where `states` (by global number) has it: by a reset, or the state that it
        has saved itself, and a replay of its actions since. For an environment between two episodes, the one before is
        replayed, to see whether the environment remembers anything, except if it saves its states.

        Args:
          seeds: seeds of the episodes of `envs`.
          row: number of rows of noise that were drawn so far.
          first_new_episode: episode number for environments that `states` does not know, so that no seed comes twice.
          deadline: time.monotonic() after which environments begin a new episode instead.
          load: brings an environment to its saved state, and returns what about.json says of that.

        Returns:
          Observations [N, *obs]; global numbers of the environments that could not be restored, whose episodes are cut
          and followed by new ones; a line on each of these environments, or one line on all.
        """
        n = envs.num_envs
        known = [states.get(self._first_env + i) for i in range(n)]
        seeds.episodes[:] = [first_new_episode if s is None else s.episode for s in known]
        self.first_rows[:] = row
        problems: list[str] = []
        cut: list[int] = []
        if not envs.replayable:
            cut = [s.env for s in known if s is not None]
            numbers = f"{self._first_env}..{self._first_env + n - 1}"
            why = f"environments {numbers} cannot be replayed ({envs.description}): their episodes are cut here"
            return envs.reset(), cut, [why]
        rewards: list[np.ndarray] = []
        empty = np.empty((0,), np.int64)
        between = [s is not None and len(s.last_actions) > 0 for s in known]
        seeds.episodes -= between
        actions = [
            empty if s is None else s.last_actions if is_between else s.actions
            for s, is_between in zip(known, between, strict=True)
        ]
        loaded: dict[int, dict[str, Any]] = {}
        unloaded: dict[int, str] = {}
        for i, state in enumerate(known):
            if state is not None and state.saved is not None:
                try:
                    if load is None:
                        raise ValueError("it saves its state no more")
                    loaded[i] = load(state)
                except Exception as error:  # of the user's, or a file that is not there any more
                    unloaded[i], actions[i] = f"its state cannot be loaded: {reason_of(error)}", empty
        observations, failed = envs.replay(seeds.current(), actions, deadline, rewards)
        is_late = time.monotonic() > deadline
        for i, state in enumerate(known):
            if state is None:
                continue
            reason = unloaded.get(i)
            if reason is not None:
                pass
            elif between[i]:
                observations[i] = envs.begin_episode(i)
                if i in failed:
                    reason = None if is_late else "its last episode ended early"
                elif not _earned_last(rewards[i], state):
                    reason = OTHER_REWARDS
            elif i in failed:
                reason = "its episode ended early or time ran out"
            if reason is None and not are_equal(observations[i], state.observation):
                reason = "another observation came of it"
            if reason is None and not between[i] and not self._earned(rewards[i], state, loaded.get(i)):
                reason = OTHER_REWARDS
            if reason is not None:
                problems.append(f"environment {state.env} could not be replayed: {reason}; its episode is cut here")
                cut.append(state.env)
                observations[i] = envs.begin_episode(i)
                continue
            self.first_rows[i] = row - (state.episode_length if i in loaded else len(state.actions))
            self.returns[i] = state.episode_return
            self.lengths[i] = state.episode_length
            self.discounted_returns[i] = state.discounted_return
        return observations.copy(), cut, problems

    def _earned(self, rewards: np.ndarray, state: EnvState, loaded: dict[str, Any] | None) -> bool:
        """Returns whether `rewards` [L] float64 of a replay, from the episode's start or from the state that was
        `loaded`, add up to the saved sums, but for the order of the additions. The discounted sum detects rewards that
        come in another order.
        """
        steps = len(rewards)
        discounted = rewards.astype(np.float32) * self._gamma ** np.arange(steps - 1.0, -1.0, -1.0)
        if loaded is not None:
            rewards = np.append(rewards, loaded["episode_return"])
            discounted = np.append(discounted, loaded["discounted_return"] * self._gamma**steps)
        return _are_same(rewards, state.episode_return) and _are_same(discounted, state.discounted_return)


def _earned_last(rewards: np.ndarray, state: EnvState) -> bool:
    """Returns whether `rewards` [K] float64 of a replay and the saved last reward add up to the saved return, as in
    `_earned`.
    """
    terms = np.append(rewards, state.last_reward)
    return bool(_are_same(terms, state.last_return))


def _are_same(terms: np.ndarray, total: float) -> bool:
    """Returns whether `terms` add up to `total`, but for the order of the additions."""
    return bool(abs(terms.sum() - total) <= 4 * len(terms) * np.finfo(np.float64).eps * np.abs(terms).sum())
