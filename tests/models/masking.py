"""Masks, and what a masked distribution must equal: torch's for the space of the legal actions alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from tests import torch_reference as reference

CASES: dict[str, spaces.Space] = {
    "Discrete": spaces.Discrete(5, start=-1),
    "MultiDiscrete": spaces.MultiDiscrete([2, 4, 1, 3]),
    "integers": spaces.Box(np.array([[-2, 0]]), np.array([[1, 2]]), dtype=np.int8),
    "Dict": spaces.Dict({
        "arm": spaces.Tuple([
            spaces.Box(-2.0, 3.0, (2,)), spaces.Discrete(3, start=2), spaces.Box(0, 2, (2,), np.uint8),
        ]),
        "bits": spaces.MultiBinary(2),
        "gear": spaces.MultiDiscrete([2, 3]),
        "force": spaces.Box(-np.inf, np.inf, (1, 1), np.float64),
    }),
}  # fmt: skip


def random_masks(choices: tuple[int, ...], rows: int, rng: np.random.Generator) -> np.ndarray:
    """[rows, mask_size] bool: all legal in the first row, one action of each choice in the second, any elsewhere."""
    masks = []
    for n in choices:
        legal = rng.random((rows, n)) < 0.5
        legal[0], legal[1] = True, False
        legal[np.arange(1, rows), rng.integers(n, size=rows - 1)] = True
        masks.append(legal)
    return np.concatenate(masks, axis=1)


class Legal(NamedTuple):
    """What is expected of one row."""

    figures: tuple[float, float, float]
    """Log-probability, entropy, KL."""
    gradients: tuple[np.ndarray, np.ndarray]
    """Of evaluate's pullback and of the KL, [K]; 0 where an action is ruled out."""


def expected_of_legal(
    space: spaces.Space, old: np.ndarray, head: np.ndarray, action: np.ndarray, d_log_prob: float, d_entropy: float,
    weight: float,
) -> Legal:  # fmt: skip
    """Leaves out what is ruled out of a row's head [K], and asks torch about the smaller space."""
    is_legal = head != -np.inf
    each, values, column, value = [], [], 0, 0
    taken = reference.columns_of(space, action)[0]
    for _, leaf in reference.leaves(space):
        if not reference.sizes(leaf):
            each.append(leaf)
            column += reference.network_outputs(leaf)
            count = int(np.prod(leaf.shape))
            values += taken[value : value + count].tolist()
            value += count
            continue
        numbers = []
        for n in reference.sizes(leaf):
            legal = np.flatnonzero(is_legal[column : column + n])
            numbers.append(len(legal))
            values.append(float(np.flatnonzero(legal == taken[value]).item()))
            column, value = column + n, value + 1
        each.append(spaces.MultiDiscrete(numbers))
    smaller = spaces.Tuple(each)
    torch_old, leaf_head = reference.tensors(old[None, is_legal], head[None, is_legal])
    parts = reference.parts(smaller, leaf_head.requires_grad_())
    chosen = reference.tensors(np.array(values))[0]
    log_prob = sum(part.log_prob(v) for part, v in zip(parts, chosen, strict=True))
    entropy, kl = reference.entropy(smaller, leaf_head), reference.kl(smaller, torch_old, leaf_head)
    gradients = []
    for total in (d_log_prob * log_prob + d_entropy * entropy, weight * kl):
        leaf_head.grad = None
        total.sum().backward(retain_graph=True)
        gradient = np.zeros(len(head))
        gradient[is_legal] = leaf_head.grad[0]
        gradients.append(gradient)
    return Legal((log_prob.item(), entropy.item(), kl.item()), (gradients[0], gradients[1]))
