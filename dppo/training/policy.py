"""A trained policy, for notebooks and evaluation."""

from __future__ import annotations

import reprlib
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from dppo.algo.losses import METRICS
from dppo.algo.moments import RewardScale
from dppo.config import Config
from dppo.envs.given import Given
from dppo.envs.leaves import leaves, parts, to_array, to_value
from dppo.envs.masks import MaskLayout
from dppo.envs.process import kept_as_it_was
from dppo.envs.vector import make_vector_env
from dppo.errors import UsageError
from dppo.files import plain
from dppo.models.policy import make_policy
from dppo.rundir.contents import check_state
from dppo.rundir.evaluations import LATEST as LATEST  # also for the commands
from dppo.rundir.evaluations import find_checkpoint
from dppo.rundir.spaces import read_mask_size, read_spaces
from dppo.seeding import Purpose, draw_rows, generator
from dppo.settings.toml import load_config
from dppo.training.build import close_environments
from dppo.training.moments import RunMoments
from dppo.training.state import TrainingState


class Policy:
    """A trained policy with the moments of its training, which are frozen.

    Attributes:
      config: the run's configuration.
      env_steps: number of steps that the policy was trained on.
      spaces: of observations and of actions.
      mask_size: the number of choices that the environment's masks speak of; 0: it has none.
      actor_critic: the network and its inputs.
    """

    def __init__(
        self,
        config: Config,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        saved: dict[str, Any],
        mask_size: int = 0,
    ) -> None:
        rng = generator(config.seed, Purpose.INIT)
        self.spaces, self.mask_size = (observation_space, action_space), mask_size
        self.actor_critic = make_policy(*self.spaces, config.model, config.moments, rng, len(METRICS))
        self._rewards = RewardScale(is_used=config.moments.returns)
        state = TrainingState(self.actor_critic.flat, RunMoments(self.actor_critic.inputs, self._rewards), config)
        state.load(saved)
        self._states: np.ndarray | None = None
        self.seed(config.seed)
        self.config, self.env_steps = config, state.env_steps

    def require(self, observation_space: gymnasium.Space, action_space: gymnasium.Space) -> None:
        """Raises UsageError if these are not the spaces that the policy was trained with; bounds may differ."""
        for verb, trained, here in zip(
            ("observes", "takes"), self.spaces, (observation_space, action_space), strict=True
        ):
            if _kinds(here) != _kinds(trained):
                raise UsageError(
                    f"{self.config.env} {verb} {here} here, and the policy was trained where it {verb} {trained}: use"
                    " the version of the environment that it was trained with"
                )

    def seed(self, seed: int) -> None:
        """Seeds the random numbers of stochastic actions."""
        self._noise = generator(seed, Purpose.EVALUATION)

    def reset(self, ended: Any = None) -> None:
        """Forgets what a policy with memory (`model.core`) has seen; call it where an episode begins. Without memory it
        does nothing.

        Args:
          ended: of a batch, the rows whose episode has ended: indices, or [B] bool; None: all, and the next batch may
            have another size.
        """
        if ended is None:
            self._states = None
        elif self._states is not None:
            rows = np.asarray(ended)  # a tuple would be a place in two axes
            self._states[rows if rows.dtype == bool else rows.astype(np.int64)] = 0.0

    def act(self, observation: Any, *, stochastic: bool = False, mask: Any = None) -> Any:
        """Returns the action for one observation, or the actions for a batch, in the form that the environment expects.
        A policy with memory remembers the observation, until `reset`.

        Args:
          observation: raw, as the environment gives it: [*obs] or [B, *obs], or dicts and tuples of these.
          stochastic: whether to sample instead of taking the most probable action.
          mask: the legal actions, as the environment gives them; for a batch [B, M]. None: all are legal.

        Returns:
          [*act] or [B, *act]; of a Dict or a Tuple of actions, a dict or a tuple, or for a batch one structured array.

        Raises:
          ValueError: the observation, the mask or the size of the batch does not fit.
        """
        observations, is_single = to_array(self.spaces[0], observation)
        inputs, masks = (
            self.actor_critic.inputs(observations),
            self._legal(mask, len(observations), is_single=is_single),
        )
        self._states = self._states_of(len(inputs))
        sent = self._actions(inputs, masks, self._states, stochastic=stochastic)
        return to_value(self.spaces[1], sent[0]) if is_single else sent

    def predict(
        self,
        observation: Any,
        state: np.ndarray | None = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: Any = None,
    ) -> tuple[Any, np.ndarray | None]:
        """Returns (action, state) as Stable-Baselines3's models do. The state is the caller's: the policy remembers
        nothing here.

        Args:
          observation: as in `act`.
          state: [B, S] float32, that the last call returned (B is 1 for one observation); None: episodes begin.
          episode_start: [B] bool, whether an episode begins with the observation, so that the row's state is forgotten.
          deterministic: whether to take the most probable action instead of sampling.
          action_masks: as `mask` in `act`.

        Returns:
          The actions, an array [*act] or [B, *act]; of a Dict or a Tuple, dicts or tuples of these. And the state for
          the next call, a new array; of a policy without memory, what was given.

        Raises:
          ValueError: the observation, the state or the mask does not fit.
        """
        observations, is_single = to_array(self.spaces[0], observation)
        inputs = self.actor_critic.inputs(observations)
        masks = self._legal(action_masks, len(observations), is_single=is_single)
        states = self.actor_critic.first_states(len(inputs))
        if state is not None and self.actor_critic.state_size:
            if np.shape(state) != states.shape:
                raise ValueError(
                    f"expected a state {states.shape}, as the last predict() gave it, got {np.shape(state)}"
                )
            states[...] = state
            if episode_start is not None:
                states[np.broadcast_to(np.asarray(episode_start, bool), len(states))] = 0.0
        sent = self._actions(inputs, masks, states, stochastic=not deterministic)
        after = states if self.actor_critic.state_size else state
        return _as_in_gymnasium(self.spaces[1], sent[0] if is_single else sent), after

    def _actions(
        self, inputs: np.ndarray, masks: np.ndarray | None, states: np.ndarray, *, stochastic: bool
    ) -> np.ndarray:
        """Returns the actions [B, *act] for the environment, for inputs [B, ...]; the states become the new ones."""
        distribution = self.actor_critic.distribution
        if stochastic:
            noise = draw_rows(self._noise, distribution.noise_kinds, len(inputs))
            return distribution.to_env(self.actor_critic.act(inputs, noise, masks=masks, states=states)[0])
        return distribution.to_env(self.actor_critic.greedy(inputs, masks, states))

    def value(self, observation: Any) -> np.ndarray:
        """Returns the critic's value of one observation or of a batch, [] or [B], in units of the raw reward. A policy
        with memory does not remember the observation.
        """
        observations, is_single = to_array(self.spaces[0], observation)
        states = self._states_of(len(observations))
        values = self.actor_critic.value(self.actor_critic.inputs(observations), states) / self.reward_scale
        return values[0] if is_single else values

    @property
    def reward_scale(self) -> float:
        """The factor from the raw reward to the critic's unit."""
        return self._rewards.scale

    def _states_of(self, rows: int) -> np.ndarray:
        """Returns the network's states [B, S] before the next observations."""
        if self._states is None or not self.actor_critic.state_size:
            return self.actor_critic.first_states(rows)
        if len(self._states) != rows:
            raise ValueError(
                f"the policy remembers {len(self._states)} episodes, and {rows} observations came: call reset() before"
                " a batch of another size"
            )
        return self._states

    def _legal(self, mask: Any, rows: int, *, is_single: bool) -> np.ndarray | None:
        """Returns the legal actions, [B, M] bool. Raises ValueError for a mask of another form."""
        if mask is None:
            return None
        layout = MaskLayout(self.spaces[1])
        if not is_single and (not hasattr(mask, "__len__") or len(mask) != rows):
            raise ValueError(f"expected a mask for each of {rows} observations, got {reprlib.repr(mask)}")
        masks = np.empty((rows, layout.size), bool)
        for row, one in zip(masks, [mask] if is_single else mask, strict=True):
            layout.write(one, row, "the mask")
        return masks


def _as_in_gymnasium(space: gymnasium.Space[Any], array: np.ndarray) -> Any:
    """Returns actions as arrays; of a Dict or a Tuple, as dicts or tuples of these."""
    inner = parts(space)
    if inner is None:
        return np.array(array)
    made = {name: _as_in_gymnasium(part, array[name]) for name, part in inner.items()}
    return tuple(made.values()) if isinstance(space, gymnasium.spaces.Tuple) else made


def _kinds(space: gymnasium.Space[Any]) -> list[object]:
    """Returns what two spaces must share for one policy: parts, kinds, shapes and numbers of values."""
    return [
        (leaf.path, type(leaf.space), leaf.shape, str(getattr(leaf.space, "nvec", getattr(leaf.space, "n", None))))
        for leaf in leaves(space)
    ]


def load_policy(run_dir: str | Path, checkpoint: str | int = LATEST) -> Policy:
    """Returns the policy of one of a run's checkpoints.

    Args:
      checkpoint: `latest`, the newest valid one; `best`, that of the best evaluation while training (`eval.every`); or
        the number of its environment steps.

    Raises:
      UsageError: (a ValueError) there is no run, or the run has no such checkpoint.
    """
    folder = Path(run_dir).absolute()
    config = load_config(folder)
    saved, skipped = find_checkpoint(folder, checkpoint, lambda found: check_state(found.state))
    for line in skipped:
        print(f"dppo: {plain(line)}", file=sys.stderr)
    try:
        spaces, mask_size = read_spaces(folder), read_mask_size(folder)
        if spaces is None:  # an earlier dppo has begun the run: the environment tells its spaces
            given = Given()
            try:
                with kept_as_it_was():
                    env = make_vector_env(
                        config.env, 1, lambda _: 0, config.vectorization,
                        kwargs=config.env_kwargs, wrappers=config.wrappers, cases=config.cases,
                        given=given, rounds_up=True,
                    )  # fmt: skip
                    mask_size = env.mask_size
                close_environments(env)
            finally:
                given.workdirs.remove_new()
            spaces = env.observation_space, env.action_space
        return Policy(config, *spaces, saved.state, mask_size)
    except ValueError as error:
        raise UsageError(str(error)) from error
