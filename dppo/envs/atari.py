"""The usual preprocessing of Atari games, by Gymnasium's own wrappers: `--wrappers dppo.envs.atari:preprocess`.

The presets of `ALE/…` use it, with `frameskip=1` for the game itself, as the frames are skipped here. Sticky actions
stay as the id has them (0.25 in v5): they are drawn at each frame in either case. Rewards stay raw.
"""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

FRAMES = 4
"""Frames of a step, of which the last two are merged, and observations in a stack."""


def preprocess(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Returns an environment that observes the last four grey images of 84 x 84, one every four frames.

    Source: Mnih et al. 2015, methods (preprocessing, training details), but that the loss of a life ends no episode
    and rewards are not clipped to their signs: Machado et al. 2018, section 4.

    Raises:
      ValueError: the game gives no pictures.
    """
    if len(env.observation_space.shape or ()) < 2:
        raise ValueError(
            f"the game gives {env.observation_space}, no pictures: leave these wrappers out (--wrappers, with nothing"
            " behind it), and have the game skip frames (--env-kwargs frameskip=4)"
        )
    return FrameStackObservation(AtariPreprocessing(env, frame_skip=FRAMES), FRAMES)
