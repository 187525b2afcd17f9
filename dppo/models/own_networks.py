"""Networks of the user's own: what `model.factory` names is called, tried out, and given what it takes.

A factory has one of two forms. The names of its parameters tell which:

| parameters | observations that forward takes |
|---|---|
| `observation_space`, `action_heads` | as the space has them: a tensor, or dicts and tuples of tensors |
| any two others, for two numbers: D, K | one vector [B, D] of all leaves side by side |
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

from dppo.envs.leaves import Leaf, array_type, leaves, range_of
from dppo.models.distributions import Bernoulli, DiagGaussian, make_distribution
from dppo.models.flat import MOST_PARAMETERS, FlatParameters
from dppo.models.inputs import MOST_ONE_HOT, Inputs
from dppo.models.structured import RememberingNetwork, Structured, StructuredNetwork
from dppo.models.torch_checks import ROWS, Samples, check_module, vector_samples
from dppo.models.torch_network import TorchNetwork

if TYPE_CHECKING:
    import gymnasium

NAMES = ("observation_space", "action_heads")
"""The parameters of a factory that is given spaces."""
MOST_STATE = 100_000


class ActionHead(NamedTuple):
    """A leaf of the action space, and the outputs that it needs."""

    name: str
    """The path of the leaf, as "drive/0"; "" if the action space is this leaf."""
    kind: Literal["categorical", "bernoulli", "gaussian"]
    size: int
    """The number of outputs: a logit for each value of each choice or for each bit, a mean for each number."""
    choices: tuple[int, ...]
    """The number of values of each choice, if the kind is categorical."""


def action_heads(space: gymnasium.Space[Any]) -> tuple[ActionHead, ...]:
    """Returns the heads of an action space, in the order of the outputs."""
    heads = []
    for leaf in leaves(space):
        distribution = make_distribution(leaf.space)
        is_gaussian, is_bernoulli = isinstance(distribution, DiagGaussian), isinstance(distribution, Bernoulli)
        kind: Any = "gaussian" if is_gaussian else "bernoulli" if is_bernoulli else "categorical"
        heads.append(ActionHead(leaf.name, kind, distribution.network_outputs, distribution.choices))
    return tuple(heads)


def _samples(structured: Structured) -> Samples:
    """Returns observations of every leaf's kind, to try a network with: of the space's own values, or small ones."""
    rng = np.random.default_rng(0)
    shape, dtype = array_type(structured.space)

    def observations(rows: int, draw: Callable[[Leaf, int], Any]) -> Any:
        out = np.zeros((rows, *shape), dtype)
        for leaf in leaves(structured.space):
            bounds = range_of(leaf.space)
            if bounds is None:
                values = draw(leaf, rows)
            else:
                low, high = (np.broadcast_to(bound, leaf.shape) for bound in bounds)
                size = (rows, *leaf.shape)
                values = low if draw is _least else rng.integers(low, high, size, endpoint=True)
            leaf.of(out)[...] = values
        return structured(out)

    def usual(leaf: Leaf, rows: int) -> np.ndarray:
        if len(leaf.shape) == 3:
            space: Any = leaf.space
            low, high = np.maximum(space.low.astype(float), -1e3), np.minimum(space.high.astype(float), 1e3)
            return rng.uniform(low, np.maximum(low, high), (rows, *leaf.shape)).astype(leaf.dtype)
        numbers = rng.standard_normal((rows, *leaf.shape))
        kind = leaf.dtype.kind
        return numbers if kind == "f" else numbers > 0 if kind == "b" else np.rint(np.abs(2 * numbers))

    def small(leaf: Leaf, rows: int) -> np.ndarray:
        size = (rows, *leaf.shape)
        return rng.random(size) if leaf.dtype.kind == "f" else rng.integers(0, 2, size)

    return Samples(observations(2, _least), (observations(ROWS, usual), observations(ROWS, small)))


def _least(leaf: Leaf, rows: int) -> int:
    return 0


# -- how it is made --------------------


def make_own_network(
    factory: str,
    inputs: Inputs,
    observation_space: gymnasium.Space[Any],
    action_space: gymnasium.Space[Any],
    log_std: dict[str, tuple[int, ...]],
    num_sums: int,
    seed: int,
) -> tuple[TorchNetwork, FlatParameters]:
    """Makes the network of `module:function`, with its parameters.

    Args:
      inputs: the parts of an observation; they become raw if the network takes them as the space has them.
      log_std: the further parameters, which are not the network's.
      seed: of what the factory draws from the generators of Python, NumPy and torch.

    Raises:
      ValueError: the text says what is wrong with the factory, or with its network.
    """
    try:
        function = _imported(factory)
        structured = Structured(inputs, observation_space) if _takes_spaces(function) else None
        if structured is None and inputs.is_raw:
            raise ValueError(
                f"it takes vectors, and these observations have images or choices of more than {MOST_ONE_HOT} values:"
                f" have it take the parameters {' and '.join(NAMES)}, and forward gets them as they are; or put"
                " gymnasium.wrappers.FlattenObservation around the environment"
            )
        heads = action_heads(action_space)
        outputs = sum(head.size for head in heads)
        with _seeded_generators(seed):  # not before: a module that is imported may draw, but only once in a process
            state_size = 0
            if structured is not None:
                given = dict(zip(NAMES, (copy.deepcopy(observation_space), heads), strict=True))
                module, samples = _made(lambda: function(**given)), _samples(structured)
                state_size = _state_size(module)
            else:
                module, samples = _made(lambda: function(inputs.size, outputs)), vector_samples(inputs.size)
                if _state_size(module):
                    raise ValueError(
                        "its module has a state_size, and only a factory with the parameters"
                        f" {' and '.join(NAMES)} makes one with memory: give it these, or leave state_size out"
                    )
            check_module(module, samples, outputs, state_size)
    except ValueError as error:
        raise ValueError(f"model.factory={factory}: {error}") from error
    constants = {name: buffer.numpy() for name, buffer in module.named_buffers()}
    flat = FlatParameters(TorchNetwork.shapes(module) | log_std, num_sums, constants)
    if structured is None:
        return TorchNetwork(flat, module), flat
    inputs.use_raw()
    if state_size:
        return RememberingNetwork(flat, module, structured, state_size), flat
    return StructuredNetwork(flat, module, structured), flat


def _state_size(module: torch.nn.Module) -> int:
    """Returns the size of the memory that a module says it has; 0 without."""
    size = getattr(module, "state_size", 0)
    if type(size) is not int or not 0 <= size <= MOST_STATE:
        raise ValueError(
            f"its state_size is {size!r}; a module with memory gives there the length of its state, a whole number of"
            f" at most {MOST_STATE:,}"
        )
    return size


@contextlib.contextmanager
def _seeded_generators(seed: int) -> Iterator[None]:
    """Seeds torch's generator, and for a while Python's and NumPy's, so that a factory that draws from them makes the
    same network on every rank.
    """
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


def _imported(factory: str) -> Callable[..., Any]:
    module_name, _, function_name = factory.partition(":")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        file = module_name.endswith(".py")
        meant = f"; name the module, not its file: {module_name.removesuffix('.py')}:{function_name}" if file else ""
        raise ValueError(f"cannot be imported: {error}{meant}") from error
    except (Exception, SystemExit) as error:  # whatever the user's module does
        raise ValueError(f"cannot be imported: {type(error).__name__}: {error}") from error
    return function


def _takes_spaces(function: Callable[..., Any]) -> bool:
    """Returns whether a factory is to be given spaces. Raises ValueError if it has neither form."""
    forms = f"a factory has the parameters {' and '.join(NAMES)}, or takes two numbers (observation_size, num_outputs)"
    if isinstance(function, torch.nn.Module) or not callable(function):
        raise ValueError(f"it is a {type(function).__name__}, not a function or class that makes a network; {forms}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a function in C, nothing is known
        return False
    named = [name for name in NAMES if name in signature.parameters]
    try:
        if named:
            signature.bind(**dict.fromkeys(NAMES))
        else:
            signature.bind(1, 1)
    except TypeError as error:
        raise ValueError(f"its parameters are {', '.join(signature.parameters) or 'none'}; {forms}") from error
    return bool(named)


def _made(make: Callable[[], Any]) -> torch.nn.Module:
    """Returns the module that `make` returns. Raises ValueError if it is none, or too large."""
    try:
        with _of_possible_size():
            module = make()
    except _TooLargeError:
        raise
    except (Exception, SystemExit) as error:
        raise ValueError(f"it raised {type(error).__name__}: {error}") from error
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"it gave a {type(module).__name__}, not a torch.nn.Module")
    sizes = [p.numel() for p in module.parameters() if not torch.nn.parameter.is_lazy(p)]
    if sum(sizes) > MOST_PARAMETERS:
        raise _TooLargeError(f"it makes {sum(sizes):,} parameters{_TOO_LARGE}")
    return module


_TOO_LARGE = f", and at most {MOST_PARAMETERS:,} can be trained: choose smaller layers"


class _TooLargeError(ValueError):
    """More parameters than can be trained."""


@contextlib.contextmanager
def _of_possible_size() -> Iterator[None]:
    """Has torch refuse a parameter that is too large before its values are drawn, which would take all memory."""

    def check(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> None:
        if not torch.nn.parameter.is_lazy(parameter) and parameter.numel() > MOST_PARAMETERS:
            shape = list(parameter.shape)
            raise _TooLargeError(f"the {name} of a {type(module).__name__} is {shape}{_TOO_LARGE}")

    hook = torch.nn.modules.module.register_module_parameter_registration_hook(check)
    try:
        yield
    finally:
        hook.remove()
