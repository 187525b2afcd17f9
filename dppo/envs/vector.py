"""Steps N environments as one, begins their next episodes, and hands out the true last observation of each.

Uses NumPy and Gymnasium only; `dppo.rollout` steps these environments, checkpoints replay them.

There are three forms behind one interface, because speed and promises differ:

| form                       | made by `vectorization=`  | a seed per episode, replay | independent of N |
|----------------------------|---------------------------|----------------------------|------------------|
| `CartPoleVector`           | `auto`, CartPole-v0, -v1  | yes                        | yes              |
| `EnvList`                  | `sync`; `auto` otherwise  | yes                        | yes              |
| `NativeVector`             | `native`                  | no                         | no               |
"""

from __future__ import annotations

import difflib
import importlib
import math
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode

EpisodeSeed = Callable[[int], int]
"""Called with the local index of an environment; returns the seed of its next episode, and counts it."""

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


class VectorEnv(Protocol):
    """N environments of one kind that a worker steps together."""

    num_envs: int
    observation_space: gymnasium.Space[Any]
    """Of one environment."""
    action_space: gymnasium.Space[Any]
    """Of one environment."""
    replayable: bool
    """Every episode begins with a seed of its own, so that seed and actions restore it."""
    description: str
    """A short phrase for the log."""

    def reset(self) -> np.ndarray:
        """Begins an episode in every environment, seeded by `episode_seed`. Returns [N, *obs]."""
        ...

    def step(self, actions: np.ndarray) -> Step:
        """Takes `actions` [N, *act], as the environment wants them. Begins the next of ended episodes."""
        ...

    def replay(
        self,
        seeds: Sequence[int],
        actions: Sequence[np.ndarray],
        deadline: float = math.inf,
        rewards: list[np.ndarray] | None = None,
    ) -> tuple[np.ndarray, list[int]]:
        """Brings environment i to where `seeds[i]` and the actions `actions[i]` [L_i, *act] since then lead.

        Returns the observations [N, *obs], and the environments whose episode ended on the way or whose replay
        was not done by time.monotonic() `deadline`. Those are not what was saved: their rows mean nothing, and
        each needs `begin_episode` before the next step. Where `rewards` is given, those that each environment gave,
        [L_i] float64, are appended to it. Does not call `episode_seed`. Only where `replayable`.
        """
        ...

    def begin_episode(self, index: int) -> np.ndarray:
        """Gives up an environment's episode, begins its next. Returns [*obs]. Only where `replayable`."""
        ...

    def close(self) -> None: ...


def make_vector_env(env_id: str, num_envs: int, episode_seed: EpisodeSeed, vectorization: str = "auto") -> VectorEnv:
    """Makes `num_envs` environments of one kind.

    Args:
        env_id: as for `gymnasium.make`, version included; `package.module:Id-v0` imports the module first.
        num_envs: N, at least 1.
        episode_seed: gives the seed of the next episode of a local environment.
        vectorization: `sync` one after another in this process; `native` the environment's own vector form;
            `auto` a fast form that still keeps every promise of `sync`, where we have one, else `sync`.

    Raises:
        ValueError: the id, its module, a package that it needs or its vector form is missing, or it does not
            observe one array.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs={num_envs} must be at least 1")
    if vectorization not in ("auto", "sync", "native"):
        raise ValueError(f"vectorization={vectorization!r} must be one of 'auto', 'sync', 'native'")
    spec = _find_spec(env_id)
    _keep_mujoco_quiet(spec)
    if vectorization == "native":
        return NativeVector(spec, num_envs, episode_seed)
    if vectorization == "auto":
        from dppo.envs import cartpole  # only here: it builds on this module's Step

        if cartpole.is_plain_cartpole(spec):
            return cartpole.CartPoleVector(spec, num_envs, episode_seed)
    return EnvList(spec, num_envs, episode_seed)


def _keep_mujoco_quiet(spec: EnvSpec) -> None:
    """MuJoCo 4 appends its warnings to MUJOCO_LOG.TXT in the working directory, one file for all ranks; the first
    comes with every model that Gymnasium ships. They go to Python's warnings instead, but for those of making the
    environment."""
    if not str(spec.entry_point).startswith("gymnasium.envs.mujoco"):
        return
    try:
        import mujoco
    except ImportError:
        return  # said by the attempt to make the environment
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(lambda text: None if "is deprecated" in text else warnings.warn(text, stacklevel=2))


class EnvList:
    """Environments stepped one after another in this process: right for any, fast for slow ones."""

    def __init__(self, spec: EnvSpec, num_envs: int, episode_seed: EpisodeSeed) -> None:
        self._episode_seed = episode_seed
        # The passive checker is for those who write environments, and costs time in every step.
        self._envs: list[gymnasium.Env[Any, Any]] = [
            _make(gymnasium.make, spec, disable_env_checker=True) for _ in range(num_envs)
        ]
        self._steps = [env.step for env in self._envs]
        self.num_envs = num_envs
        self.observation_space = self._envs[0].observation_space
        self.action_space = self._envs[0].action_space
        # Such an environment says itself that a seed does not fix it: to replay it would be work for nothing.
        self.replayable = not spec.nondeterministic
        self.description = f"{num_envs} x {spec.id}, stepped one after another"
        self._shape, self._dtype = _array_form(spec, self.observation_space)
        self._rows = [self._new_row(), self._new_row()]
        self._no_observations = np.empty((0, *self._shape), self._dtype)

    def reset(self) -> np.ndarray:
        observations = np.empty((self.num_envs, *self._shape), self._dtype)
        for index in range(self.num_envs):
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
        index = 0
        try:
            for index, (step, action) in enumerate(zip(self._steps, actions, strict=True)):
                observation, rewards[index], terminated, truncated, _ = step(action)
                if terminated or truncated:
                    terminations[index], truncations[index] = terminated, truncated
                    final_envs.append(index)
                    final_observations.append(np.array(observation, self._dtype))
                    observation = self.begin_episode(index)
                observations[index] = observation
        except Exception as error:
            error.add_note(f"raised by environment {index} of {self.description}")
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
            observations[index] = self._begin(index, seed)
            earned = np.zeros(len(history))
            for t, action in enumerate(history):
                observations[index], earned[t], terminated, truncated, _ = self._steps[index](action)
                if terminated or truncated or time.monotonic() > deadline:
                    failed.append(index)
                    break
            if rewards is not None:
                rewards.append(earned)
        return observations, failed

    def close(self) -> None:
        for env in self._envs:
            env.close()

    def _begin(self, index: int, seed: int) -> np.ndarray:
        observation, _ = self._envs[index].reset(seed=int(seed))
        observation = np.array(observation, self._dtype)
        if observation.shape != self._shape:  # else NumPy might broadcast it into its row
            raise ValueError(
                f"{self._envs[index]} gave an observation of shape {observation.shape}, "
                f"but its observation_space says {self._shape}: repair the environment"
            )
        return observation

    def _new_row(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Room for the observations, rewards, terminations and truncations of one row."""
        observations = np.empty((self.num_envs, *self._shape), self._dtype)
        ends = np.zeros((2, self.num_envs), bool)
        return observations, np.empty(self.num_envs), ends[0], ends[1]


class NativeVector:
    """An environment's own vector form (`vector_entry_point`), whichever of the three ways it resets by.

    It is seeded once, at `reset`: its episodes have no seeds of their own, so it can neither be replayed nor
    promise the same episodes for another N.
    """

    replayable = False

    def __init__(self, spec: EnvSpec, num_envs: int, episode_seed: EpisodeSeed) -> None:
        if spec.vector_entry_point is None:
            raise ValueError(
                f"{spec.id} has no vector form of its own (its registration names no vector_entry_point): "
                "use vectorization='sync' or 'auto'"
            )
        self._episode_seed = episode_seed
        self._env: gymnasium.vector.VectorEnv[Any, Any, Any] = _make(
            gymnasium.make_vec, spec, num_envs=num_envs, vectorization_mode="vector_entry_point"
        )
        if "autoreset_mode" not in self._env.metadata:
            raise ValueError(
                f"the vector form of {spec.id} has no metadata['autoreset_mode'], which says how it resets; "
                "last observations cannot be told from first ones without it: use vectorization='sync'"
            )
        self._mode = AutoresetMode(self._env.metadata["autoreset_mode"])
        self.num_envs = num_envs
        self.observation_space = self._env.single_observation_space
        self.action_space = self._env.single_action_space
        self.description = f"{num_envs} x {spec.id}, its own vector form ({self._mode.value} reset, cannot be replayed)"
        shape, dtype = _array_form(spec, self.observation_space)
        self._no_observations = np.empty((0, *shape), dtype)
        self._resets_next: np.ndarray | None = None  # [N] bool: those that the next step will only reset

    def reset(self) -> np.ndarray:
        observations, _ = self._env.reset(seed=int(self._episode_seed(0)))
        self._resets_next = None
        return np.array(observations)

    def step(self, actions: np.ndarray) -> Step:
        raw, rewards, terminations, truncations, infos = self._env.step(actions)
        # Copies: the form may hand out the same memory each time, or arrays that are not NumPy's.
        observations, rewards = np.array(raw), np.array(rewards)
        terminations, truncations = np.array(terminations, bool), np.array(truncations, bool)
        valid = None if self._resets_next is None else ~self._resets_next
        self._resets_next = None
        ended = terminations | truncations
        final_envs = ended.nonzero()[0]
        if not len(final_envs):
            return Step(observations, rewards, terminations, truncations, NO_ENVS, self._no_observations, valid)
        if self._mode is AutoresetMode.SAME_STEP:
            final_observations = np.stack([infos["final_obs"][index] for index in final_envs])
        else:
            final_observations = observations[final_envs]
        if self._mode is AutoresetMode.NEXT_STEP:
            self._resets_next = ended
        elif self._mode is AutoresetMode.DISABLED:
            # Without a seed: it goes on in its own random stream, as the two other modes do.
            firsts, _ = self._env.reset(options={"reset_mask": ended})
            observations[final_envs] = np.asarray(firsts)[final_envs]
        return Step(observations, rewards, terminations, truncations, final_envs, final_observations, valid)

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


# What Gymnasium's own families need beyond Gymnasium, as dppo's optional dependencies name it.
_EXTRAS = {"gymnasium.envs.mujoco": "mujoco", "gymnasium.envs.box2d": "box2d"}


def _find_spec(env_id: str) -> EnvSpec:
    """The registration of `env_id`. Imports its module first, if it names one."""
    module, colon, name = env_id.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except Exception as error:  # a user's module may raise anything, and it is the user who can repair it
            raise ValueError(f"env={env_id!r}: cannot import {module!r}: {_reason(error)}") from error
    spec = gymnasium.registry.get(name)
    if spec is not None:
        return spec
    near = difflib.get_close_matches(name, gymnasium.registry, n=1)
    if near:
        hint = f"did you mean {module + colon + near[0]!r}?"
    elif name.startswith("ALE/"):
        hint = f"write 'ale_py:{name}', so that ale_py registers it (pip install 'dppo[atari]')"
    elif colon:
        hint = f"{module!r} was imported, but does not register it"
    else:
        hint = f"if a module of yours registers it, write 'the.module:{name}'"
    raise ValueError(f"env={env_id!r}: no environment {name!r} is registered; {hint}")


def _make(make: Callable[..., Any], spec: EnvSpec, **kwargs: Any) -> Any:
    """`make(spec, **kwargs)`; says what is missing, and how to get it, where something cannot be imported."""
    try:
        return make(spec, **kwargs)
    except (ImportError, gymnasium.error.Error) as error:
        families = [extra for prefix, extra in _EXTRAS.items() if str(spec.entry_point).startswith(prefix)]
        install = f" (pip install 'dppo[{families[0]}]')" if families else ""
        raise ValueError(f"env={spec.id!r} cannot be made: {_reason(error)}{install}") from error


def _reason(error: Exception) -> str:
    """The error and the line elsewhere that raised it, for a message that is shown without its traceback."""
    frames = [line for line in traceback.extract_tb(error.__traceback__) if "importlib" not in line.filename]
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if len(frames) > 1 else ""
    return f"{type(error).__name__}: {error}{where}"


def _array_form(spec: EnvSpec, space: gymnasium.Space[Any]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of one observation as one array."""
    if space.shape is None or space.dtype is None:
        raise ValueError(
            f"{spec.id} observes {space}, which is not one array: "
            "register it with gymnasium.wrappers.FlattenObservation around it"
        )
    return space.shape, np.dtype(space.dtype)
