"""Finds what an environment's name means: a registration with Gymnasium, or a class or function that makes one."""

from __future__ import annotations

import difflib
import importlib
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from dppo.envs.packages import import_package_of
from dppo.envs.reasons import reason


def find_spec(env_id: str) -> tuple[EnvSpec, Callable[..., Any] | None]:
    """Returns the specification of `env_id`, and the callable where `module:callable` names one that is not registered.
    Imports the module first, if the id names one, else the package that is known to register the id.
    """
    module_name, colon, name = env_id.rpartition(":")
    module = _import(module_name, env_id, "env") if colon else None
    if module is None and name not in gymnasium.registry:
        import_package_of(name)
    spec = gymnasium.registry.get(name)
    if spec is not None:
        return spec, None
    if module is not None and hasattr(module, name):
        made_by = _callable_in(module, env_id, "env")
        return EnvSpec(env_id, entry_point=env_id, order_enforce=False, disable_env_checker=True), made_by
    if _is_of_gym(name):
        raise ValueError(
            f"env={env_id!r} is registered with the old package gym: try --env shimmy:GymV26Environment-v0 --env-kwargs"
            f" env_id={env_id} (pip install 'shimmy[gym-v26]'), or GymV21Environment-v0 ('shimmy[gym-v21]')"
        )
    own = [] if module is None else _own_callables(module)
    near = difflib.get_close_matches(name, [*gymnasium.registry, *own], n=1)
    if near:
        hint = f"did you mean {module_name + colon + near[0]!r}?"
    elif colon:
        hint = f"{module_name!r} was imported, but does not register it, and has no class or function of that name"
    else:
        hint = f"if a module of yours registers it, or has a class or function of that name, write 'the.module:{name}'"
    raise ValueError(f"env={env_id!r}: no environment {name!r} is registered; {hint}")


def is_of_this_program(env_id: str) -> bool:
    """Returns whether the program that runs, `__main__`, has registered `env_id` with a class or function of its own:
    another process cannot make it.
    """
    spec = gymnasium.registry.get(env_id.rpartition(":")[2])
    made_by = None if spec is None else spec.entry_point
    module = made_by.partition(":")[0] if isinstance(made_by, str) else getattr(made_by, "__module__", "")
    return module == "__main__"


def find_wrapper(name: str) -> Callable[..., Any]:
    """Returns the class or function that `module:callable` names. Raises ValueError where there is none."""
    module_name, _, attribute = name.rpartition(":")
    module = _import(module_name, name, "wrappers")
    if hasattr(module, attribute):
        return _callable_in(module, name, "wrappers")
    near = difflib.get_close_matches(attribute, [n for n in dir(module) if callable(getattr(module, n, None))], n=1)
    hint = f"did you mean '{module_name}:{near[0]}'?" if near else "it has no class or function of that name"
    raise ValueError(f"wrappers={name!r}: {module_name!r} has no {attribute!r}; {hint}")


def _is_of_gym(name: str) -> bool:
    """Returns whether a module that was imported has registered `name` with the package that Gymnasium replaces."""
    registry = getattr(sys.modules.get("gym.envs.registration"), "registry", {})
    return name in getattr(registry, "env_specs", registry)  # an attribute of it until gym 0.25


def _import(module: str, name: str, setting: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except Exception as error:  # a user's module may raise anything, and it is the user who can repair it
        raise ValueError(
            f"{setting}={name!r}: cannot import {module!r}: {reason(error)}{_not_its_file(name)}"
        ) from error


def _callable_in(module: ModuleType, name: str, setting: str) -> Callable[..., Any]:
    found = getattr(module, name.rpartition(":")[2])
    if not callable(found):
        raise ValueError(
            f"{setting}={name!r} is an object of {type(found).__name__}, which cannot be called: name its class, or a"
            " function that returns it"
        )
    made: Callable[..., Any] = found
    return made


def _own_callables(module: ModuleType) -> list[str]:
    """Returns the names of classes and functions that the module itself defines."""
    return [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__]


def _not_its_file(name: str) -> str:
    """Returns what to write instead where `folder/module.py:Id` names a file."""
    file, _, attribute = name.rpartition(":")
    if not file.endswith(".py"):
        return ""
    folder, _, module = file.removesuffix(".py").rpartition("/")
    return f"; name the module, not its file: {module}:{attribute}" + (f", with PYTHONPATH={folder}" if folder else "")


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
