"""Sums over a worker's present episodes, and how a resume brings the episodes back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from dppo.algo.returns import sums_behind
from dppo.data import EnvState, Episode, EpisodeProgress, LastEpisodes, Rollout, Told
from dppo.envs.leaves import are_equal
from dppo.envs.reasons import reason as reason_of
from dppo.seams import VectorEnv
from dppo.seeding import EpisodeSeeds
from dppo.training.told import plan_of, told_before

OTHER_REWARDS = "other rewards came of it; it remembers what the seed of an episode does not restore"


class EpisodeSums:
    """Sums over the present episodes of N environments, and the rows in which the episodes began.

    Args:
      first_env: global number of the first environment.
      gamma: discount of the running return whose deviation scales rewards.
      agents: number of environments side by side that are agents of one simulator (`VectorEnv.agents`).
    """

    def __init__(self, num_envs: int, first_env: int, gamma: float, agents: int = 1) -> None:
        self._first_env, self._gamma, self._agents = first_env, gamma, agents
        self.returns = np.zeros(num_envs)
        self.lengths = np.zeros(num_envs, np.int64)
        self.first_rows = np.zeros(num_envs, np.int64)
        """Rows in which the episodes began; those of agents, in which their simulator began."""
        self._has_ended = np.zeros(num_envs, bool)  # agents that wait for the others of their simulator
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
            self._has_ended[env] = True
            together = self._together(env)
            if self._has_ended[together].all():
                self._has_ended[together] = False
                last.last_rewards[together] = rewards[row, together]  # 0 of an agent that has ended before
                self.first_rows[together] = first_row + row + 1
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
        told: Told | None = None,
    ) -> tuple[np.ndarray, list[int], list[str]]:
        """Brings every environment back to where `states` (by global number) has it: by a reset, or the state that it
        has saved itself, and a replay of its actions since. For an environment between two episodes, the one before is
        replayed, to see whether the environment remembers anything, except if it saves its states. The agents of a
        simulator are restored, or not, together.

        Args:
          seeds: seeds of the episodes of `envs`.
          row: number of rows of noise that were drawn so far.
          first_new_episode: episode number for environments that `states` does not know, so that no seed comes twice.
          deadline: time.monotonic() after which environments begin a new episode instead.
          load: brings an environment to its saved state, and returns what about.json says of that.
          told: what the environments were told of the share of the run that is done, where they ask.

        Returns:
          Observations [N, *obs]; global numbers of the environments that could not be restored, whose episodes are cut
          and followed by new ones; a line on each of these environments, or one line on all.
        """
        n = envs.num_envs
        known = [states.get(self._first_env + i) for i in range(n)]
        for first in range(0, n, self._agents):
            if None in known[self._together(first)]:
                known[self._together(first)] = [None] * self._agents
        seeds.episodes[:] = [first_new_episode if s is None else s.episode for s in known]
        self.first_rows[:] = row
        problems: list[str] = []
        cut: list[int] = []
        curriculum, told = envs.curriculum, told or [(row - 1, 0.0)]
        if curriculum is not None:
            curriculum.tell(told_before(told, row))
        if not envs.replayable:
            cut = [s.env for s in known if s is not None]
            numbers = f"{self._first_env}..{self._first_env + n - 1}"
            why = f"environments {numbers} cannot be replayed ({envs.description}): their episodes are cut here"
            observations = envs.reset()
            if curriculum is not None:
                curriculum.tell(told[-1][1])
            return observations, cut, [why]
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
        # an agent that waits has the number of its next episode already
        playing = seeds.episodes.reshape(-1, self._agents).min(axis=1).repeat(self._agents)
        self._has_ended[:] = seeds.episodes > playing
        current = [seeds.of(i, episode) for i, episode in enumerate(playing.tolist())]
        if curriculum is not None:
            ends = [row - is_between for is_between in between]
            curriculum.plan([plan_of(told, end - len(a), len(a)) for a, end in zip(actions, ends, strict=True)])
        observations, failed = envs.replay(current, actions, deadline, rewards)
        if curriculum is not None:
            curriculum.tell(told_before(told, row))
        is_late = time.monotonic() > deadline
        for first in range(0, n, self._agents):
            together = self._together(first)
            here = [(i, s) for i, s in enumerate(known[together], first) if s is not None]
            if not here:
                continue
            if between[first]:
                observations[together] = envs.begin_episode(first)
            reasons = [unloaded.get(first)] + [
                self._why_not(observations[i], s, rewards[i], is_between=between[i], has_failed=i in failed,
                is_late=is_late, waits=bool(self._has_ended[i]), loaded=loaded.get(i)) for i, s in here
            ]  # fmt: skip
            if (reason := next((r for r in reasons if r is not None), None)) is not None:
                mine = [s.env for _, s in here]
                named = f"environment {mine[0]}" if len(mine) == 1 else f"simulator of {mine[0]}..{mine[-1]}"
                problems.append(f"{named} could not be replayed: {reason}; its episode is cut here")
                cut += mine
                seeds.episodes[together], self._has_ended[together] = playing[together], False
                observations[together] = envs.begin_episode(first)
                continue
            for i, state in here:
                self.first_rows[i] = row - (state.episode_length if i in loaded else len(state.actions))
                self.returns[i] = state.episode_return
                self.lengths[i] = state.episode_length
                self.discounted_returns[i] = state.discounted_return
        if curriculum is not None:
            curriculum.tell(told[-1][1])
        return observations.copy(), cut, problems

    def _together(self, env: int) -> slice:
        """Returns the environments that begin together with `env`: the agents of its simulator, or it alone."""
        first = env - env % self._agents
        return slice(first, first + self._agents)

    def _why_not(
        self,
        observation: np.ndarray,
        state: EnvState,
        rewards: np.ndarray,
        *,
        is_between: bool,
        has_failed: bool,
        is_late: bool,
        waits: bool,
        loaded: dict[str, Any] | None,
    ) -> str | None:
        """Returns why a replay has not led to `state`; None if it has.

        Args:
          observation, rewards: what came of the replay.
          is_between: whether the episode before was replayed, and a new one has begun.
          has_failed: whether the episode ended on the way, or time ran out.
          waits: whether this is an agent whose episode has ended before those of others.
          loaded: as for `_earned`.
        """
        if has_failed and not is_between:
            return "its episode ended early or time ran out"
        if has_failed and not is_late:
            return "its last episode ended early"
        if is_between and not has_failed and not _earned_last(rewards, state):
            return OTHER_REWARDS
        if not are_equal(observation, state.observation):
            return "another observation came of it"
        return OTHER_REWARDS if not (is_between or waits or self._earned(rewards, state, loaded)) else None

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
