"""Steps N environments as one, begins their next episodes, and hands out the true last observation of each.

There are three forms behind one interface, because speed and promises differ:

| form                       | made by `vectorization=`  | a seed per episode, replay | independent of N |
|----------------------------|---------------------------|----------------------------|------------------|
| `CartPoleVector`           | `auto`, CartPole-v0, -v1  | yes                        | yes              |
| `EnvList`                  | `sync`; `auto` otherwise  | yes                        | yes              |
| `NativeVector`             | `native`                  | no                         | no               |
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode

from dppo.data import NO_ENVS, Step
from dppo.envs.checks import Returned, five, numbers, truths
from dppo.envs.maker import EnvMaker
from dppo.envs.registration import array_form
from dppo.seams import EpisodeSeed, VectorEnv


def make_vector_env(
    env_id: str,
    num_envs: int,
    episode_seed: EpisodeSeed,
    vectorization: str = "auto",
    first_env: int = 0,
    *,
    kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[str] = (),
) -> VectorEnv:
    """Makes `num_envs` environments of one kind.

    Args:
        env_id: as for `gymnasium.make`, version included; `package.module:Id-v0` imports the module first, and
            `package.module:callable` names a class or function that returns an environment.
        num_envs: N, at least 1.
        episode_seed: gives the seed of the next episode of a local environment.
        vectorization: `sync` one after another in this process; `native` the environment's own vector form;
            `auto` a fast form that still keeps every promise of `sync`, where there is one, else `sync`.
        first_env: global number of the first environment, for messages.
        kwargs: arguments of the environment's constructor.
        wrappers: `package.module:callable` of each wrapper around an environment, innermost first.

    Raises:
        ValueError: the id, its module, a package that it needs or its vector form is missing, its constructor or a
            wrapper fails, or the environment does not observe one array.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs={num_envs} must be at least 1")
    if vectorization not in ("auto", "sync", "native"):
        raise ValueError(f"vectorization={vectorization!r} must be one of 'auto', 'sync', 'native'")
    maker = EnvMaker(env_id, kwargs, wrappers)
    if vectorization == "native":
        return NativeVector(maker, num_envs, episode_seed)
    if vectorization == "auto":
        from dppo.envs import cartpole

        if cartpole.is_plain_cartpole(maker.spec):
            return cartpole.CartPoleVector(maker.spec, num_envs, episode_seed)
    return EnvList(maker, num_envs, episode_seed, first_env)


class EnvList:
    """Environments stepped one after another in this process: right for any environment, fast for slow ones."""

    def __init__(self, maker: EnvMaker, num_envs: int, episode_seed: EpisodeSeed, first_env: int = 0) -> None:
        spec = maker.spec
        self._episode_seed, self._first_env = episode_seed, first_env
        self._envs: list[gymnasium.Env[Any, Any]] = []
        with contextlib.ExitStack() as if_one_fails:
            if_one_fails.callback(self.close)
            while len(self._envs) < num_envs:
                self._envs.append(maker.make())
            self.observation_space = self._envs[0].observation_space
            self.action_space = self._envs[0].action_space
            self._shape, self._dtype = array_form(spec, self.observation_space)
            if_one_fails.pop_all()
        self._steps = [env.step for env in self._envs]
        self.num_envs = num_envs
        # A nondeterministic environment says itself that a seed does not fix it: its replay would be in vain.
        self.replayable = not spec.nondeterministic
        self.description = f"{num_envs} x {spec.id}, stepped one after another"
        self._returned = Returned(self._shape, self._dtype)
        self._rows = [self._new_row(), self._new_row()]
        self._no_observations = np.empty((0, *self._shape), self._dtype)

    def reset(self) -> np.ndarray:
        observations = np.empty((self.num_envs, *self._shape), self._dtype)
        for index in range(self.num_envs):
            with self._named(index):
                observations[index] = self.begin_episode(index)
        return observations

    def begin_episode(self, index: int) -> np.ndarray:
        return self._begin(index, self._episode_seed(index))

    def step(self, actions: np.ndarray) -> Step:
        self._rows.reverse()
        observations, rewards, terminations, truncations = self._rows[0]
        terminations.fill(False)
        truncations.fill(False)
        final_envs: list[int] = []
        final_observations: list[np.ndarray] = []
        index, take = 0, self._returned.by_step
        if actions.ndim > 1:
            actions = actions.copy()  # an environment that writes to its action must not write to the caller's
        try:
            for index, (step, action) in enumerate(zip(self._steps, actions, strict=True)):
                observation, rewards[index], terminated, truncated = take(step(action))
                if terminated or truncated:
                    terminations[index], truncations[index] = terminated, truncated
                    final_envs.append(index)
                    final_observations.append(np.array(observation, self._dtype))
                    observation = self.begin_episode(index)
                observations[index] = observation
        except Exception as error:
            self._name(error, index)
            raise
        ended, finals = NO_ENVS, self._no_observations
        if final_envs:
            ended, finals = np.array(final_envs, np.intp), np.stack(final_observations)
        return Step(observations, rewards, terminations, truncations, ended, finals)

    def replay(
        self,
        seeds: Sequence[int],
        actions: Sequence[np.ndarray],
        deadline: float = math.inf,
        rewards: list[np.ndarray] | None = None,
    ) -> tuple[np.ndarray, list[int]]:
        observations = np.empty((self.num_envs, *self._shape), self._dtype)
        failed = []
        for index, (seed, history) in enumerate(zip(seeds, actions, strict=True)):
            earned = np.zeros(len(history))
            with self._named(index):
                observations[index] = self._begin(index, seed)
                for t, action in enumerate(history.copy()):  # as in `step`
                    result = self._steps[index](action)
                    observations[index], earned[t], terminated, truncated = self._returned.by_step(result)
                    if terminated or truncated or time.monotonic() > deadline:
                        failed.append(index)
                        break
            if rewards is not None:
                rewards.append(earned)
        return observations, failed

    def close(self) -> None:
        with contextlib.ExitStack() as each:  # also where one raises
            for env in reversed(self._envs):
                each.callback(env.close)

    def _begin(self, index: int, seed: int) -> np.ndarray:
        return self._returned.by_reset(self._envs[index].reset(seed=int(seed)))

    @contextlib.contextmanager
    def _named(self, index: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._name(error, index)
            raise

    def _name(self, error: Exception, index: int) -> None:
        error.add_note(f"raised by environment {self._first_env + index} of {self.description}")

    def _new_row(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Makes room for the observations, rewards, terminations and truncations of one row."""
        observations = np.empty((self.num_envs, *self._shape), self._dtype)
        ends = np.zeros((2, self.num_envs), bool)
        return observations, np.empty(self.num_envs), ends[0], ends[1]


class NativeVector:
    """An environment's own vector form (`vector_entry_point`), with any of the three ways to reset.

    The form is seeded once, at `reset`. Its episodes have no seeds of their own, so it can neither be replayed nor
    promise the same episodes for another N.
    """

    replayable = False

    def __init__(self, maker: EnvMaker, num_envs: int, episode_seed: EpisodeSeed) -> None:
        spec = maker.spec
        self._episode_seed = episode_seed
        self._env = maker.make_vector(num_envs)
        self.num_envs = num_envs
        with contextlib.ExitStack() as if_it_fails:
            if_it_fails.callback(self.close)
            self._mode = _autoreset_mode(spec, self._env.metadata)
            self.observation_space = self._env.single_observation_space
            self.action_space = self._env.single_action_space
            shape, dtype = array_form(spec, self.observation_space)
            if_it_fails.pop_all()
        self.description = f"{num_envs} x {spec.id}, its own vector form ({self._mode.value} reset, cannot be replayed)"
        self._returned, self._one_returned = Returned((num_envs, *shape), dtype), Returned(shape, dtype)
        self._no_observations = np.empty((0, *shape), dtype)
        self._resets_next: np.ndarray | None = None  # [N] bool: environments that the next step only resets

    def reset(self) -> np.ndarray:
        observations = self._returned.by_reset(self._env.reset(seed=int(self._episode_seed(0))))
        self._resets_next = None
        return observations

    def step(self, actions: np.ndarray) -> Step:
        # Copies: the form may write to its actions, reuse the memory that it returns, or return arrays not of NumPy.
        raw, raw_rewards, terminated, truncated, infos = five(self._env.step(actions.copy()))
        observations = np.array(self._returned.observation(raw), self._returned.dtype)
        rewards = numbers("rewards", raw_rewards, self.num_envs)
        terminations = truths("terminations", terminated, self.num_envs)
        truncations = truths("truncations", truncated, self.num_envs)
        valid = None if self._resets_next is None else ~self._resets_next
        self._resets_next = None
        ended = terminations | truncations
        final_envs = ended.nonzero()[0]
        if not len(final_envs):
            return Step(observations, rewards, terminations, truncations, NO_ENVS, self._no_observations, valid)
        if self._mode is AutoresetMode.SAME_STEP:
            final_observations = self._finals(infos, final_envs)
        else:
            final_observations = observations[final_envs]
        if self._mode is AutoresetMode.NEXT_STEP:
            self._resets_next = ended
        elif self._mode is AutoresetMode.DISABLED:
            # Without a seed: the form continues its own random stream, as in the two other modes.
            firsts = self._returned.by_reset(self._env.reset(options={"reset_mask": ended}))
            observations[final_envs] = firsts[final_envs]
        return Step(observations, rewards, terminations, truncations, final_envs, final_observations, valid)

    def _finals(self, infos: dict[str, Any], envs: np.ndarray) -> np.ndarray:
        """Returns the last observations that a form gives in addition to the first ones, [F, *obs]."""
        if "final_obs" not in infos:
            raise ValueError("step() has ended an episode, and its infos have no 'final_obs': repair the vector form")
        finals = [self._one_returned.observation(infos["final_obs"][index]) for index in envs]
        return np.array(finals, self._one_returned.dtype)

    def replay(
        self,
        seeds: Sequence[int],
        actions: Sequence[np.ndarray],
        deadline: float = math.inf,
        rewards: list[np.ndarray] | None = None,
    ) -> tuple[np.ndarray, list[int]]:
        raise NotImplementedError(f"{self.description}: its episodes have no seeds of their own")

    def begin_episode(self, index: int) -> np.ndarray:
        raise NotImplementedError(f"{self.description}: only all at once, by reset()")

    def close(self) -> None:
        self._env.close()


def _autoreset_mode(spec: EnvSpec, metadata: dict[str, Any]) -> AutoresetMode:
    """Returns how a vector form begins the next episodes. Raises ValueError where the form does not say so."""
    try:
        return AutoresetMode(metadata["autoreset_mode"])
    except (KeyError, ValueError) as error:
        said = metadata.get("autoreset_mode", "not there")
        raise ValueError(
            f"the vector form of {spec.id} does not say how it resets (metadata['autoreset_mode'] is {said!r:.80}):"
            " last observations cannot be told from first ones; give it one of gymnasium.vector.AutoresetMode, or use"
            " vectorization='sync'"
        ) from error
