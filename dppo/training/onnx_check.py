"""Compares a policy's ONNX graph, as onnxruntime computes it, with the policy itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from gymnasium import spaces

from dppo.envs.leaves import Leaf, array_type, leaves, range_of
from dppo.models.distributions import Bernoulli, DiagGaussian, make_distribution
from dppo.models.encoders import in_float32
from dppo.models.input_tensors import observed_leaves
from dppo.models.inputs import UNBOUNDED, Numbers
from dppo.models.onnx_graph import ACTION, LOG_PROB, MASK, NEW_STATE, NOISE, OBSERVATION, STATE, VALUE, named
from dppo.seeding import draw_rows

if TYPE_CHECKING:
    import gymnasium

    from dppo.models.inputs import Inputs
    from dppo.models.policy import ActorCritic

_PIECE = 100
"""The most rows of a call. With memory, each call is a step."""
_REACHES = (2.0, 0.3)
"""How many deviations numbers are drawn about their means, and which part of their range images. A network may know
small numbers only, as one that looks them up in a table does."""


class Difference(NamedTuple):
    """The largest difference of a graph from its policy."""

    size: float
    """Relative to the largest number of the output, or absolute if that is less than 1. Of a choice: the distance of
    its score from the best one's; 0 for the same choice."""
    where: str
    """The name of the output."""


class Sample(NamedTuple):
    """What a policy was given, and what it gave."""

    observations: np.ndarray
    masks: np.ndarray | None
    noise: np.ndarray | None
    states: np.ndarray
    head: np.ndarray
    """[B, K] after the masks."""
    outputs: dict[str, np.ndarray]
    """The actions of each leaf, as the environment takes them, and all else by the names of the graph's outputs."""


def largest_difference(
    policy: ActorCritic,
    both_spaces: tuple[gymnasium.Space[Any], gymnasium.Space[Any]],
    data: bytes,
    num_observations: int,
    *,
    mask_size: int,
    reward_scale: float,
    is_sampled: bool,
) -> Difference:
    """Compares all outputs on observations drawn about the policy's own moments; the policy computes in float32.

    Args:
      policy, both_spaces, mask_size, reward_scale, is_sampled: what the graph was made of (`PolicyGraph`).
      data: the ONNX file's bytes.

    Raises:
      ValueError: the network takes no observation that is drawn.
      RuntimeError: onnxruntime cannot compute the graph.
    """
    observed, acted = both_spaces
    given = {"mask_size": mask_size, "reward_scale": reward_scale, "is_sampled": is_sampled}
    samples = _samples(policy, both_spaces, num_observations, **given)
    found = _computed(data, samples, observed)
    heads = np.concatenate([sample.head for sample in samples])
    noise = np.concatenate([sample.noise for sample in samples if sample.noise is not None]) if is_sampled else None
    expected = {name: np.concatenate([sample.outputs[name] for sample in samples]) for name in samples[0].outputs}
    worst = Difference(0.0, next(iter(expected)))
    for name, size in _differences(acted, found, expected, heads, noise):
        if not size <= worst.size:  # also where it is no number
            worst = Difference(size, name)
    return worst


def _samples(
    policy: ActorCritic, both_spaces: tuple[gymnasium.Space[Any], gymnasium.Space[Any]], number: int, **given: Any
) -> list[Sample]:
    for reach in _REACHES:
        try:
            return list(_played(policy, both_spaces, number, reach, **given))
        except Exception as error:  # a network of the user's own may raise anything
            problem = f"the network cannot be compared, it raises {type(error).__name__}: {error!s:.200}"
    raise ValueError(problem)


def _played(
    policy: ActorCritic, both_spaces: tuple[gymnasium.Space[Any], gymnasium.Space[Any]], number: int, reach: float, *,
    mask_size: int, reward_scale: float, is_sampled: bool,
) -> Iterator[Sample]:  # fmt: skip
    rng, distribution = np.random.default_rng(0), policy.distribution
    all_states = policy.first_states(_PIECE)
    network: Any = getattr(policy.network, "module", None)
    for rows in _pieces(number):
        observations = drawn_observations(policy.inputs, both_spaces[0], rows, rng, reach)
        masks = _drawn_masks(distribution.choices, rows, rng) if mask_size else None
        noise = draw_rows(rng, distribution.noise_kinds, rows) if is_sampled else None
        before, after = all_states[:rows].copy(), all_states[:rows]
        with contextlib.nullcontext() if network is None else in_float32(network):
            inputs = policy.inputs(observations)
            head, values = (array.copy() for array in policy.forward(inputs, masks, before))
            if noise is None:
                actions = policy.greedy(inputs, masks, after)
            else:
                actions = policy.act(inputs, noise, masks=masks, states=after)[0]
        sent = distribution.to_env(actions)
        outputs = {named(ACTION, leaf.name): leaf.of(sent) for leaf in leaves(both_spaces[1])}
        outputs |= {VALUE: values / reward_scale, LOG_PROB: distribution.evaluate(head, actions)[0]}
        outputs |= {NEW_STATE: after.copy()} if policy.state_size else {}
        yield Sample(observations, masks, noise, before, head, outputs)


def _pieces(number: int) -> Iterator[int]:
    """Yields numbers of rows: a file that holds for one of them only is found out."""
    yield 1
    for done in range(1, number, _PIECE):
        yield min(_PIECE, number - done)


def _computed(data: bytes, samples: list[Sample], observed: gymnasium.Space[Any]) -> dict[str, np.ndarray]:
    """Returns what onnxruntime computes, by the names of outputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        found = []
        for sample in samples:
            extra = {MASK: sample.masks, NOISE: sample.noise, STATE: sample.states if sample.states.size else None}
            feed = {named(OBSERVATION, leaf.name): leaf.of(sample.observations) for leaf in observed_leaves(observed)}
            feed |= {name: array for name, array in extra.items() if array is not None}
            found.append(session.run(names, feed))
    except Exception as error:  # onnxruntime's own classes have no common one
        raise RuntimeError(f"onnxruntime cannot compute it: {error!s:.300}") from error
    return {name: np.concatenate(arrays) for name, arrays in zip(names, zip(*found, strict=True), strict=True)}


# -- distances --------------------


def _differences(
    acted: gymnasium.Space[Any],
    found: dict[str, np.ndarray],
    expected: dict[str, np.ndarray],
    heads: np.ndarray,
    noise: np.ndarray | None,
) -> Iterator[tuple[str, float]]:
    """Yields each output's name and its largest difference."""
    for name, ours in expected.items():
        if (ours.shape, ours.dtype) != (found[name].shape, found[name].dtype):
            yield name, np.inf
    first = first_noise = 0
    for leaf in leaves(acted):
        distribution, name = make_distribution(leaf.space), named(ACTION, leaf.name)
        scores = heads[:, first : (first := first + distribution.network_outputs)]
        end = first_noise + distribution.noise_size
        drawn, first_noise = None if noise is None else noise[:, first_noise:end], end
        if isinstance(distribution, DiagGaussian):
            yield name, _distance(found[name], expected[name])
        elif isinstance(distribution, Bernoulli):
            yield name, _bits_distance(found[name], expected[name], scores, drawn)
        else:
            noisy = scores if drawn is None else scores + drawn
            yield name, _choice_distance(leaf, distribution.choices, found[name], expected[name], noisy)
    for name in (VALUE, LOG_PROB, NEW_STATE):
        if name in expected:
            yield name, _distance(found[name], expected[name])


def _distance(found: np.ndarray, expected: np.ndarray) -> float:
    one, other = found.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.where(one == other, 0.0, np.abs(one - other))
    if expected.dtype == np.float16:  # the last bit is far more than what is accepted
        gap = np.where(gap <= np.spacing(np.abs(expected)).astype(np.float64), 0.0, gap)
    return float((gap / np.maximum(1.0, np.abs(other).max(axis=0))).max(initial=0.0))


def _bits_distance(found: np.ndarray, expected: np.ndarray, scores: np.ndarray, noise: np.ndarray | None) -> float:
    margin = scores if noise is None else noise - 0.5 * (1.0 + np.tanh(0.5 * scores))
    differ = (found != expected).reshape(margin.shape)
    return float(np.where(differ, np.abs(margin), 0.0).max(initial=0.0))


def _choice_distance(
    leaf: Leaf, choices: tuple[int, ...], found: np.ndarray, expected: np.ndarray, scores: np.ndarray
) -> float:
    space: Any = leaf.space
    starts = np.asarray(space.start if hasattr(space, "start") else space.low).reshape(-1).astype(np.int64)
    taken, best = (a.reshape(len(a), len(choices)).astype(np.int64) - starts for a in (found, expected))
    if not ((taken >= 0) & (taken < np.array(choices))).all():
        return np.inf
    first, worst, rows = 0, 0.0, np.arange(len(scores))
    for i, n in enumerate(choices):
        part = scores[:, first : (first := first + n)]
        gap = part[rows, best[:, i]] - part[rows, taken[:, i]]
        largest = np.maximum(1.0, np.abs(part[rows, best[:, i]]))
        worst = max(worst, float(np.where(taken[:, i] == best[:, i], 0.0, gap / largest).max(initial=0.0)))
    return worst


# -- what it is compared on --------------------


def drawn_observations(
    inputs: Inputs, space: gymnasium.Space[Any], rows: int, rng: np.random.Generator, reach: float = _REACHES[0]
) -> np.ndarray:
    """Draws raw observations [rows, *obs]: numbers about their means in training, others from the whole space."""
    shape, dtype = array_type(space)
    out = np.zeros((rows, *shape), dtype)
    of_numbers = {part.leaf.path: part for _, part in inputs.vector_leaves if isinstance(part, Numbers)}
    for leaf in leaves(space):
        size, bounds = (rows, *leaf.shape), range_of(leaf.space)
        if bounds is not None:
            low, high = (np.broadcast_to(bound, leaf.shape) for bound in bounds)
            leaf.of(out)[...] = rng.integers(low, high, size, endpoint=True)
            continue
        assert isinstance(leaf.space, spaces.Box)
        low, high = leaf.space.low.astype(np.float64), leaf.space.high.astype(np.float64)
        part = of_numbers.get(leaf.path)
        if part is not None:
            values = (part.mean + reach / part.inverse_std * rng.standard_normal((rows, part.width))).reshape(size)
        elif (np.abs([low, high]) < UNBOUNDED).all():  # an image
            values = rng.uniform(low, high if reach > 1 else np.minimum(low + 1, high), size)
        else:
            values = rng.standard_normal(size)
        values = np.clip(values, low, high)
        leaf.of(out)[...] = values if leaf.dtype.kind == "f" else np.rint(values)
    return out


def _drawn_masks(choices: tuple[int, ...], rows: int, rng: np.random.Generator) -> np.ndarray:
    """Draws masks [rows, M] bool with a legal action in each choice."""
    parts = []
    for n in choices:
        mask = rng.random((rows, n)) < 0.6
        mask[np.arange(rows), rng.integers(n, size=rows)] = True
        parts.append(mask)
    return np.concatenate(parts, axis=1)
