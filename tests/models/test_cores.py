"""Recurrent cores: against cells written by hand, step by step against whole sequences, and their gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from dppo.algo.sequences import first_steps, order_in_sequences, pack
from dppo.config import ModelConfig, MomentsConfig
from dppo.models.cores import Core
from dppo.models.policy import ActorCritic, make_policy

VECTOR = spaces.Box(-1.0, 1.0, (5,), np.float32)
TREE = spaces.Dict({"camera": spaces.Box(0, 255, (1, 4, 5), np.uint8), "gear": spaces.Discrete(3)})
ROWS, ENVS = 9, 3
CORES = ["gru", "lstm"]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def by_hand(core: Core, x: np.ndarray, state: np.ndarray) -> np.ndarray:
    """One step of the equations of the papers, in float64, with torch's order of gates. Returns the new state."""
    w_x, w_h, b_x, b_h = (p.detach().numpy().astype(np.float64) for p in core.layer.parameters())
    if core.state_size == w_h.shape[1]:
        h = state
        (r_x, z_x, n_x), (r_h, z_h, n_h) = np.split(w_x @ x + b_x, 3), np.split(w_h @ h + b_h, 3)
        z = sigmoid(z_x + z_h)
        return (1 - z) * np.tanh(n_x + sigmoid(r_x + r_h) * n_h) + z * h
    h, c = np.split(state, 2)
    i, f, g, o = np.split(w_x @ x + b_x + w_h @ h + b_h, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return np.concatenate((sigmoid(o) * np.tanh(c), c))


def make(kind: str, observed: spaces.Space[Any] = VECTOR, *, shared: bool = True, size: int = 7) -> ActorCritic:
    cfg = ModelConfig(core=kind, core_size=size, shared=shared, hidden=(6,))  # type: ignore[arg-type]
    policy = make_policy(observed, spaces.Discrete(3), cfg, MomentsConfig(), np.random.default_rng(1))
    policy.flat.vector[:] = 0.4 * np.random.default_rng(2).standard_normal(policy.flat.size)
    return policy


def observations(space: spaces.Space[Any], policy: ActorCritic) -> np.ndarray:
    """Inputs [T, N, ...] of random observations."""
    shape, dtype = policy.inputs.type
    rng = np.random.default_rng(4)
    if space is VECTOR:
        return rng.standard_normal((ROWS, ENVS, 5)).astype(np.float32)
    out = np.zeros((ROWS, ENVS, *shape), dtype)
    out["camera"] = rng.integers(0, 256, (ROWS, ENVS, 1, 4, 5))
    out["gear"] = rng.integers(0, 3, (ROWS, ENVS))
    return out


@pytest.mark.parametrize("kind", CORES)
def test_a_step_is_that_of_the_papers_equations(kind: str) -> None:
    torch.manual_seed(0)
    core = Core(kind, 4, 3)
    rng = np.random.default_rng(0)
    for parameter in core.parameters():
        parameter.data = torch.from_numpy(rng.standard_normal(parameter.shape).astype(np.float32))
    x, state = rng.standard_normal((2, 4)), rng.standard_normal((2, core.state_size))
    out, after = core(torch.tensor(x, dtype=torch.float32), torch.tensor(state, dtype=torch.float32), None)
    expected = np.stack([by_hand(core, *row) for row in zip(x, state, strict=True)])
    np.testing.assert_allclose(after.detach(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out.detach(), expected[:, :3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", CORES)
def test_each_gate_begins_with_orthogonal_weights_and_no_bias(kind: str) -> None:
    core = Core(kind, 8, 8)
    for name, parameter in core.layer.named_parameters():
        if "bias" in name:
            assert not parameter.any()
        else:
            for gate in parameter.detach().split(8):
                np.testing.assert_allclose(gate @ gate.T, np.eye(8), atol=1e-5)


class Acted:
    """What a policy gave step by step, with episodes that end on the way, and states at random before the first row."""

    def __init__(self, policy: ActorCritic, inputs: np.ndarray) -> None:
        rng = np.random.default_rng(3)
        self.dones = rng.random((ROWS, ENVS)) < 0.2
        self.dones[4] = True, False, True
        self.states = np.empty((ROWS, ENVS, policy.state_size), np.float32)
        self.heads = np.empty((ROWS, ENVS, 3), np.float32)
        self.values = np.empty((ROWS, ENVS), np.float32)
        now = rng.uniform(-1, 1, (ENVS, policy.state_size)).astype(np.float32)
        for t in range(ROWS):
            self.states[t] = now
            noise = np.zeros((ENVS, policy.distribution.noise_size), np.float32)
            _, self.heads[t], values = policy.act(inputs[t], noise, states=now)
            assert values is not None, "the state of the value's core has to go on as well"
            self.values[t] = values
            now[self.dones[t]] = 0.0

    def arguments(self, inputs: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, Any]:
        """Inputs, states and firsts of sequences of `length` rows, and their order."""
        order = order_in_sequences(ROWS, ENVS, length)
        firsts = first_steps(self.dones, np.ones_like(self.dones), length)
        columns = [c.reshape(ROWS * ENVS, *c.shape[2:])[order] for c in (inputs, self.states, firsts)]
        return columns[0], columns[1], columns[2], order


@pytest.mark.parametrize("length", [1, 4, ROWS])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("space", [VECTOR, TREE], ids=["vector", "tree"])
@pytest.mark.parametrize("kind", CORES)
def test_whole_sequences_give_what_acting_gave(kind: str, space: Any, shared: bool, length: int) -> None:
    """With their states at the start, across episode ends: the ratio of the first minibatch is 1."""
    policy = make(kind, space, shared=shared)
    inputs = observations(space, policy)
    acted = Acted(policy, inputs)
    x, states, firsts, order = acted.arguments(inputs, length)
    heads, values = policy.forward(x, None, states, firsts)
    np.testing.assert_allclose(heads, acted.heads.reshape(-1, 3)[order], rtol=0, atol=2e-6)
    np.testing.assert_allclose(values, acted.values.reshape(-1)[order], rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", CORES)
def test_the_value_of_an_observation_is_that_of_the_next_step_and_leaves_the_state(kind: str) -> None:
    policy = make(kind, shared=False)
    inputs = observations(VECTOR, policy)
    states = np.random.default_rng(5).uniform(-1, 1, (ENVS, policy.state_size)).astype(np.float32)
    before = states.copy()
    value = policy.value(inputs[0], states)
    np.testing.assert_array_equal(states, before)
    _, _, values = policy.act(inputs[0], np.zeros((ENVS, policy.distribution.noise_size), np.float32), states=states)
    assert values is not None
    np.testing.assert_allclose(value, values, atol=1e-6)
    assert (states != before).any()


@pytest.mark.parametrize("rows", [1, 3, 8, 11])
def test_rows_that_fill_a_block_of_acting_change_no_state(rows: int) -> None:
    policy = make("lstm")
    rng = np.random.default_rng(6)
    x = rng.standard_normal((rows, 5)).astype(np.float32)
    states = rng.uniform(-1, 1, (rows, policy.state_size)).astype(np.float32)
    one_by_one = states.copy()
    noise = np.zeros((rows, policy.distribution.noise_size), np.float32)
    _, heads, _ = policy.act(x, noise, states=states)
    for i in range(rows):
        state = one_by_one[i : i + 1]
        _, head, _ = policy.act(x[i : i + 1], noise[:1], states=state)
        np.testing.assert_allclose(head[0], heads[i], atol=1e-6)
    np.testing.assert_allclose(one_by_one, states, atol=1e-6)


def loss(policy: ActorCritic, arguments: tuple[Any, ...], d_head: np.ndarray, d_value: np.ndarray) -> float:
    x, states, firsts = arguments
    heads, values = policy.forward(x, None, states, firsts)
    return float(np.vdot(heads.astype(np.float64), d_head) + np.vdot(values.astype(np.float64), d_value))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", CORES)
def test_the_gradient_over_a_sequence_with_an_episode_end_is_that_of_finite_differences(
    kind: str, shared: bool
) -> None:
    """Of the whole network, along random directions: every parameter moves at once."""
    policy = make(kind, TREE, shared=shared)
    inputs = observations(TREE, policy)
    acted = Acted(policy, inputs)
    *arguments, _ = acted.arguments(inputs, ROWS)
    assert acted.dones[4, 0], "an episode ends in the middle of a sequence"
    rng = np.random.default_rng(8)
    d_head = rng.standard_normal((ROWS * ENVS, 3)).astype(np.float32)
    d_value = rng.standard_normal(ROWS * ENVS).astype(np.float32)
    policy.forward(arguments[0], None, *arguments[1:])
    policy.backward(d_head, d_value)
    gradient, at = policy.flat.gradient.astype(np.float64), policy.flat.vector.copy()
    for _ in range(6):
        direction = rng.standard_normal(policy.flat.size)
        direction /= np.linalg.norm(direction)
        step, sides = 2e-2, []
        for sign in (1, -1):
            policy.flat.vector[:] = at + sign * step * direction
            sides.append(loss(policy, tuple(arguments), d_head, d_value))
        policy.flat.vector[:] = at
        numeric = (sides[0] - sides[1]) / (2 * step)
        assert numeric == pytest.approx(gradient @ direction, rel=2e-2, abs=2e-2)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", CORES)
def test_the_gradient_is_that_of_autograd_through_single_steps(kind: str, shared: bool) -> None:
    """The oracle runs the module row by row, and sets the state to 0 where an episode ends."""
    policy = make(kind, shared=shared)
    inputs = observations(VECTOR, policy)
    acted = Acted(policy, inputs)
    x, states, firsts, order = acted.arguments(inputs, ROWS)
    rng = np.random.default_rng(9)
    d_heads = rng.standard_normal((ROWS, ENVS, 3)).astype(np.float32)
    d_values = rng.standard_normal((ROWS, ENVS)).astype(np.float32)
    policy.forward(x, None, states, firsts)
    policy.backward(d_heads.reshape(-1, 3)[order], d_values.reshape(-1)[order])
    found = policy.flat.gradient.copy()

    module = policy.network._encoded  # type: ignore[attr-defined]
    module.zero_grad(set_to_none=False)
    state, total = torch.from_numpy(acted.states[0].copy()), torch.zeros(())
    for t in range(ROWS):
        parts = (torch.from_numpy(inputs[t]), torch.empty((0, 0), dtype=torch.int64), [])
        outputs, values, state = module(parts, state)
        total = total + (outputs * torch.from_numpy(d_heads[t])).sum() + (values * torch.from_numpy(d_values[t])).sum()
        state = state * torch.from_numpy(~acted.dones[t])[:, None]
    total.backward()
    np.testing.assert_allclose(found, policy.flat.gradient, rtol=1e-4, atol=1e-5)


def test_no_gradient_passes_an_episodes_end() -> None:
    """What is lost after the end does not depend on what was seen before it."""
    policy = make("gru")
    inputs = observations(VECTOR, policy)
    acted = Acted(policy, inputs)
    x, states, firsts, _ = acted.arguments(inputs, ROWS)
    end = int(np.flatnonzero(acted.dones[:, 0])[0])
    before, after = policy.forward(x, None, states, firsts)[0].copy(), x.copy()
    after[: end + 1] += 1.0
    changed = policy.forward(after, None, states, firsts)[0]
    assert (changed[: end + 1] != before[: end + 1]).any()
    np.testing.assert_array_equal(changed[end + 1 :], before[end + 1 :])


def test_packing_costs_no_sequence_its_state() -> None:
    """Sequences of several lengths, in any order, each from its own state."""
    policy = make("lstm")
    rng = np.random.default_rng(11)
    lengths = [2, 5, 1, 4]
    firsts = np.zeros(sum(lengths), bool)
    firsts[np.cumsum([0, *lengths])[:-1]] = True
    x = rng.standard_normal((sum(lengths), 5)).astype(np.float32)
    states = rng.uniform(-1, 1, (sum(lengths), policy.state_size)).astype(np.float32)
    together = policy.forward(x, None, states, firsts)[0].copy()
    assert pack(firsts).starts.tolist() == [2, 8, 0, 7]
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        alone = policy.forward(x[part], None, states[part], firsts[part])[0]
        np.testing.assert_allclose(together[part], alone, atol=1e-6)
        start += length
