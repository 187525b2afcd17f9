"""Steps an environment's own vector form, however it resets."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode

from dppo.envs.checks import five, numbers, truths
from dppo.envs.curriculum import make_curriculum
from dppo.envs.leaves import to_value
from dppo.envs.maker import EnvMaker
from dppo.envs.masks import KEY, PROBE_SEED, MaskLayout, Masks
from dppo.envs.observations import require_leaves
from dppo.envs.returned import Returned, copied
from dppo.seams import NO_ENVS, EpisodeSeed, Step


class NativeVector:
    """An environment's own vector form (`vector_entry_point`), with any of the three ways to reset.

    The form is seeded once, at `reset`. Its episodes have no seeds of their own, so it can neither be replayed nor
    promise the same episodes for another N. Observations and actions of Dict and Tuple spaces are dicts and tuples of
    batches, as everywhere in `gymnasium.vector`.
    """

    replayable = False
    restarts = 0
    agents: tuple[str, ...] = ()

    def __init__(self, maker: EnvMaker, num_envs: int, episode_seed: EpisodeSeed, first_env: int = 0) -> None:
        spec = maker.spec
        self._episode_seed = episode_seed
        self._env = maker.make_vector(num_envs)
        self.curriculum = make_curriculum([self._env])
        self.num_envs = num_envs
        with contextlib.ExitStack() as if_it_fails:
            if_it_fails.callback(self.close)
            self._mode = _autoreset_mode(spec, self._env.metadata)
            self.observation_space = self._env.single_observation_space
            self.action_space = self._env.single_action_space
            require_leaves(spec.id, self.observation_space)
            if_it_fails.pop_all()
        self.description = f"{num_envs} x {spec.id}, its own vector form ({self._mode.value} reset, cannot be replayed)"
        self._numbers = range(first_env, first_env + num_envs)
        self._returned = Returned(self.observation_space, self._numbers)
        self._one_returned = Returned(self.observation_space)
        self._no_observations = np.empty((0, *self._one_returned.shape), self._one_returned.dtype)
        layout = MaskLayout(self.action_space)
        self._masks = Masks(layout, self.observation_space, num_envs) if layout.size else None
        self._resets_next: np.ndarray | None = None  # [N] bool: environments that the next step only resets

    @property
    def mask_size(self) -> int:
        """The number of entries of a mask. Resets the form once where only its infos can tell."""
        if self._masks is not None and not self._masks.are_certain(None):
            self._reset(PROBE_SEED)
        return 0 if self._masks is None else self._masks.size

    @property
    def masks(self) -> np.ndarray | None:
        return None if self._masks is None else self._masks.rows

    def reset(self) -> np.ndarray:
        return self._reset(self._episode_seed(0))

    def _reset(self, seed: int) -> np.ndarray:
        observations, infos = self._returned.by_reset(self._env.reset(seed=int(seed)))
        self._resets_next = None
        if self._masks is not None and not self._masks.is_found and not self._masks.find(None, infos):
            self._masks = None
        self._read_masks(range(self.num_envs), observations, infos, "reset")
        return observations

    def step(self, actions: np.ndarray) -> Step:
        # Copies: the form may write to its actions, reuse the memory that it returns, or return arrays not of NumPy.
        raw, raw_rewards, terminated, truncated, infos = five(self._env.step(to_value(self.action_space, actions)))
        observations = copied(self._returned.observation(raw), self._returned.dtype)
        rewards = numbers("rewards", raw_rewards, self.num_envs)
        terminations = truths("terminations", terminated, self.num_envs)
        truncations = truths("truncations", truncated, self.num_envs)
        valid = None if self._resets_next is None else ~self._resets_next
        self._resets_next = None
        ended = terminations | truncations
        final_envs = ended.nonzero()[0]
        if self._masks is not None:
            self._masks.turn()
        # The info of a SAME_STEP reset is among those of the step.
        first = self._mode is AutoresetMode.SAME_STEP
        self._read_masks(np.arange(self.num_envs) if first else (~ended).nonzero()[0], observations, infos, "step")
        if not len(final_envs):
            return Step(observations, rewards, terminations, truncations, NO_ENVS, self._no_observations, valid)
        if self._mode is AutoresetMode.SAME_STEP:
            final_observations = self._finals(infos, final_envs)
        else:
            final_observations = copied(observations[final_envs])
        if self._mode is AutoresetMode.NEXT_STEP:
            self._resets_next = ended
            if self._masks is not None:
                self._masks.permit(final_envs)
        elif self._mode is AutoresetMode.DISABLED:
            # Without a seed: the form continues its own random stream, as in the two other modes.
            firsts, infos = self._returned.by_reset(self._env.reset(options={"reset_mask": ended}))
            observations[final_envs] = firsts[final_envs]
            self._read_masks(final_envs, observations, infos, "reset")
        return Step(observations, rewards, terminations, truncations, final_envs, final_observations, valid)

    def _read_masks(self, envs: Any, observations: np.ndarray, infos: Mapping[str, Any], call: str) -> None:
        """Reads the masks of the environments `envs` (indices)."""
        if self._masks is None:
            return
        given = {key: infos[key] for key in (KEY, f"_{KEY}") if key in infos}
        for index in envs:
            try:
                self._masks.read(index, None, observations[index], _info_of(given, index), call)
            except Exception as error:
                error.add_note(f"raised by environment {self._numbers[index]} of {self.description}")
                raise

    def _finals(self, infos: dict[str, Any], envs: np.ndarray) -> np.ndarray:
        """Returns the last observations that a form gives in addition to the first ones, [F, *obs]."""
        if "final_obs" not in infos:
            raise ValueError("step() has ended an episode, and its infos have no 'final_obs': repair the vector form")
        one, given = self._one_returned, infos["final_obs"]
        finals = np.zeros((len(envs), *one.shape), one.dtype)
        for place, index in enumerate(envs):
            finals[place] = one.observation(_observation_of(self.observation_space, given, index))
        return finals

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


def _observation_of(space: gymnasium.Space[Any], given: Any, index: int) -> Any:
    """Returns one environment's observation, given dicts and tuples of batches, or one observation after another."""
    if isinstance(space, spaces.Dict) and isinstance(given, Mapping):
        return {key: _observation_of(part, given[key], index) for key, part in space.spaces.items() if key in given}
    if isinstance(space, spaces.Tuple) and isinstance(given, tuple):
        return tuple(_observation_of(part, batch, index) for part, batch in zip(space.spaces, given, strict=True))
    return given[index]


def _info_of(infos: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Returns one environment's part of infos in Gymnasium's form: `_key` says whose info has `key`."""
    info = {}
    for key, batch in infos.items():
        is_note = key.startswith("_") and key[1:] in infos
        if not is_note and (f"_{key}" not in infos or infos[f"_{key}"][index]):
            info[key] = _info_of(batch, index) if isinstance(batch, Mapping) else batch[index]
    return info


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
