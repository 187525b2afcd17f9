"""Says why a constructor did not make an environment: wrong arguments, an error inside, or a result of another kind."""

from __future__ import annotations

import difflib
import inspect
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import gymnasium

from dppo.envs.checks import show
from dppo.envs.reasons import reason

_P = inspect.Parameter
_UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")


def why_not_made(creator: Callable[..., Any] | None, given: Mapping[str, Any], error: Exception) -> str:
    """Says why `creator(**given)` has raised `error`: in one line, with the constructor's signature where the arguments
    are wrong, else with the line of the user's code.
    """
    wrong = _wrong_arguments(creator, given, error) if isinstance(error, TypeError) and creator is not None else None
    return wrong or reason(error)


def why_not_wrapped(wrapper: Callable[..., Any], error: Exception) -> str:
    """Says why `wrapper(env)` has raised `error`."""
    needed = [p.name for p in (_parameters(wrapper) or [])[1:] if p.default is _P.empty and p.kind in _NAMED]
    if isinstance(error, TypeError) and needed:
        return (
            f"it needs {_listed(needed)} as well, and a wrapper is given the environment alone: name a function of"
            f" yours that takes env and returns {_signature(wrapper)}"
        )
    return reason(error)


def why_no_env(made: Any) -> str:
    """Says what a constructor or wrapper has returned that is no gymnasium.Env, and the repair."""
    cls = made if isinstance(made, type) else type(made)
    names = {base.__name__ for base in cls.__mro__}
    if isinstance(made, type):
        return f"returned the class {cls.__name__} itself: return an object of it, {cls.__name__}(…)"
    if made is None:
        return "returned nothing: return the environment"
    if "VectorEnv" in names or isinstance(made, gymnasium.vector.VectorEnv):
        return (
            f"returned {cls.__name__}, a vector of environments: return a single one (dppo makes as many as --num-envs"
            " says), or register the vector as vector_entry_point and use --vectorization native"
        )
    if any(base.__module__.partition(".")[0] == "gym" for base in cls.__mro__):
        return f"returned {cls.__name__}, an environment of the old package gym: {_OLD_API}"
    if hasattr(made, "reset") and hasattr(made, "step"):
        return f"returned {cls.__name__}, which is no gymnasium.Env: write `class {cls.__name__}(gymnasium.Env)`"
    return f"returned {show(made)}, and must return a gymnasium.Env"


def named_parameters(creator: Callable[..., Any] | None) -> list[str]:
    """Returns the arguments that a constructor takes by name; [] where they cannot be known."""
    parameters = _parameters(creator) if creator is not None else None
    return [p.name for p in parameters or [] if p.kind in (_P.POSITIONAL_OR_KEYWORD, _P.KEYWORD_ONLY)]


def require_seed(env: gymnasium.Env[Any, Any]) -> None:
    """Raises ValueError where reset() takes no seed, as before Gymnasium: it returns no info either."""
    while isinstance(env, gymnasium.Wrapper) and type(env).__module__.startswith("gymnasium."):
        env = env.env
    parameters = _parameters(env.reset)
    if parameters is not None and not any(p.name == "seed" or p.kind is _P.VAR_KEYWORD for p in parameters):
        raise ValueError(
            f"reset() of {type(env).__name__} takes no seed, as environments of the old package gym: let it be"
            f" reset(self, *, seed=None, options=None) and return (observation, info), or {_SHIMMY}"
        )


_SHIMMY = (
    "wrap it by shimmy's GymV21CompatibilityV0(env=…) or GymV26CompatibilityV0(env=…) (pip install 'shimmy[gym-v21]' or"
    " 'shimmy[gym-v26]')"
)
_OLD_API = f"derive it from gymnasium.Env and adapt reset() and step(), or {_SHIMMY}"
_NAMED = (_P.POSITIONAL_ONLY, _P.POSITIONAL_OR_KEYWORD, _P.KEYWORD_ONLY)


def _wrong_arguments(creator: Callable[..., Any], given: Mapping[str, Any], error: Exception) -> str | None:
    parameters = _parameters(creator)
    if parameters is None:
        return None
    takes_any = any(p.kind is _P.VAR_KEYWORD for p in parameters)
    names = [p.name for p in parameters if p.kind in _NAMED]
    needed = [p.name for p in parameters if p.kind in _NAMED and p.default is _P.empty and p.name not in given]
    if takes_any:  # what it passes on may be refused further inside
        found = next((m[1] for e in _chain(error) if (m := _UNEXPECTED.search(str(e)))), None)
        if found is not None and found in given and found not in names:
            return f"{reason(error)}{_meant(found, _accepted(creator))} The constructor is {_signature(creator)}"
    elif unknown := [name for name in given if name not in names]:
        meant = _meant(unknown[0], names)
        return f"it takes no argument {_listed(unknown)}{meant} The constructor is {_signature(creator)}"
    if needed:
        example = f"--env-kwargs {' '.join(f'{name}=VALUE' for name in needed)}"
        objects = "what is not of TOML, a function of yours passes (--env module:function)"
        return f"it needs {_listed(needed)}: give {example}; {objects}. The constructor is {_signature(creator)}"
    return None


def _parameters(function: Callable[..., Any]) -> Any:
    """Returns the parameters of a call; None where they cannot be known, as of functions written in C."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None


def _accepted(creator: Callable[..., Any]) -> list[str]:
    """Returns the names that a constructor takes, and those of its base classes as far as **kwargs are passed on."""
    if not isinstance(creator, type):
        return [p.name for p in _parameters(creator) or []]
    names: list[str] = []
    for base in creator.__mro__:
        if "__init__" in vars(base) and base is not object:
            parameters = _parameters(vars(base)["__init__"]) or []
            names += [p.name for p in parameters[1:] if p.kind in _NAMED]
            if not any(p.kind is _P.VAR_KEYWORD for p in parameters):
                break
    return names


def _signature(function: Callable[..., Any]) -> str:
    """Returns a signature in one line, without types."""
    parts = []
    stars = {_P.VAR_POSITIONAL: "*", _P.VAR_KEYWORD: "**"}
    for p in _parameters(function) or []:
        default = "" if p.default is _P.empty else f"={' '.join(reprlib.repr(p.default).split())}"
        parts.append(f"{stars.get(p.kind, '')}{p.name}{default}")
    return f"{getattr(function, '__name__', type(function).__name__)}({', '.join(parts)})"


def _meant(name: str, names: Iterable[str]) -> str:
    names = list(names)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5) or [longer for longer in names if name in longer]
    return f"; did you mean {near[0]!r}?" if near else "."


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _chain(error: BaseException | None) -> Iterable[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
