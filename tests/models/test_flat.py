"""Parameters and gradients are views of two contiguous vectors."""

from __future__ import annotations

import numpy as np
import pytest

from dppo.models.flat import FlatParameters

SHAPES: dict[str, tuple[int, ...]] = {"weight": (2, 3), "bias": (3,), "scale": ()}


def test_parameters_are_views_in_the_order_of_their_names() -> None:
    flat = FlatParameters(SHAPES, num_sums=2)
    flat.vector[:] = np.arange(10)
    assert flat.size == 10
    assert flat.parameters["weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert flat.parameters["bias"].tolist() == [6, 7, 8]
    flat.parameters["scale"][...] = 99
    assert flat.vector[9] == 99


def test_gradient_and_sums_are_one_piece() -> None:
    flat = FlatParameters(SHAPES, num_sums=2)
    flat.gradients["bias"][:] = 5
    flat.sums[:] = 7
    assert flat.summed.tolist() == [0] * 6 + [5] * 3 + [0] + [7] * 2
    assert flat.gradient.tolist() == flat.summed[:10].tolist()
    assert np.shares_memory(flat.gradient, flat.summed)
    assert not np.shares_memory(flat.summed, flat.vector)


def test_both_vectors_are_contiguous_float32() -> None:
    """What MPI sends without a copy."""
    flat = FlatParameters(SHAPES, num_sums=2)
    for array in (flat.vector, flat.summed, flat.gradient):
        assert array.dtype == np.float32 and array.flags.c_contiguous


def test_fingerprint_is_that_of_every_bit() -> None:
    first, second = FlatParameters(SHAPES, 0), FlatParameters(SHAPES, 0)
    assert first.fingerprint() == second.fingerprint()
    second.vector[3] = np.nextafter(np.float32(0), np.float32(1))
    assert first.fingerprint() != second.fingerprint()
    second.vector[3] = -0.0
    assert first.fingerprint() != second.fingerprint()


def test_constants_are_no_parameters_and_are_taken_over_in_place() -> None:
    array = np.array([1.0, -np.inf])
    flat = FlatParameters(SHAPES, 0, {"range": array, "on": np.array(True)})
    assert flat.size == FlatParameters(SHAPES, 0).size
    assert flat.fingerprint() != FlatParameters(SHAPES, 0).fingerprint()
    flat.set_constants({"on": np.array(False), "range": np.array([2.0, 3.0])})
    assert array.tolist() == [2.0, 3.0] and not flat.constants["on"]
    for other in (
        {},
        {"range": array},
        {"range": array[:1], "on": np.array(True)},
        {"range": array, "on": np.array(1)},
    ):
        with pytest.raises(
            ValueError, match=r"the checkpoint holds a network with the buffers .*, this one has .*float64"
        ):
            flat.set_constants(other)
