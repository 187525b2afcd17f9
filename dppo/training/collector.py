"""Collects rollouts: steps a worker's environments with the policy and keeps what happened.

This is the hot path: a row costs one environment step, one normalisation, one forward pass of the policy's tower and
one sample. `Collector._complete` computes log-probabilities and values afterwards, for the whole rollout at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dppo.cluster.timeline import Timeline
from dppo.data import EnvState, Report, Rollout, Told
from dppo.envs.env_list import EnvList
from dppo.envs.leaves import as_leaves
from dppo.models.policy import ActorCritic
from dppo.seams import VectorEnv
from dppo.seeding import ActionNoise, EpisodeSeeds
from dppo.training.env_states import StateSaver
from dppo.training.episode_sums import EpisodeSums
from dppo.training.told import told_before, told_of

_FEW = 8
"""Numbers that a message shows; more would take many lines."""


class Collector:
    """A worker's environments with their present episodes, and the streams of random numbers for them.

    Args:
      envs: N environments with the global numbers first_env, first_env + 1, …
      seeds: seeds of the environments' episodes; `envs` was made with `seeds.next`.
      noise: random numbers for action sampling.
      gamma: discount of the running return whose deviation scales rewards.
      saver: has the environments save their own states; None: they are replayed.
    """

    def __init__(
        self,
        envs: VectorEnv,
        policy: ActorCritic,
        seeds: EpisodeSeeds,
        noise: ActionNoise,
        worker: int,
        first_env: int,
        gamma: float,
        saver: StateSaver | None = None,
    ) -> None:
        self.envs, self.policy = envs, policy
        self._seeds, self._noise = seeds, noise
        self.worker, self.first_env = worker, first_env
        self.row = 0
        self._sums = EpisodeSums(envs.num_envs, first_env, gamma, max(1, len(envs.agents)))
        self._observations: np.ndarray | None = None
        self._states = policy.first_states(envs.num_envs)
        self._cut: list[int] = []  # environments whose episode could not be restored; reported with the next rollout
        self.last: Rollout | None = None
        self.last_iteration = 0
        self._restarts = envs.restarts
        self._kept: Rollout | None = None
        self._kept_whole, self._saver = False, saver
        self.timeline: Timeline | None = None
        """Notes what this rank does; None: nobody asks."""
        self._fraction: float | None = None
        self._told: Told = []  # for the next rollout

    def collect(
        self,
        horizon: int,
        version: int,
        interrupt: Callable[[], bool] | None = None,
        iteration: int = 0,
        enough: Callable[[], bool] | None = None,
    ) -> Rollout:
        """Collects up to `horizon` rows. Continues a rollout that was kept.

        Args:
          interrupt: called before each row; True ends the rollout there.
          enough: also called before each row, but only from a quarter of the horizon on; True ends the rollout there.

        Raises:
          FloatingPointError: an observation or reward is not finite; the text names row and environment.
        """
        kept, self._kept = self._kept, None
        least = -(-horizon // 4) if enough is not None else horizon
        if kept is None:
            rollout = self._collect(horizon, version, interrupt, least, enough)
        elif kept.num_rows < horizon and not self._kept_whole:
            rows = kept.num_rows
            rollout = kept.joined(self._collect(horizon - rows, version, interrupt, max(0, least - rows), enough))
        else:
            rollout = kept
        self.last, self.last_iteration = rollout, iteration
        return rollout

    def tell(self, fraction_done: float) -> None:
        """Tells the environments, if they ask, which share of the run is done, from the next row on."""
        curriculum = self.envs.curriculum
        if curriculum is not None and fraction_done != self._fraction:
            # before the first reset it holds for the row before the first one, too, in which others are reset
            self._told.append((self.row - (self._observations is None), fraction_done))
            curriculum.tell(fraction_done)
            self._fraction = fraction_done

    def first_observation(self) -> np.ndarray:
        """Returns [*obs], the next observation of the first environment. A new run resets environments here."""
        if self._observations is None:
            if self._fraction is None:
                self.tell(0.0)
            self._observations = self.envs.reset()
        return self._observations[0]

    def keep_last(self, *, keep: bool = True, as_it_is: bool = False) -> None:
        """Keeps the last rollout, which no update has used. The next `collect` returns it again and adds the rows that
        are missing, unless `as_it_is`: rank 0 already has its report.
        """
        self._kept, self._kept_whole = (self.last if keep else None), as_it_is

    def _collect(
        self,
        horizon: int,
        version: int,
        interrupt: Callable[[], bool] | None,
        least: int,
        enough: Callable[[], bool] | None,
    ) -> Rollout:
        self.first_observation()
        assert self._observations is not None
        n, first_row = self.envs.num_envs, self.row
        current = self._observations
        rollout = self.policy.blank_rollout(first_row, horizon, n, self._sums.progress(self._seeds.episodes))
        rollout.told, self._told = self._told, []
        observations, inputs, heads = rollout.observations, rollout.inputs, rollout.heads
        actions, env_actions = rollout.actions, rollout.env_actions
        rewards = np.empty((horizon, n))  # in the environments' own precision, for the episodes' returns
        noise = self._noise.rows(first_row, horizon)
        finals: list[tuple[int, Sequence[int] | np.ndarray, np.ndarray]] = []
        final_states: list[np.ndarray] = []
        states = self._states if self.policy.state_size else None
        encode, is_raw = self.policy.inputs.vectors, self.policy.inputs.is_raw
        act, to_env = self.policy.act, self.policy.distribution.to_env
        step_all = self.envs.step if self.timeline is None else self.timeline.timed(self.envs.step)
        t, values = 0, None
        while t < horizon and not (interrupt is not None and interrupt()):
            if t >= least and enough is not None and enough():
                break
            observations[t] = current
            masks = self.envs.masks
            if masks is not None:
                rollout.masks[t] = masks
            seen = current if is_raw else encode(current, inputs[t])
            if states is not None:
                rollout.states[t] = states
            action, _, values = act(seen, noise[t], heads[t], masks, states)
            if values is not None:
                rollout.values[t] = values
            env_action = to_env(action)
            actions[t] = action
            if env_action is not action:
                env_actions[t] = env_action
            try:
                step = step_all(env_action)
            except Exception as error:
                # a NaN that the environment gave earlier is a likelier cause than the action that it has led to
                self._check("observation", observations[: t + 1], first_row)
                error.add_note(f"in row {first_row + t} of environments {self.first_env}..{self.first_env + n - 1}")
                raise
            current = step.observations
            rewards[t] = step.rewards
            if step.valid is not None:
                rollout.valid[t] = step.valid
                rewards[t, ~step.valid] = 0.0  # whatever the environment says: such a row belongs to no episode
                if states is not None:
                    states[~step.valid] = 0.0
            if len(step.final_envs):
                rollout.terminations[t] = step.terminations
                rollout.truncations[t] = step.truncations
                finals.append((t, step.final_envs, step.final_observations))
                if states is not None:
                    final_states.append(states[step.final_envs])
                    states[step.final_envs] = 0.0
            t += 1
        self._observations = current.copy()
        self.row += t
        if t < horizon:
            rollout.cut(t)
        self._complete(rollout, version, rewards[:t], finals, final_states, needs_values=values is None)
        self._check_finite(rollout)
        return rollout

    def _complete(
        self,
        rollout: Rollout,
        version: int,
        rewards: np.ndarray,
        finals: list[tuple[int, Sequence[int] | np.ndarray, np.ndarray]],
        final_states: list[np.ndarray],
        *,
        needs_values: bool,
    ) -> None:
        """Adds what is cheaper for all rows at once: final observations, values, log-probabilities and episodes.

        Args:
          rewards: [T, N] float64.
          finals: (row, environments, their last observations) of the rows in which episodes ended.
          final_states: [F, S] of each of these rows: the network's states after it; without memory, none.
          needs_values: whether the rows have no values yet.
        """
        assert self._observations is not None
        t, n = rewards.shape
        rollout.versions.fill(version)
        rollout.rewards[...] = rewards
        if finals:
            rollout.final_rows = np.array([row for row, envs, _ in finals for _ in envs], np.int64)
            rollout.final_envs = np.array([int(i) for _, envs, _ in finals for i in envs], np.int64)
            rollout.final_observations = np.concatenate([obs for _, _, obs in finals])
        ends = rollout.final_rows, rollout.final_envs
        if t:
            policy, steps = self.policy, rollout.all_steps
            if needs_values:
                rollout.values[...] = policy.value(steps(rollout.inputs)).reshape(t, n)
            log_probs, _, _ = policy.distribution.evaluate(steps(rollout.heads), steps(rollout.actions))
            rollout.log_probs[...] = log_probs.reshape(t, n)
            rollout.next_values[:-1] = rollout.values[1:]
            rollout.next_values[-1] = policy.value(policy.inputs(self._observations), self._states)
            if finals:
                states = np.concatenate(final_states) if final_states else None
                rollout.next_values[ends] = policy.value(policy.inputs(rollout.final_observations), states)
            rollout.next_values[rollout.terminations] = 0.0
        rollout.episodes = self._sums.count(
            rollout.first_row, rewards, rollout.terminations, rollout.truncations, rollout.valid, *ends
        )
        rollout.episodes_cut, self._cut = self._cut, []

    def _check_finite(self, rollout: Rollout) -> None:
        self._check("observation", rollout.observations, rollout.first_row)
        self._check("reward", rollout.rewards, rollout.first_row)
        assert self._observations is not None
        self._check("observation", self._observations[None], rollout.first_row + rollout.num_rows)
        finals = rollout.final_observations
        if all(leaf.dtype.kind != "f" or np.isfinite(leaf).all() for leaf in as_leaves(finals).values()):
            return
        for row, env, final in zip(rollout.final_rows, rollout.final_envs, finals, strict=True):
            self._check("final observation", np.asarray(final)[None, None], rollout.first_row + row, env)

    def _check(self, name: str, array: np.ndarray, first_row: int, first: int = 0) -> None:
        """Checks an array [T, N, ...] of the environments from `first` on, as `_check_array` does."""
        _check_array(name, array, first_row, self.first_env + first, self.envs.agents)

    def discounted_returns(self, rollout: Rollout) -> np.ndarray:
        """Returns [T, N] float64 running discounted returns of the last rollout; moves the running sums."""
        return self._sums.discount(rollout)

    def report(self, rollout: Rollout, collect_s: float, learn_s: float, exchange_s: float) -> Report:
        """Returns the report of a rollout for rank 0; call it after `discounted_returns`. Environments save their
        states here, between two steps.
        """
        assert self._observations is not None
        sums, before, saver = self._sums, self._restarts, self._saver
        self._restarts = self.envs.restarts
        saved = None if saver is None else saver.after_rollout(self.row, self._seeds.episodes, sums)
        # a state is loaded without a look at the episode before
        is_between = saver is None and (sums.first_rows == rollout.first_row + rollout.num_rows).any()
        return Report(
            self.worker, self.first_env, rollout.first_row, rollout.num_steps, rollout.episodes, rollout.env_actions,
            self._seeds.episodes.copy(), sums.first_rows.copy(), self._observations, sums.returns.copy(),
            sums.lengths.copy(), sums.discounted_returns.copy(), self._states.copy(),
            sums.last.copy() if is_between else None, collect_s, learn_s, exchange_s, iteration=self.last_iteration,
            episodes_cut=rollout.episodes_cut, env_restarts=self._restarts - before, saved=saved,
            env_seconds=self.envs.clock.take() if isinstance(self.envs, EnvList) else None,
            agents=max(1, len(self.envs.agents)), told=rollout.told,
        )  # fmt: skip

    def restore(
        self, states: dict[int, EnvState], row: int, first_new_episode: int, deadline: float, fraction_done: float = 0.0
    ) -> list[str]:
        """Brings environments back as `EpisodeSums.restore` does. Returns a line on each that could not be restored.

        Args:
          fraction_done: share of the run that is done, for environments of which `states` does not say it.
        """
        self.row = row
        mine = [states[env] for env in range(self.first_env, self.first_env + self.envs.num_envs) if env in states]
        told = told_of(mine, row) or [(row - 1, fraction_done)]
        if self.envs.curriculum is not None:
            self._told = [(row - 1, told_before(told, row)), *[t for t in told if t[0] >= row]]
            self._fraction = told[-1][1]
        self._observations, cut, problems = self._sums.restore(
            self.envs,
            self._seeds,
            states,
            row,
            first_new_episode,
            deadline,
            None if self._saver is None else self._saver.load,
            told,
        )
        self._cut += cut
        if self._saver is not None:
            self._saver.restored(states, row, cut)
        for i, network_state in enumerate(self._states):
            env = self.first_env + i
            network_state[...] = states[env].network_state if env in states and env not in cut else 0.0
        return problems


def _check_array(name: str, array: np.ndarray, first_row: int, first_env: int, agents: Sequence[str]) -> None:
    """Raises FloatingPointError if a leaf of an array [T, N, ...] holds a number that is not finite; names the agent,
    where the environments are agents of simulators.
    """
    for leaf, values in as_leaves(array).items():
        if values.dtype.kind != "f" or np.isfinite(values).all():
            continue
        row, env, *_ = np.argwhere(~np.isfinite(values))[0]
        too_large = " (float32 holds numbers up to 3.4e38)" if np.isinf(values[row, env]).any() else ""
        agent = f" (agent {agents[(first_env + env) % len(agents)]})" if agents else ""
        raise FloatingPointError(
            f"{name}{leaf and f', leaf {leaf},'} is not finite in row {first_row + row} of environment"
            f" {first_env + env}{agent}: {_shown(values[row, env])}{too_large}"
        )


def _shown(values: np.ndarray) -> str:
    """Describes values of which one is not finite: all of a few, else the first that is not."""
    if np.size(values) <= _FEW:
        return " ".join(str(values).split())
    place = tuple(np.argwhere(~np.isfinite(values))[0].tolist())
    return f"element {list(place)} is {values[place]}"
