"""Spaces as JSON text, in Minari's form, without Minari.

Trajectory segments and RUN/spaces.json hold this text, so that policies can be loaded and steps read where the
environment is not installed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from dppo.files import parse_json, read_regular, replace_atomically
from dppo.rundir import paths


def space_to_json(space: gymnasium.Space[Any]) -> str:
    """Converts a space to JSON. Raises ValueError for a space that no policy here acts on or observes."""
    return json.dumps(_plain(space))


def _plain(space: gymnasium.Space[Any]) -> dict[str, Any]:
    if isinstance(space, spaces.Box):
        low, high = space.low.tolist(), space.high.tolist()
        return {"type": "Box", "dtype": str(space.dtype), "shape": list(space.shape), "low": low, "high": high}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "dtype": str(space.dtype), "start": int(space.start), "n": int(space.n)}
    if isinstance(space, spaces.MultiDiscrete):
        nvec, start = space.nvec.tolist(), space.start.tolist()
        return {"type": "MultiDiscrete", "dtype": str(space.dtype), "nvec": nvec, "start": start}
    if isinstance(space, spaces.MultiBinary):
        n = space.n if isinstance(space.n, int) else [int(k) for k in space.n]
        return {"type": "MultiBinary", "n": n}
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "subspaces": {name: _plain(part) for name, part in space.spaces.items()}}
    if isinstance(space, spaces.Tuple):
        return {"type": "Tuple", "subspaces": [_plain(part) for part in space.spaces]}
    raise ValueError(f"{space} cannot be written to a trajectory")


def space_from_json(text: str) -> gymnasium.Space[Any]:
    """Inverts `space_to_json`. Raises ValueError where the text describes no space."""
    try:
        return _space(parse_json(text))
    except (KeyError, TypeError, AttributeError, AssertionError, OverflowError, RecursionError, MemoryError) as error:
        raise ValueError(f"no space: {type(error).__name__}: {error}") from error


def _space(plain: dict[str, Any]) -> gymnasium.Space[Any]:
    kind = plain["type"]
    if kind == "Box":
        dtype = np.dtype(plain["dtype"])
        low, high = (np.array(plain[name], dtype).reshape(plain["shape"]) for name in ("low", "high"))
        return spaces.Box(low, high, dtype=dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(plain["n"], start=plain["start"], dtype=np.dtype(plain.get("dtype", "int64")).type)
    if kind == "MultiDiscrete":
        dtype = np.dtype(plain["dtype"])
        return spaces.MultiDiscrete(np.array(plain["nvec"], dtype), dtype.type, start=np.array(plain["start"], dtype))
    if kind == "MultiBinary":
        return spaces.MultiBinary(plain["n"])
    if kind == "Dict":
        # of a plain dict Gymnasium would sort the keys, and a network's inputs lie in the order of training
        return spaces.Dict([(name, _space(part)) for name, part in plain["subspaces"].items()])
    if kind == "Tuple":
        return spaces.Tuple([_space(part) for part in plain["subspaces"]])
    raise ValueError(f"no space: its type is {kind!r:.40}")


def write_spaces(
    run_dir: Path, observation_space: gymnasium.Space[Any], action_space: gymnasium.Space[Any], mask_size: int = 0
) -> None:
    """Writes RUN/spaces.json: the environment's spaces of observations and of actions, and the size of its masks."""
    content = {"observation_space": _plain(observation_space), "action_space": _plain(action_space)}
    replace_atomically(run_dir / paths.SPACES, json.dumps(content | {"mask_size": mask_size}).encode())


def read_spaces(run_dir: Path) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]] | None:
    """Reads (observation space, action space) of a run; None where none were written.

    Raises:
      ValueError: the file is damaged.
    """
    content = _content(run_dir)
    return None if content is None else content[:2]


def read_mask_size(run_dir: Path) -> int:
    """Reads how many choices the masks of a run's environment speak of; 0 where it has none, or where an earlier dppo
    has not noted it. Raises ValueError as `read_spaces`.
    """
    content = _content(run_dir)
    return 0 if content is None else content[2]


def _content(run_dir: Path) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any], int] | None:
    try:
        content = parse_json(read_regular(run_dir / paths.SPACES, run_dir))
        observed, acted = (space_from_json(json.dumps(content[name])) for name in ("observation_space", "action_space"))
        mask_size = content.get("mask_size", 0)
        if type(mask_size) is not int or mask_size < 0:
            raise ValueError(f"its mask_size is {mask_size!r:.40}")
        return observed, acted, mask_size
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{run_dir / paths.SPACES} cannot be read: {error}") from error
