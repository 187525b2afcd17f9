"""Sequences: runs of steps of one environment, which a network with memory is trained on from its state at their start.

Samples of a sequence lie together. `firsts` [B] bool says where the network's state is not the one that the sample
before has left: at the start of each sequence, and of each episode within it. Without memory a sample is a sequence.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Order = np.ndarray | slice


def order_in_sequences(rows: int, num_envs: int, length: int) -> Order:
    """Returns the order of a rollout's steps [rows * num_envs], which lie by rows, in which the steps of each sequence
    of `length` rows lie together: `slice(None)` if they do already. The last sequences are shorter if `length` does not
    divide `rows`.
    """
    if length == 1:
        return slice(None)
    steps = np.arange(rows * num_envs).reshape(rows, num_envs)
    pieces = [steps[row : row + length].T.reshape(-1) for row in range(0, rows, length)]
    return np.concatenate(pieces) if pieces else steps.reshape(-1)


def first_steps(dones: np.ndarray, valid: np.ndarray, length: int) -> np.ndarray:
    """Returns [T, N] bool: the steps before which a sequence of `length` rows or an episode begins.

    Args:
      dones: [T, N] bool: an episode ends with the step.
      valid: [T, N] bool: false for the reset of a native environment, after which an episode begins as well.
    """
    firsts = np.zeros(dones.shape, bool)
    firsts[::length] = True
    firsts[1:] |= dones[:-1] | ~valid[:-1]
    return firsts


def shuffled(firsts: np.ndarray, num_pieces: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Splits samples into `num_pieces` pieces of whole sequences in random order, as even as whole sequences can be.

    Returns:
      The indices of the samples of each piece.
    """
    starts = np.flatnonzero(firsts)
    drawn = rng.permutation(len(starts))
    if len(starts) == len(firsts):
        return np.array_split(drawn, num_pieces)
    lengths = np.diff(starts, append=len(firsts))[drawn]
    ends = np.cumsum(lengths)
    samples = np.arange(len(firsts)) + np.repeat(starts[drawn] - (ends - lengths), lengths)
    edges = np.arange(1, num_pieces) * len(firsts) / num_pieces
    boundaries = np.append(0, ends)
    nearest = np.abs(boundaries[:, None] - edges).argmin(axis=0)
    return np.split(samples, boundaries[nearest])


class Packing(NamedTuple):
    """How a recurrent layer computes sequences of several lengths at once: step by step, the longest ones first."""

    order: np.ndarray
    """[B] int64: the samples by steps: all first ones, all second ones, …"""
    inverse: np.ndarray
    """[B] int64: where each sample is in `order`."""
    starts: np.ndarray
    """[Q] int64: the first samples of the sequences, the longest sequence first."""
    sizes: np.ndarray
    """[longest] int64: how many sequences have a first, second, … sample."""


def pack(firsts: np.ndarray) -> Packing:
    """Returns the packing of samples [B], of which the first begins a sequence."""
    starts = np.flatnonzero(firsts)
    lengths = np.diff(starts, append=len(firsts))
    longest_first = np.argsort(-lengths, kind="stable")
    places = np.empty_like(starts)
    places[longest_first] = np.arange(len(starts))
    steps = np.arange(len(firsts)) - np.repeat(starts, lengths)
    order = np.lexsort((np.repeat(places, lengths), steps))
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return Packing(order, inverse, starts[longest_first], np.bincount(steps))
