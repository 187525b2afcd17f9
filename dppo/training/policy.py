"""A trained policy, for notebooks and evaluation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from dppo.algo.losses import METRICS
from dppo.algo.moments import Normaliser
from dppo.config import Config
from dppo.envs.process import kept_as_it_was
from dppo.envs.vector import make_vector_env
from dppo.errors import UsageError
from dppo.files import plain
from dppo.models.policy import make_policy, observation_size
from dppo.rundir.checkpoint import newest_valid
from dppo.rundir.contents import check_state
from dppo.rundir.spaces import read_spaces
from dppo.seeding import Purpose, draw_noise, generator
from dppo.settings.toml import load_config
from dppo.training.build import close_environments
from dppo.training.state import TrainingState


class Policy:
    """A trained policy with the moments of its training, which are frozen.

    Attributes:
      config: the run's configuration.
      env_steps: number of steps that the policy was trained on.
    """

    def __init__(
        self, config: Config, observation_space: gymnasium.Space, action_space: gymnasium.Space, saved: dict[str, Any]
    ) -> None:
        rng = generator(config.seed, Purpose.INIT)
        self._policy = make_policy(observation_space, action_space, config.model, rng, len(METRICS))
        self._normaliser = Normaliser(observation_size(observation_space), config.moments)
        state = TrainingState(self._policy.flat, self._normaliser, config)
        state.load(saved)
        self._shape = observation_space.shape or ()
        self._spaces = observation_space, action_space
        self.seed(config.seed)
        self.config, self.env_steps = config, state.env_steps

    def require(self, observation_space: gymnasium.Space, action_space: gymnasium.Space) -> None:
        """Raises UsageError if these are not the spaces that the policy was trained with; bounds may differ."""
        for verb, trained, here in zip(
            ("observes", "takes"), self._spaces, (observation_space, action_space), strict=True
        ):
            if (type(here), here.shape, getattr(here, "n", None)) != (
                type(trained), trained.shape, getattr(trained, "n", None)
            ):  # fmt: skip
                raise UsageError(
                    f"{self.config.env} {verb} {here} here, and the policy was trained where it {verb} {trained}: use"
                    " the version of the environment that it was trained with"
                )

    def seed(self, seed: int) -> None:
        """Seeds the random numbers of stochastic actions."""
        self._noise = generator(seed, Purpose.EVALUATION)

    def _batch(self, observation: np.ndarray) -> tuple[np.ndarray, bool]:
        array = np.asarray(observation)
        if array.shape == self._shape:
            return self._normaliser.inputs(array[None]), True
        if array.shape[1:] == self._shape:
            return self._normaliser.inputs(array), False
        raise ValueError(f"expected an observation {self._shape} or a batch [B, *{self._shape}], got {array.shape}")

    def act(self, observation: np.ndarray, *, stochastic: bool = False) -> np.ndarray:
        """Returns the action for one observation [*obs], or the actions for a batch [B, *obs], in the form that the
        environment expects.

        Args:
          observation: raw, as the environment gives it.
          stochastic: whether to sample instead of taking the most probable action.
        """
        inputs, single = self._batch(observation)
        distribution = self._policy.distribution
        if stochastic:
            noise = draw_noise(self._noise, distribution.noise_kind, (len(inputs), distribution.noise_size))
            actions = self._policy.act(inputs, noise)[0]
        else:
            actions = self._policy.greedy(inputs)
        env_actions = distribution.to_env(actions)
        return env_actions[0] if single else env_actions

    def value(self, observation: np.ndarray) -> np.ndarray:
        """Returns the critic's value of one observation or of a batch, [] or [B], in units of the raw reward."""
        inputs, single = self._batch(observation)
        values = self._policy.value(inputs) / self._normaliser.reward_scale
        return values[0] if single else values


def load_policy(run_dir: str | Path) -> Policy:
    """Returns the policy of a run's newest valid checkpoint.

    Raises:
      UsageError: (a ValueError) there is no run, or the run has no valid checkpoint.
    """
    folder = Path(run_dir).absolute()
    config = load_config(folder)
    saved, skipped = newest_valid(folder, lambda checkpoint: check_state(checkpoint.state))
    if saved is None:
        raise UsageError(f"{folder} has no valid checkpoint: {'; '.join(skipped) or 'there is none'}")
    for line in skipped:
        print(f"dppo: {plain(line)}", file=sys.stderr)
    try:
        spaces = read_spaces(folder)
        if spaces is None:  # an earlier dppo has begun the run: the environment tells its spaces
            with kept_as_it_was():
                env = make_vector_env(
                    config.env, 1, lambda _: 0, config.vectorization,
                    kwargs=config.env_kwargs, wrappers=config.wrappers,
                )  # fmt: skip
            close_environments(env)
            spaces = env.observation_space, env.action_space
        return Policy(config, *spaces, saved.state)
    except ValueError as error:
        raise UsageError(str(error)) from error
