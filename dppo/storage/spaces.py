"""Spaces and environment specifications as JSON text, in Minari's form, without Minari.

Uses gymnasium; trajectory segments carry it, readers and exports understand it.
"""

from __future__ import annotations

import json
from typing import Any

import gymnasium
from gymnasium import spaces


def space_to_json(space: gymnasium.Space[Any]) -> str:
    """Raises ValueError for a space that no policy here acts on or observes."""
    return json.dumps(_plain(space))


def _plain(space: gymnasium.Space[Any]) -> dict[str, Any]:
    if isinstance(space, spaces.Box):
        low, high = space.low.tolist(), space.high.tolist()
        return {"type": "Box", "dtype": str(space.dtype), "shape": list(space.shape), "low": low, "high": high}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "dtype": "int64", "start": int(space.start), "n": int(space.n)}
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


def spec_to_json(env_id: str) -> str:
    """Gymnasium's own JSON; only the id where the registration holds what JSON cannot."""
    try:
        return gymnasium.spec(env_id).to_json()
    except Exception:  # an entry point that is a function, arguments that are objects
        return json.dumps({"id": env_id})
