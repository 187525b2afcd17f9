"""Compares a policy's ONNX graph, as onnxruntime computes it, with the policy itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from gymnasium import spaces

from dppo.envs.leaves import Leaf, array_type, leaves, range_of
from dppo.models.distributions import Bernoulli, DiagGaussian, make_distribution
from dppo.models.encoders import in_float32
from dppo.models.input_tensors import observed_leaves
from dppo.models.inputs import Numbers
from dppo.models.onnx_graph import ACTION, LOG_PROB, MASK, NEW_STATE, NOISE, OBSERVATION, STATE, VALUE, named
from dppo.seeding import draw_rows

if TYPE_CHECKING:
    import gymnasium

    from dppo.models.inputs import Inputs
    from dppo.models.policy import ActorCritic

_PIECE = 100
"""The most rows of a call. With memory, each call is a step."""


class Difference(NamedTuple):
    """The largest difference of a graph from its policy."""

    size: float
    """Absolute up to a size of 1, relative above. Of a choice: the distance of its score from the best one's; 0 for the
    same choice."""
    where: str
    """The name of the output."""


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
    """Compares all outputs on observations drawn from the policy's own moments; the policy computes in float32.

    Args:
      policy, both_spaces, mask_size, reward_scale, is_sampled: what the graph was made of (`PolicyGraph`).
      data: the ONNX file's bytes.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    observed, acted = both_spaces
    rng = np.random.default_rng(0)
    states, worst = policy.first_states(_PIECE), Difference(0.0, names[0])
    network: Any = getattr(policy.network, "module", None)
    for rows in _pieces(num_observations):
        observations = drawn_observations(policy.inputs, observed, rows, rng)
        masks = _drawn_masks(policy.distribution.choices, rows, rng) if mask_size else None
        noise = draw_rows(rng, policy.distribution.noise_kinds, rows) if is_sampled else None
        before = states[:rows].copy()
        extra = {MASK: masks, STATE: before if policy.state_size else None, NOISE: noise}
        feed = {named(OBSERVATION, leaf.name): leaf.of(observations) for leaf in observed_leaves(observed)}
        feed |= {name: array for name, array in extra.items() if array is not None}
        found = dict(zip(names, session.run(names, feed), strict=True))
        if network is None:
            expected = _Expected(policy, observations, masks, noise, before, reward_scale)
        else:
            with in_float32(network):
                expected = _Expected(policy, observations, masks, noise, before, reward_scale)
        states[:rows] = expected.states
        for name, size in expected.differences(acted, found):
            if not size <= worst.size:  # also where it is no number
                worst = Difference(size, name)
    return worst


def _pieces(num_observations: int) -> Iterator[int]:
    """Yields numbers of rows: a file that holds for one of them only is found out."""
    yield 1
    for done in range(1, num_observations, _PIECE):
        yield min(_PIECE, num_observations - done)


class _Expected:
    """What the policy gives for a batch of observations."""

    def __init__(
        self, policy: ActorCritic, observations: np.ndarray, masks: np.ndarray | None, noise: np.ndarray | None,
        states: np.ndarray, reward_scale: float,
    ) -> None:  # fmt: skip
        inputs, distribution = policy.inputs(observations), policy.distribution
        self.states, self.noise = states.copy(), noise
        head, values = policy.forward(inputs, masks, states)
        self.head, self.values = head.copy(), values / reward_scale
        if noise is None:
            actions = policy.greedy(inputs, masks, self.states)
        else:
            actions = policy.act(inputs, noise, masks=masks, states=self.states)[0]
        self.log_probs = distribution.evaluate(self.head, actions)[0]
        self.actions = distribution.to_env(actions)

    def differences(self, acted: gymnasium.Space[Any], found: dict[str, np.ndarray]) -> Iterator[tuple[str, float]]:
        """Yields each output's name and its largest difference."""
        outputs = noise = 0
        for leaf in leaves(acted):
            distribution, name = make_distribution(leaf.space), named(ACTION, leaf.name)
            scores = self.head[:, outputs : outputs + distribution.network_outputs]
            noises = None if self.noise is None else self.noise[:, noise : noise + distribution.noise_size]
            ours, theirs = leaf.of(self.actions), found[name]
            if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
                yield name, np.inf
            elif isinstance(distribution, DiagGaussian):
                yield name, _distance(theirs, ours)
            elif isinstance(distribution, Bernoulli):
                yield name, _bits_distance(theirs, ours, scores, noises)
            else:
                yield name, _choice_distance(leaf, distribution.choices, theirs, ours, scores, noises)
            outputs, noise = outputs + distribution.network_outputs, noise + distribution.noise_size
        yield VALUE, _distance(found[VALUE], self.values)
        yield LOG_PROB, _distance(found[LOG_PROB], self.log_probs)
        if NEW_STATE in found:
            yield NEW_STATE, _distance(found[NEW_STATE], self.states)


def _distance(found: np.ndarray, expected: np.ndarray) -> float:
    one, other = found.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.where(one == other, 0.0, np.abs(one - other))
    if expected.dtype == np.float16:  # the last bit is far more than the tolerance
        gap = np.where(gap <= np.spacing(np.abs(expected)).astype(np.float64), 0.0, gap)
    return float((gap / np.maximum(1.0, np.abs(other))).max(initial=0.0))


def _bits_distance(found: np.ndarray, expected: np.ndarray, scores: np.ndarray, noise: np.ndarray | None) -> float:
    margin = scores if noise is None else noise - 0.5 * (1.0 + np.tanh(0.5 * scores))
    differ = (found != expected).reshape(margin.shape)
    return float(np.where(differ, np.abs(margin), 0.0).max(initial=0.0))


def _choice_distance(
    leaf: Leaf, choices: tuple[int, ...], found: np.ndarray, expected: np.ndarray, scores: np.ndarray,
    noise: np.ndarray | None,
) -> float:  # fmt: skip
    space: Any = leaf.space
    starts = np.asarray(space.start if hasattr(space, "start") else space.low).reshape(-1).astype(np.int64)
    taken, best = (a.reshape(len(a), len(choices)).astype(np.int64) - starts for a in (found, expected))
    noisy, first, worst = scores if noise is None else scores + noise, 0, 0.0
    rows = np.arange(len(noisy))
    for i, n in enumerate(choices):
        part = noisy[:, first : first + n]
        if not ((taken[:, i] >= 0) & (taken[:, i] < n)).all():
            return np.inf
        gap = part[rows, best[:, i]] - part[rows, taken[:, i]]
        worst = max(worst, float(np.where(taken[:, i] == best[:, i], 0.0, gap).max(initial=0.0)))
        first += n
    return worst


# -- what it is compared on --------------------


def drawn_observations(inputs: Inputs, space: gymnasium.Space[Any], rows: int, rng: np.random.Generator) -> np.ndarray:
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
        if part is None:  # an image
            values = rng.uniform(np.maximum(low, -1e3), np.minimum(high, 1e3), size)
        else:
            values = (part.mean + 2.0 / part.inverse_std * rng.standard_normal((rows, part.width))).reshape(size)
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
