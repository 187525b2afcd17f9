"""Steps environments one after another in this process, and makes those anew that fail."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import gymnasium
import numpy as np

from dppo.envs.actions import make_splitter
from dppo.envs.clock import EnvClock
from dppo.envs.curriculum import BEFORE_RESET, make_curriculum
from dppo.envs.maker import EnvMaker
from dppo.envs.masks import KEY, PROBE_SEED, MaskLayout, Masks, refuse_late
from dppo.envs.observations import require_leaves
from dppo.envs.restarts import Remaker, Restarts, close_quietly
from dppo.envs.returned import Returned, copied
from dppo.envs.states import Start, States
from dppo.seams import NO_ENVS, Closable, EpisodeSeed, Step


class EnvList:
    """Environments stepped one after another in this process: right for any environment, fast for slow ones.

    Args:
      first_env: global number of the first environment.
      max_restarts: an environment that raises, or returns what is not right, is made anew up to this many times in a
        row; 0: never. `close_broken` closes it before.
      made: the first environments, if they were made already.
    """

    agents: tuple[str, ...] = ()

    def __init__(
        self, maker: EnvMaker, num_envs: int, episode_seed: EpisodeSeed, first_env: int = 0, max_restarts: int = 0,
        close_broken: Callable[[Closable], None] = close_quietly, made: Sequence[gymnasium.Env[Any, Any]] = (),
    ) -> None:  # fmt: skip
        self._episode_seed, self._first_env = episode_seed, first_env
        self._envs = list(made)
        self.clock = EnvClock(first_env, num_envs, len(self.agents) or 1)
        with contextlib.ExitStack() as if_one_fails:
            if_one_fails.callback(self.close)
            while len(self._envs) < num_envs:
                self._envs.append(maker.make(first_env + len(self._envs) * (len(self.agents) or 1)))
            self.observation_space = self._envs[0].observation_space
            self.action_space = self._envs[0].action_space
            require_leaves(maker.spec.id, self.observation_space)
            if_one_fails.pop_all()
        self._steps = [env.step for env in self._envs]
        self.curriculum = make_curriculum(self._envs)
        self.num_envs = num_envs
        # A nondeterministic environment says itself that a seed does not fix it: its replay would be in vain.
        self.replayable = not maker.spec.nondeterministic
        self._returned = Returned(self.observation_space)
        self.states = States(self._envs, self._returned.observation, are_repeatable=self.replayable)
        self.description = (
            f"{num_envs} x {maker.spec.id}, stepped one after another{self.states.description}{maker.note}"
        )
        self._shape, self._dtype = self._returned.shape, self._returned.dtype
        self._split_actions = make_splitter(self.action_space)
        # The first row of the two has what was returned last.
        self._rows = [new_row(num_envs, self._shape, self._dtype) for _ in range(2)]
        self._no_observations = np.empty((0, *self._shape), self._dtype)
        layout = MaskLayout(self.action_space)
        # None: there are none, or the actions have no part that could be masked.
        self._masks = Masks(layout, self.observation_space, num_envs) if layout.size else None
        self._failed_probe: Exception | None = None
        self._may_come_late = False  # whether a step's info may have the masks that reset did not give
        self._restarts = Restarts(max_restarts)
        self._remaker = Remaker(maker, first_env, self._restarts, close_broken, self.description, len(self.agents) or 1)

    @property
    def mask_size(self) -> int:
        """The number of entries of a mask. Resets the first environment where only its info can tell."""
        if self._masks is not None and not self._masks.are_certain(self._envs[0]):
            try:
                self._begin_by(0, PROBE_SEED)
            except Exception as error:
                if self._remaker.is_fork():
                    raise
                self._failed_probe = error  # for the first reset, which ends a run as it would have without the probe
                return 0
        return 0 if self._masks is None else self._masks.size

    @property
    def masks(self) -> np.ndarray | None:
        return None if self._masks is None else self._masks.rows

    @property
    def restarts(self) -> int:
        return self._restarts.total

    def reset(self) -> np.ndarray:
        self._start()
        for index in range(self.num_envs):
            self.begin_episode(index)
        return copied(self._rows[0][0])

    def begin_episode(self, index: int) -> np.ndarray:
        observation = self._begin_by(index, self._episode_seed(index))
        self._rows[0][0][index] = observation
        return observation

    def step(self, actions: np.ndarray) -> Step:
        self._rows.reverse()
        observations, rewards, terminations, truncations = self._rows[0]
        terminations.fill(False)
        truncations.fill(False)
        final_envs: list[int] = []
        final_observations: list[np.ndarray] = []
        failed: list[int] = []
        take, masks = self._returned.by_step, self._masks
        if masks is not None:
            masks.turn()
        info: dict[str, Any] = {}
        failure: Exception | None = None
        clock = self.clock
        times_each, reset_s = clock.times_each, clock.reset_s
        clock.mark = began = perf_counter()
        for index, (step, action) in enumerate(zip(self._steps, self._split_actions(actions), strict=True)):
            try:
                observation, rewards[index], terminated, truncated, info = take(step(action))
                if masks is not None and not (terminated or truncated):
                    masks.read(index, self._envs[index], observation, info, "step")
            except Exception as error:
                failure = error
            if failure is not None:
                self._restart(index, failure)
                failure = None
                failed.append(index)
                observation, rewards[index], terminated, truncated = self._rows[1][0][index], 0.0, False, True
            if times_each:
                clock.end_step(index)
            if terminated or truncated:
                terminations[index], truncations[index] = terminated, truncated
                final_envs.append(index)
                final_observations.append(copied(observation, self._dtype))
                observation = self._begin_by(index, self._episode_seed(index))
            observations[index] = observation
        clock.end_row(began, reset_s)
        if self._restarts.total:
            self._restarts.forgive(failed)
        if self._may_come_late:
            self._may_come_late = False
            refuse_late(info)
        if not final_envs:
            return Step(observations, rewards, terminations, truncations, NO_ENVS, self._no_observations)
        finals = np.zeros((len(final_envs), *self._shape), self._dtype)
        for place, observation in enumerate(final_observations):
            finals[place] = observation
        return Step(observations, rewards, terminations, truncations, np.array(final_envs, np.intp), finals)

    def replay(
        self,
        seeds: Sequence[int],
        actions: Sequence[np.ndarray],
        deadline: float = math.inf,
        rewards: list[np.ndarray] | None = None,
    ) -> tuple[np.ndarray, list[int]]:
        self._start()
        failed = []
        for index, (seed, history) in enumerate(zip(seeds, actions, strict=True)):
            earned = np.zeros(len(history))
            failure = None
            try:
                if not self._replay(index, seed, history, deadline, earned):
                    failed.append(index)
            except Exception as error:
                failure = error
            if failure is not None:
                self._restart(index, failure)
                failed.append(index)
            if rewards is not None:
                rewards.append(earned)
        return copied(self._rows[0][0]), failed

    def close(self) -> None:
        with contextlib.ExitStack() as each:  # also where one raises
            for env in reversed(self._envs):
                each.callback(env.close)

    def _replay(self, index: int, seed: int, history: np.ndarray, deadline: float, earned: np.ndarray) -> bool:
        """Brings one environment to the end of `history`. Returns whether it is there, its episode under way."""
        observations, env, curriculum = self._rows[0][0], self._envs[index], self.curriculum
        plan = {} if curriculum is None else curriculum.take_plan(index)
        if curriculum is not None and BEFORE_RESET in plan:
            curriculum.tell_one(index, plan[BEFORE_RESET])
        if (start := self.states.take_start(index)) is None:
            observations[index] = self._begin(index, seed)
        else:
            self._begin_from(index, start)
        info = None
        # no actions may be of any type: those of an environment that nobody knows have none
        for t, action in enumerate(self._split_actions(history) if len(history) else ()):
            if curriculum is not None and t in plan:
                curriculum.tell_one(index, plan[t])
            observations[index], earned[t], terminated, truncated, info = self._returned.by_step(env.step(action))
            if terminated or truncated or time.monotonic() > deadline:
                return False
        if self._masks is not None and info is not None:
            self._masks.read(index, env, observations[index], info, "step")
        return True

    def _begin_from(self, index: int, start: Start) -> None:
        """Takes in what an environment that has loaded its state observes."""
        env, info = self._envs[index], {} if start.mask is None else {KEY: start.mask}
        if self._masks is not None and not self._masks.is_found and not self._masks.find(env, info):
            self._masks = None
        if start.observation is not None:
            self._rows[0][0][index] = start.observation
            if self._masks is not None:
                self._masks.read(index, env, start.observation, info, "load_state")

    def _begin_by(self, index: int, seed: int) -> np.ndarray:
        """Begins an episode. An environment that cannot is made anew, and begins the same episode."""
        while True:
            try:
                return self._begin(index, seed)
            except Exception as error:
                failure = error
            self._restart(index, failure)

    def _begin(self, index: int, seed: int) -> np.ndarray:
        env = self._envs[index]
        began = perf_counter()
        observation, info = self._returned.by_reset(env.reset(seed=int(seed)))
        self.clock.end_reset(perf_counter() - began)
        if self._masks is not None:
            if self._masks.is_found or self._masks.find(env, info):
                self._masks.read(index, env, observation, info, "reset")
            else:
                self._masks, self._may_come_late = None, True
        return observation

    def _restart(self, index: int, error: Exception) -> None:
        """Makes an environment anew that has raised `error`. Raises what ends the run. To be called outside of the
        handling of `error`, which else would seem to be the cause of what the constructor raises.
        """
        env = self._remaker.remake(index, self._envs[index], error)
        self._envs[index], self._steps[index] = env, env.step
        if self.curriculum is not None:
            self.curriculum.tell_again(index)

    def _start(self) -> None:
        """Makes room for observations and masks that no step has returned."""
        if self._failed_probe is not None:
            raise self._failed_probe
        self._rows.reverse()
        if self._masks is not None:
            self._masks.turn()


def new_row(
    num_envs: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Makes room for the observations, rewards, terminations and truncations of one row."""
    observations = np.zeros((num_envs, *shape), dtype)
    ends = np.zeros((2, num_envs), bool)
    return observations, np.empty(num_envs), ends[0], ends[1]
