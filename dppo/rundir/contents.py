"""Checks the values of a checkpoint, which may be wrong even where its checksums are right.

No check reads files; each raises a ValueError that names the value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from dppo.data import EnvState
from dppo.envs.leaves import as_leaves, from_leaves, leaves

if TYPE_CHECKING:
    import gymnasium

NUMBERS = ("version", "iteration", "round", "updates", "env_steps", "steps_learnt_from")
STATE = ("numbers", "optimizer_steps", "kl_coef", "moments", "parameters", "optimizer", "shapes")
COUNTERS = ("returns", "lengths", "episodes", "next_episode", "train_s")
"""Names of the values that a resume needs."""
MAX_AXES = 64
"""The most axes of an array, NumPy's own limit."""


# -- one value --------------------


def check_count(name: str, value: Any) -> None:
    """Checks that a value is a whole number of at least 0 that fits into 63 bits."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{name} is {_said(value)}; a whole number of at least 0 is expected")


def _check_real(name: str, value: Any) -> None:
    if type(value) not in (int, float) or not abs(value) < math.inf or (type(value) is int and abs(value) >= 2**63):
        raise ValueError(f"{name} is {_said(value)}; a finite number is expected")


def _check_size(name: str, value: Any) -> None:
    _check_real(name, value)
    if value < 0:
        raise ValueError(f"{name} is {value}; it cannot be negative")


def _check_array(name: str, value: Any, dtype: type, ndim: int) -> None:
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.ndim != ndim:
        raise ValueError(f"{name} is {_said(value)}; an array of {np.dtype(dtype)} with {ndim} axes is expected")
    if not np.isfinite(value).all():
        raise ValueError(f"{name} holds numbers that are not finite")


def _check_dict(name: str, value: Any, key: type, check: Callable[[str, Any], None]) -> None:
    if not isinstance(value, dict) or any(type(k) is not key for k in value):
        raise ValueError(f"{name} is {_said(value)}; a table is expected")
    for k, part in value.items():
        check(f"{name}[{k!r}]", part)


def _check_list(name: str, value: Any, check: Callable[[str, Any], None]) -> None:
    if not isinstance(value, list):
        raise ValueError(f"{name} is {_said(value)}; a list is expected")
    for i, part in enumerate(value):
        check(f"{name}[{i}]", part)


def _check_constant(name: str, value: Any) -> None:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        raise ValueError(f"{name} is {_said(value)}; an array of numbers is expected")


def _check_shape(name: str, value: Any) -> None:
    _check_list(name, value, check_count)
    if len(value) > MAX_AXES:
        raise ValueError(f"{name} has {len(value)} axes; at most {MAX_AXES} are expected")


def _said(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {value.shape}"
    text = repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:40]}…"


# -- the parts of a checkpoint --------------------


def _check_waiting(name: str, value: Any) -> None:
    _check_list(name, value, _check_real)
    if len(value) % 3:
        raise ValueError(f"{name} has {len(value)} numbers; three for each episode are expected")


def _check_under_way(name: str, value: Any) -> None:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{name} is {_said(value)}; two lists are expected")
    _check_list(f"{name}[0]", value[0], check_count)
    _check_list(f"{name}[1]", value[1], _check_real)
    if len(value[0]) != len(value[1]):
        raise ValueError(f"{name} has {len(value[0])} environments and {len(value[1])} beginnings")


def _check_case(name: str, value: Any) -> None:
    if not isinstance(value, dict) or value.keys() != {"episodes", "returns"}:
        raise ValueError(f"{name} is {_said(value)}; a table of episodes and returns is expected")
    check_count(f"{name}.episodes", value["episodes"])
    _check_list(f"{name}.returns", value["returns"], _check_real)


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "numbers": lambda name, value: _check_dict(name, value, str, check_count),
    "optimizer_steps": check_count,
    "kl_coef": _check_size,
    "lr": _check_size,
    "moments": lambda name, value: _check_array(name, value, np.float64, 1),
    "parameters": lambda name, value: _check_array(name, value, np.float32, 1),
    "optimizer": lambda name, value: _check_array(name, value, np.float32, 2),
    "shapes": lambda name, value: _check_dict(name, value, str, _check_shape),
    "constants": lambda name, value: _check_dict(name, value, str, _check_constant),
    "returns": lambda name, value: _check_list(name, value, _check_real),
    "lengths": lambda name, value: _check_list(name, value, check_count),
    "settled": lambda name, value: _check_list(name, value, _check_real),
    "waiting": lambda name, value: _check_waiting(name, value),
    "under_way": lambda name, value: _check_under_way(name, value),
    "episodes": check_count,
    "next_episode": check_count,
    "train_s": _check_size,
    "losses": lambda name, value: _check_dict(name, value, str, check_count),
    "rows": lambda name, value: _check_dict(name, value, int, check_count),
    "cases": lambda name, value: _check_dict(name, value, str, _check_case),
}


def check_values(state: Any, counters: Any) -> None:
    """Checks that the values of the learner's state and of rank 0's counters have the right types and fit together."""
    for where, part in (("state", state), ("counters", counters)):
        if not isinstance(part, dict):
            raise ValueError(f"{where} is {_said(part)}; a table is expected")
        for name, value in part.items():
            if name in _CHECKS:
                _CHECKS[name](f"{where}.{name}", value)
    if "parameters" in state:
        size = len(state["parameters"])
        named = sum(math.prod(shape) for shape in state.get("shapes", {}).values())
        held = state["optimizer"].shape[1] if "optimizer" in state else size
        if not size == named == held:
            raise ValueError(
                f"state.parameters has {size} numbers, its shapes name {named}, the optimiser has {held} of each kind"
            )


def check_state(state: dict[str, Any]) -> None:
    """Checks that all of the learner's state is there."""
    _check_names("state", state, STATE)
    _check_names("state.numbers", state["numbers"], NUMBERS)


def check_complete(
    state: dict[str, Any], counters: dict[str, Any], ranks: dict[int, tuple[int, list[EnvState]]]
) -> None:
    """Checks that everything is there that a resume needs."""
    check_state(state)
    _check_names("counters", counters, COUNTERS)
    listed = [env.env for _, envs in ranks.values() for env in envs]
    if len(set(listed)) < len(listed):
        raise ValueError("an environment is there twice")


def _check_names(where: str, part: dict[str, Any], names: Iterable[str]) -> None:
    for name in names:
        if name not in part:
            raise ValueError(f"{where}.{name} is missing")


# -- environments --------------------

_SCALARS = {"int": np.int64, "float": np.float64}
_COLUMNS = {f.name: _SCALARS[f.type] for f in fields(EnvState) if f.type in _SCALARS}  # type: ignore[index]
_ARRAYS = [f.name for f in fields(EnvState) if f.type == "np.ndarray"]
assert {*_COLUMNS, *_ARRAYS, "saved"} == set(EnvState.__slots__), "a field of a type that checkpoints do not know"


def env_arrays(envs: list[EnvState]) -> dict[str, np.ndarray]:
    """Converts a rank's environments: a column [N] of each number, and `actions/3`, `observation/3`, … of each one. An
    array of a Dict or a Tuple has one name for each leaf: `observation/3/camera`.
    """
    out = {name: np.array([getattr(env, name) for env in envs], dtype) for name, dtype in _COLUMNS.items()}
    for name in _ARRAYS:
        if name == "told" and not any(len(env.told) for env in envs):
            continue  # nobody asks
        for i, env in enumerate(envs):
            out |= {f"{name}/{i}/{leaf}".removesuffix("/"): a for leaf, a in as_leaves(getattr(env, name)).items()}
    return out


def envs_of(arrays: dict[str, np.ndarray]) -> list[EnvState]:
    """Inverts `env_arrays`. Raises ValueError where an array is missing, unknown, or of another type."""
    count = len(arrays["env"]) if "env" in arrays and arrays["env"].ndim == 1 else 0
    wholes: dict[str, dict[str, np.ndarray]] = {}
    for path, array in arrays.items():
        name, _, rest = path.partition("/")
        number, _, leaf = rest.partition("/")
        wholes.setdefault(f"{name}/{number}" if rest else name, {})[leaf] = array
    if not any(name.startswith("network_state/") for name in wholes):  # of a dppo without memory
        wholes |= {f"network_state/{i}": {"": np.empty(0, np.float32)} for i in range(count)}
    if not any(name.startswith("told/") for name in wholes):
        wholes |= {f"told/{i}": {"": np.empty((0, 2))} for i in range(count)}
    names = [*_COLUMNS, *(f"{name}/{i}" for name in _ARRAYS for i in range(count))]
    if set(names) != set(wholes):
        odd = min(set(names) ^ set(wholes))
        raise ValueError(f"{odd} is {'missing' if odd in names else 'not known'}")
    for name, dtype in _COLUMNS.items():
        column = arrays[name]
        if column.dtype != dtype or column.shape != (count,):
            raise ValueError(f"{name} is {_said(column)}; {count} numbers of {np.dtype(dtype)} are expected")
        least = -1 if name == "episode" else 0  # -1 in a native vector form, whose episodes have no seeds of their own
        if dtype is np.int64 and (column < least).any():
            raise ValueError(f"{name} holds {column.min()}; it cannot be below {least}")
        if not np.isfinite(column).all():
            raise ValueError(f"{name} holds numbers that are not finite")
    columns: dict[str, list[Any]] = {name: arrays[name].tolist() for name in _COLUMNS}
    for name in _ARRAYS:
        num_axes = 1 if "actions" in name else 0  # the steps
        columns[name] = [from_leaves(wholes[f"{name}/{i}"], num_axes) for i in range(count)]
    for told in columns["told"]:
        is_table = told.dtype == np.float64 and told.ndim == 2 and told.shape[1] == 2 and np.isfinite(told).all()
        if not (is_table and ((told[:, 1] >= 0) & (told[:, 1] <= 1)).all()):
            raise ValueError(f"told is {_said(told)}; rows and shares of the run are expected")
    return [EnvState(**{name: values[i] for name, values in columns.items()}) for i in range(count)]


def check_environments(
    envs: Iterable[EnvState],
    observation_space: gymnasium.Space[Any],
    action_space: gymnasium.Space[Any],
    state_size: int = 0,
) -> None:
    """Checks that saved environments are of these spaces: a resume sends their actions to simulators; and that the
    network's states for them have `state_size` numbers.
    """
    for env in envs:
        state = env.network_state
        if state.dtype != np.float32 or state.shape != (state_size,) or not np.isfinite(state).all():
            raise ValueError(
                f"the network's state for environment {env.env} is {_said(state)}; {state_size} finite numbers are"
                " expected"
            )
        if not _are_values(env.observation[None], observation_space):
            raise ValueError(
                f"the observation of environment {env.env} is {_said(env.observation)}; the environment observes"
                f" {observation_space}"
            )
        for actions in (env.actions, env.last_actions):
            if len(actions) and not _are_values(actions, action_space, within_bounds=True):
                raise ValueError(f"the actions of environment {env.env} are none of {action_space}: {_said(actions)}")


def _are_values(array: np.ndarray, space: gymnasium.Space[Any], *, within_bounds: bool = False) -> bool:
    """Returns whether an array [L, ...] holds values of the space, leaf by leaf."""
    named, expected = as_leaves(array), {leaf.name: leaf for leaf in leaves(space)}
    if named.keys() != expected.keys():
        return False
    for name, leaf in expected.items():
        values = named[name]
        if values.shape[1:] != leaf.shape or values.dtype.kind not in "biuf":
            return False
        if within_bounds and not _are_within(values, leaf.space):
            return False
    return True


def _are_within(actions: np.ndarray, space: gymnasium.Space[Any]) -> bool:
    """Returns whether all actions [L, *act] of a plain space lie in it. Checks them at once: an episode may have
    millions.
    """
    from gymnasium import spaces

    if space.dtype is None or actions.dtype.kind != space.dtype.kind:
        return False
    low: Any = 0
    high: Any = 1
    if isinstance(space, spaces.Box):
        low, high = space.low, space.high
    elif isinstance(space, spaces.Discrete):
        low, high = space.start, space.start + space.n - 1
    elif isinstance(space, spaces.MultiDiscrete):
        low, high = space.start, space.start + space.nvec - 1
    return bool(((actions >= low) & (actions <= high) & np.isfinite(actions)).all())
