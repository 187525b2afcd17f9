"""Finds an environment's registration with Gymnasium, makes what it describes, and says how to repair what fails."""

from __future__ import annotations

import difflib
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from dppo.envs.reasons import reason

# What Gymnasium's own families need beyond Gymnasium, as dppo's optional dependencies name it.
_EXTRAS = {"gymnasium.envs.mujoco": "mujoco", "gymnasium.envs.box2d": "box2d"}


def find_spec(env_id: str) -> EnvSpec:
    """Returns the registration of `env_id`. Imports the module first, if the id names one."""
    module, colon, name = env_id.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except Exception as error:  # a user's module may raise anything, and it is the user who can repair it
            raise ValueError(
                f"env={env_id!r}: cannot import {module!r}: {reason(error)}{_not_its_file(env_id)}"
            ) from error
    spec = gymnasium.registry.get(name)
    if spec is not None:
        return spec
    near = difflib.get_close_matches(name, gymnasium.registry, n=1)
    if near:
        hint = f"did you mean {module + colon + near[0]!r}?"
    elif name.startswith("ALE/"):
        hint = f"write 'ale_py:{name}', so that ale_py registers it (pip install 'dppo[atari]')"
    elif colon:
        hint = f"{module!r} was imported, but does not register it"
    else:
        hint = f"if a module of yours registers it, write 'the.module:{name}'"
    raise ValueError(f"env={env_id!r}: no environment {name!r} is registered; {hint}")


def _not_its_file(env_id: str) -> str:
    """Returns what to write instead where `folder/module.py:Id` names a file."""
    file, _, name = env_id.rpartition(":")
    if not file.endswith(".py"):
        return ""
    folder, _, module = file.removesuffix(".py").rpartition("/")
    return f"; name the module, not its file: {module}:{name}" + (f", with PYTHONPATH={folder}" if folder else "")


def make_from(make: Callable[..., Any], spec: EnvSpec, **kwargs: Any) -> Any:
    """Calls `make(spec, **kwargs)`. Where that fails, says why, and how to get what cannot be imported."""
    try:
        return make(spec, **kwargs)
    except Exception as error:  # a user's constructor may raise anything, and it is the user who can repair it
        families = [extra for prefix, extra in _EXTRAS.items() if str(spec.entry_point).startswith(prefix)]
        missing = isinstance(error, ImportError | gymnasium.error.Error)
        install = f" (pip install 'dppo[{families[0]}]')" if families and missing else ""
        raise ValueError(f"env={spec.id!r} cannot be made: {reason(error)}{install}") from error


def keep_mujoco_quiet(spec: EnvSpec) -> None:
    """Turns MuJoCo's warnings into Python's, except those of making the environment. MuJoCo 4 appends its warnings to
    MUJOCO_LOG.TXT in the working directory, one file for all ranks; the first warning comes with every model that
    Gymnasium ships."""
    if not str(spec.entry_point).startswith("gymnasium.envs.mujoco"):
        return
    try:
        import mujoco
    except ImportError:
        return  # the attempt to make the environment says so
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(lambda text: None if "is deprecated" in text else warnings.warn(text, stacklevel=2))
