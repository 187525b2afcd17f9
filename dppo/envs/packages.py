"""Knows which packages register which environments, so that an id is enough where its package is installed."""

from __future__ import annotations

import importlib
import importlib.util
import re
from typing import NamedTuple

from dppo.envs.reasons import reason


class Package(NamedTuple):
    """A package that registers environments with Gymnasium when it is imported."""

    ids: re.Pattern[str]
    """Of its environments; an id that Gymnasium knows already is never looked for here."""
    module: str
    install: str
    """What pip installs it by."""


def _package(ids: str, module: str, install: str) -> Package:
    return Package(re.compile(ids), module, install)


PACKAGES = (
    _package(r"ALE/|\w+NoFrameskip-v[04]$", "ale_py", "'dppo[atari]'"),
    _package(r"MiniGrid-|BabyAI-", "minigrid", "minigrid"),
    _package(
        r"Fetch(Slide|PickAndPlace|Reach|Push)|HandReach|HandManipulate|AdroitHand|AntMaze_|PointMaze_|FrankaKitchen-",
        "gymnasium_robotics",
        "gymnasium-robotics",
    ),
    _package(
        r"(highway|merge|roundabout|parking|intersection|racetrack|exit|lane-keeping|two-way|u-turn)(-[\w-]+)?-v\d+$",
        "highway_env",
        "highway-env",
    ),
    _package(r"PyFlyt/", "PyFlyt.gym_envs", "PyFlyt"),
    _package(r"FlappyBird-", "flappy_bird_gymnasium", "flappy-bird-gymnasium"),
    _package(
        r"mo-|(minecart|deep-sea-treasure|resource-gathering|four-room|fruit-tree|breakable-bottles|fishwood"
        r"|water-reservoir)(-[a-z]+)?-v\d+$",
        "mo_gymnasium",
        "mo-gymnasium",
    ),
    _package(r"(forex|stocks)-v\d+$", "gym_anytrading", "gym-anytrading"),
    _package(r"mobile-(small|medium|large)-", "mobile_env", "mobile-env"),
)
"""Every module registers its environments when it is imported."""


def import_package_of(name: str) -> None:
    """Imports the package that registers the environment `name`, where one is known. Raises ValueError, with the line
    that installs it, where it is missing.
    """
    package = next((package for package in PACKAGES if package.ids.match(name)), None)
    if package is None:
        return
    try:
        importlib.import_module(package.module)
    except Exception as error:  # other people's packages may raise anything
        top = package.module.partition(".")[0]
        if importlib.util.find_spec(top) is None:
            said = (
                f"is registered by {top}, which is not installed: pip install {package.install}, or write"
                f" 'the.module:{name}' if it is yours"
            )
        else:
            said = f"is registered by {package.module}, which cannot be imported: {reason(error)}"
        raise ValueError(f"env={name!r} {said}") from error
