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
        "gymnasium-robotics 'mujoco<3.12'",
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
    _package(r"Panda(Reach|Push|Slide|PickAndPlace|Stack|Flip)", "panda_gym", "panda-gym"),
    _package(r"Meta-World/", "metaworld", "metaworld"),
    _package(r"dm_control/", "shimmy", "'shimmy[dm-control]'"),
    _package(r"bsuite/", "shimmy", "'shimmy[bsuite]'"),
)
"""Every module registers its environments when it is imported."""


def _namespace_of(name: str) -> Package | None:
    """Returns the package `module`, if there is one, of an id `module/Name`: many give their own name to their ids."""
    module, slash, _ = name.partition("/")
    is_there = slash and module.isidentifier() and importlib.util.find_spec(module) is not None
    return _package(re.escape(name), module, module) if is_there else None


def import_package_of(name: str) -> None:
    """Imports the package that registers the environment `name`: one that is known, else the module that has the name
    of the id's namespace. Raises ValueError, with the line that installs it, where a known one is missing.
    """
    package = next((package for package in PACKAGES if package.ids.match(name)), None) or _namespace_of(name)
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
