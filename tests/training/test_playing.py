"""Environments that play one policy after another: each evaluation is as if they had just been made."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from dppo.envs.given import Given
from dppo.errors import UsageError
from dppo.evaluate import play_episodes
from dppo.settings.toml import load_config
from dppo.training.playing import Player, given_to_play
from dppo.training.policy import load_policy


def no_comm() -> Any:
    raise AssertionError("this environment takes no communicator")


def test_the_same_environments_play_the_same_episodes_again(pendulum: Path) -> None:
    policy = load_policy(pendulum)
    player = Player(policy.config, 3, Given())
    first, other, again = (player.play(policy, seed) for seed in (1, 2, 1))
    player.close()
    assert first == again != other
    assert first == play_episodes(policy, 3, 1)


def test_an_environment_of_several_ranks_is_not_played_alone(cartpole: Path) -> None:
    config = load_config(cartpole)
    object.__setattr__(config, "env_ranks", 2)
    with (
        contextlib.ExitStack() as at_end,
        pytest.raises(ValueError, match="its environments have 2 ranks: mpirun -n 2"),
    ):
        given_to_play(config, at_end, no_comm)


def test_an_environment_that_cannot_be_made_is_told(cartpole: Path) -> None:
    config = load_config(cartpole)
    object.__setattr__(config, "env", "Nothing-v0")
    with pytest.raises(UsageError, match="Nothing-v0"):
        Player(config, 3, Given())
