"""The MLP in NumPy: an ordinary torch module's outputs and gradients, and orthogonal initial weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dppo.models.flat import FlatParameters
from dppo.models.mlp import MLP, orthogonal
from tests import torch_reference as reference

OUTPUTS = 3


def make_mlp(size: int, hidden: tuple[int, ...], activation: str, seed: int = 0) -> tuple[MLP, FlatParameters]:
    """With random weights and biases."""
    flat = FlatParameters(MLP.shapes(size, hidden, OUTPUTS), num_sums=0)
    flat.vector[:] = np.random.default_rng(seed).normal(0.0, 0.4, flat.size)
    return MLP(flat, len(hidden), activation), flat


def inputs_of(size: int, batch: int = 9, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, size)).astype(np.float32)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize(("size", "hidden"), [(4, (8, 5)), (1, (6,)), (3, ()), (2, (3, 4, 5))])
def test_outputs_and_gradient_are_those_of_a_torch_module(size: int, hidden: tuple[int, ...], activation: str) -> None:
    mlp, flat = make_mlp(size, hidden, activation)
    inputs = inputs_of(size)
    module = reference.ActorCritic(flat.shapes, flat.vector, activation)
    head, value = module(*reference.tensors(inputs))
    actual_head, actual_value = mlp.forward(inputs)
    np.testing.assert_allclose(actual_head, head.detach(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(actual_value, value.detach(), rtol=1e-4, atol=1e-6)

    d_head, d_value = np.random.default_rng(2).standard_normal((2, 9, OUTPUTS)).astype(np.float32)
    d_value = d_value[:, 0]
    torch.autograd.backward((head, value), list(reference.tensors(d_head, d_value)))
    mlp.backward(d_head, d_value)
    np.testing.assert_allclose(flat.gradient, module.flat_gradient(), rtol=1e-4, atol=1e-5)


def test_one_layer_worked_by_hand() -> None:
    """y = tanh(2 x + 1) 3 - 1 at x = 0.5: dy/dw of the first layer is 3 (1 - tanh^2 2) x."""
    flat = FlatParameters(MLP.shapes(1, (1,), 1), num_sums=0)
    layers = ("hidden.0.weight", "hidden.0.bias", "policy.weight", "policy.bias")
    for name, number in zip(layers, (2, 1, 3, -1), strict=True):
        flat.parameters[name].flat[0] = number  # of the policy's tower
    mlp = MLP(flat, 1, "tanh")
    head, _ = mlp.forward(np.array([[0.5]], np.float32))
    assert head.item() == pytest.approx(3 * np.tanh(2) - 1)
    mlp.backward(np.ones((1, 1), np.float32), np.zeros(1, np.float32))
    slope = 3 * (1 - np.tanh(2) ** 2)
    gradient = [flat.gradients[name].flat[0] for name in layers]
    np.testing.assert_allclose(gradient, [slope * 0.5, slope, np.tanh(2), 1], rtol=1e-4)


def test_a_second_backward_without_a_forward_is_refused() -> None:
    mlp, _ = make_mlp(2, (3,), "tanh")
    mlp.forward(inputs_of(2))
    d_head, d_value = np.ones((9, OUTPUTS), np.float32), np.ones(9, np.float32)
    mlp.backward(d_head, d_value)
    with pytest.raises(AssertionError, match="one backward for each forward"):
        mlp.backward(d_head, d_value)


def test_policy_and_value_alone_are_those_of_forward() -> None:
    mlp, _ = make_mlp(4, (8,), "tanh")
    inputs = inputs_of(4)
    head, value = (a.copy() for a in mlp.forward(inputs))
    np.testing.assert_array_equal(mlp.act(inputs)[0], head)
    np.testing.assert_array_equal(mlp.value(inputs), value)


def test_backward_writes_and_does_not_add() -> None:
    mlp, flat = make_mlp(4, (8,), "tanh")
    gradients = []
    for _ in range(2):
        mlp.forward(inputs_of(4))
        mlp.backward(np.ones((9, OUTPUTS), np.float32), np.ones(9, np.float32))
        gradients.append(flat.gradient.copy())
    np.testing.assert_array_equal(gradients[0], gradients[1])


def test_towers_share_nothing() -> None:
    mlp, flat = make_mlp(4, (8,), "tanh")
    mlp.forward(inputs_of(4))
    mlp.backward(np.ones((9, OUTPUTS), np.float32), np.zeros(9, np.float32))
    for name, gradient in flat.gradients.items():
        policy, value = gradient if name.startswith("hidden") else (gradient, gradient)
        assert policy.any() or name.startswith("value")
        assert not value.any() or name.startswith("policy")


def test_inputs_are_left_as_they_are() -> None:
    for hidden in ((8,), ()):
        mlp, _ = make_mlp(4, hidden, "relu")
        inputs = inputs_of(4)
        mlp.forward(inputs)
        mlp.backward(np.ones((9, OUTPUTS), np.float32), np.ones(9, np.float32))
        np.testing.assert_array_equal(inputs, inputs_of(4))


def test_batches_of_many_sizes_do_not_disturb_each_other() -> None:
    """Rollouts that were cut short come in any size, also in none."""
    mlp, flat = make_mlp(4, (8,), "tanh")
    module = reference.ActorCritic(flat.shapes, flat.vector)
    for batch in [5, 1, 0, *range(2, 14), 5]:
        inputs = inputs_of(4, batch, seed=batch)
        head, value = mlp.forward(inputs)
        expected_head, expected_value = module(*reference.tensors(inputs))
        np.testing.assert_allclose(head, expected_head.detach(), atol=1e-5)
        np.testing.assert_allclose(value, expected_value.detach(), atol=1e-5)


def test_new_parameters_are_seen_at_once() -> None:
    """The optimiser writes the flat vector; nobody copies it."""
    mlp, flat = make_mlp(4, (8,), "tanh")
    flat.vector[:] = 0.0
    assert not mlp.forward(inputs_of(4))[0].any()


# -- initial weights --------------------


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (1, 3), (3, 1)])
def test_orthogonal_rows_or_columns_are_orthonormal_times_gain(shape: tuple[int, int]) -> None:
    weight = orthogonal(shape, 2.0, np.random.default_rng(0)).astype(np.float64)
    product = weight.T @ weight if shape[0] >= shape[1] else weight @ weight.T
    np.testing.assert_allclose(product, 4.0 * np.eye(min(shape)), atol=1e-5)


def test_orthogonal_directions_are_uniform() -> None:
    """Without the signs of R the first entry would always be negative."""
    rng = np.random.default_rng(0)
    signs = [np.sign(orthogonal((4, 3), 1.0, rng)[0, 0]) for _ in range(300)]
    assert abs(np.mean(signs)) < 0.2


def test_initial_gains_are_sqrt_2_inside_and_small_at_the_policys_end() -> None:
    flat = FlatParameters(MLP.shapes(4, (8, 8), OUTPUTS), num_sums=0)
    flat.vector[:] = 7.0
    MLP.initialise(flat, 2, np.random.default_rng(0))
    expected = {"policy.weight": 0.01, "value.weight": 1.0}
    for name, weights in flat.parameters.items():
        if name.endswith("weight"):
            gains = np.linalg.norm(weights, 2, axis=(-2, -1))
            np.testing.assert_allclose(gains, expected.get(name, 2**0.5), rtol=1e-5, err_msg=name)
    assert not any(bias.any() for name, bias in flat.parameters.items() if name.endswith("bias"))
