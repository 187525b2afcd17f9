"""Action distributions on the network's head: sampling, log-probabilities, entropies, KL, and their gradients, in
NumPy.

A distribution is parametrised by `head` [B, K]. The noise that a sample needs is an argument, drawn from the
environment's own stream, so that sampling is a pure function. `evaluate` gives log-probabilities and entropies
together with their pullback: (d_log_prob [B], d_entropy scalar) -> d_head [B, K], which reuses what `evaluate` has
computed. On small batches a NumPy call costs about a microsecond whatever it computes, and a reduction over a short
last axis costs several. Hence the few calls, and arrays with the samples in their last axis.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from dppo.envs.leaves import MOST_VALUES, parts
from dppo.models.composite import Composite
from dppo.models.discrete import MAX_LOGIT, Bernoulli, Categorical, MultiCategorical, numbers_of_values
from dppo.models.gaussian import LOG_STD_BOUNDS, DiagGaussian

__all__ = [
    "LOG_STD_BOUNDS", "MAX_LOGIT", "Bernoulli", "Categorical", "Composite", "DiagGaussian", "Distribution",
    "MultiCategorical", "make_distribution",
]  # fmt: skip

Distribution = Categorical | MultiCategorical | Bernoulli | DiagGaussian | Composite


def make_distribution(space: gymnasium.Space[Any]) -> Distribution:
    """Makes the distribution that fits an action space. Raises ValueError for a space that none fits."""
    return _make(space, ())


def _make(space: gymnasium.Space[Any], path: tuple[str, ...]) -> Distribution:
    """Makes the distribution of the part of an action space that `path` leads to."""
    problem = _problem(space)
    if problem is not None:
        raise ValueError(_refusal(space, path, problem))
    inner = parts(space)
    if inner is not None:
        return Composite(space, {name: _make(part, (*path, name)) for name, part in inner.items()})
    if isinstance(space, spaces.Discrete):
        return Categorical(space)
    if isinstance(space, spaces.MultiBinary):
        return Bernoulli(space)
    if isinstance(space, spaces.Box) and _is_of_floats(space):
        return DiagGaussian(space)
    assert isinstance(space, (spaces.MultiDiscrete, spaces.Box))
    return MultiCategorical(space)


def _is_of_floats(space: spaces.Box) -> bool:
    return np.issubdtype(space.dtype, np.floating)


def _problem(space: gymnasium.Space[Any]) -> str | None:
    """Says why no distribution fits a space, whatever its parts are. None if one does."""
    try:
        parts(space)
    except ValueError as error:
        if isinstance(space, (spaces.Dict, spaces.Tuple)):
            return f"it{str(error).removeprefix(str(space))}"
        return "Discrete, MultiDiscrete, MultiBinary, Box, and Dict and Tuple of these are"
    if space.shape is not None and 0 in space.shape:
        return "it has no element"
    if isinstance(space, spaces.Box) and not _is_of_floats(space):
        most = max(numbers_of_values(space))
        if most > MOST_VALUES:
            return f"a Box of integers may have at most {MOST_VALUES} values per element, and one has {most:,}"
    return None


def _refusal(space: gymnasium.Space[Any], path: tuple[str, ...], problem: str) -> str:
    """Says which part of the action space has the problem, and names the wrapper that helps."""
    what = f"part {'/'.join(path)!r} of the action space, {space}," if path else f"action space {space}"
    arguments = "env, function, space"
    comment = "a space that is supported, and a function from its actions to the environment's own"
    if isinstance(space, spaces.Box) and 0 not in space.shape:
        if path:
            comment = "a space with a Box of floats in this place, and a function that rounds them"
        else:
            arguments = f"env, lambda action: action.round().astype('{space.dtype}'), Box(low, high, dtype=float)"
            comment = "low and high are those of its action_space"
    return (
        f"{what} is not supported: {problem}; register the environment with"
        f" gymnasium.wrappers.TransformAction({arguments}) around it: {comment}"
    )
