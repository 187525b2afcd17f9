"""Sequences of a rollout: their order, their starts, their shuffling, and the packing for a recurrent layer."""

from __future__ import annotations

import numpy as np
import pytest

from dppo.algo.sequences import first_steps, order_in_sequences, pack, shuffled


def test_steps_lie_by_sequences_a_hand_worked_case() -> None:
    """Five rows of two environments, sequences of two rows: the steps are numbered by rows."""
    order = order_in_sequences(5, 2, 2)
    assert isinstance(order, np.ndarray)
    assert order.tolist() == [0, 2, 1, 3, 4, 6, 5, 7, 8, 9]


@pytest.mark.parametrize(("rows", "num_envs", "length"), [(8, 3, 4), (7, 2, 3), (5, 1, 9), (1, 4, 2), (0, 3, 4)])
def test_every_step_is_there_once_and_each_sequence_is_of_one_environment(
    rows: int, num_envs: int, length: int
) -> None:
    order = order_in_sequences(rows, num_envs, length)
    assert isinstance(order, np.ndarray)
    assert sorted(order.tolist()) == list(range(rows * num_envs))
    firsts = first_steps(np.zeros((rows, num_envs), bool), np.ones((rows, num_envs), bool), length)
    for sequence in np.split(order, np.flatnonzero(firsts.reshape(-1)[order])[1:]):
        assert len(sequence) <= length
        assert (np.diff(sequence) == num_envs).all(), "the next row of the same environment"


def test_without_memory_nothing_is_moved() -> None:
    assert order_in_sequences(6, 4, 1) == slice(None)
    assert first_steps(np.zeros((6, 4), bool), np.ones((6, 4), bool), 1).all()


def test_a_state_begins_where_a_sequence_or_an_episode_does_and_after_a_reset_row() -> None:
    dones, valid = np.zeros((6, 1), bool), np.ones((6, 1), bool)
    dones[1], valid[2] = True, False
    assert first_steps(dones, valid, 4)[:, 0].tolist() == [True, False, True, True, True, False]


@pytest.mark.parametrize("lengths", [[4] * 8, [5, 1, 1, 7, 2, 3], [9], [1] * 12, []])
@pytest.mark.parametrize("num_pieces", [1, 3, 4])
def test_minibatches_are_whole_sequences_in_another_order(lengths: list[int], num_pieces: int) -> None:
    firsts = np.zeros(sum(lengths), bool)
    firsts[np.cumsum([0, *lengths])[:-1]] = True
    pieces = shuffled(firsts, num_pieces, np.random.default_rng(3))
    assert len(pieces) == num_pieces
    together = np.concatenate(pieces)
    assert sorted(together.tolist()) == list(range(len(firsts)))
    for piece in pieces:
        sequences = np.split(piece, np.flatnonzero(firsts[piece])[1:])
        assert all((np.diff(s) == 1).all() for s in sequences if len(s)), "whole, in their own order"
        assert not len(piece) or firsts[piece[0]]
    if lengths and len(set(lengths)) == 1 and len(lengths) % num_pieces == 0:
        assert len({len(piece) for piece in pieces}) == 1


def test_without_memory_the_shuffling_is_that_of_single_samples() -> None:
    pieces = shuffled(np.ones(10, bool), 3, np.random.default_rng(5))
    expected = np.array_split(np.random.default_rng(5).permutation(10), 3)
    assert [p.tolist() for p in pieces] == [e.tolist() for e in expected]


def test_packing_a_hand_worked_case() -> None:
    """Sequences abc, d, ef: step by step, the longest first, a e d, b f, c."""
    packing = pack(np.array([True, False, False, True, True, False]))
    assert np.array(list("abcdef"))[packing.order].tolist() == list("aedbfc")
    assert packing.inverse[packing.order].tolist() == list(range(6))
    assert packing.starts.tolist() == [0, 4, 3]
    assert packing.sizes.tolist() == [3, 2, 1]
