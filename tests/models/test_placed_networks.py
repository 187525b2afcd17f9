"""Networks on a device with memory of its own give the numbers of networks in the flat buffers; "cpu:0" stands in for a
GPU: torch copies to it, though it is the CPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from dppo.config import ModelConfig, MomentsConfig
from dppo.models.policy import ActorCritic, make_policy

VECTORS = spaces.Box(-1.0, 1.0, (5,), np.float32)
IMAGES = spaces.Dict({
    "camera": spaces.Box(0, 255, (6, 7, 3), np.uint8), "far": spaces.Discrete(100), "x": spaces.Box(-1, 1, (2,))
})  # fmt: skip
KINDS: dict[str, tuple[spaces.Space[Any], ModelConfig]] = {
    "mlp": (VECTORS, ModelConfig(hidden=(6,), backend="torch")),
    "factory": (VECTORS, ModelConfig(factory="tests.models.test_placed_networks:PartlyFixed")),
    "shared": (IMAGES, ModelConfig(hidden=(6,))),
    "apart": (IMAGES, ModelConfig(hidden=(6,), shared=False)),
    "bf16": (IMAGES, ModelConfig(hidden=(6,), bf16=True)),
    "gru": (IMAGES, ModelConfig(hidden=(6,), core="gru", core_size=5)),
    "lstm": (VECTORS, ModelConfig(hidden=(6,), core="lstm", core_size=5, shared=False)),
    "own": (IMAGES, ModelConfig(factory="tests.models.structured_networks:Everything")),
    "remembers": (IMAGES, ModelConfig(factory="tests.models.test_placed_networks:Remembers")),
}


class PartlyFixed(torch.nn.Module):
    """Has a parameter without an axis, and one that is not learnt."""

    def __init__(self, size: int, outputs: int) -> None:
        super().__init__()
        self.body, self.head = torch.nn.Linear(size, outputs), torch.nn.Linear(size, 1)
        self.scale = torch.nn.Parameter(torch.tensor(1.5))
        self.body.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.body(x) * self.scale, self.head(x)[:, 0]


class Remembers(torch.nn.Module):
    """Has states, and a constant."""

    state_size = 4

    def __init__(self, observation_space: Any, action_heads: Any) -> None:
        super().__init__()
        self.cell, self.head = torch.nn.GRUCell(2, 4), torch.nn.Linear(4, sum(head.size for head in action_heads))
        self.register_buffer("scale", torch.randn(2))

    def forward(self, x: Any, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        after = self.cell(x["x"] * self.scale, states)
        return self.head(after), after[:, 0], after


def make(kind: str, device: str | None = None) -> ActorCritic:
    space, cfg = KINDS[kind]
    actions = spaces.Box(-1.0, 1.0, (3,), np.float32)  # with log_std, which is not the network's
    policy = make_policy(space, actions, cfg, MomentsConfig(), np.random.default_rng(0))
    if device is not None:
        assert policy.place is not None
        policy.place(device)
    return policy


def inputs_of(policy: ActorCritic, rows: int = 9) -> np.ndarray:
    rng = np.random.default_rng(rows)
    if not policy.inputs.is_raw:
        return rng.standard_normal((rows, 5)).astype(np.float32)
    out = np.zeros(rows, policy.inputs.observation_type[1])
    out["camera"], out["far"] = rng.integers(0, 256, (rows, 6, 7, 3)), rng.integers(0, 100, rows)
    out["x"] = rng.uniform(-1, 1, (rows, 2))
    return out


def passes(policy: ActorCritic) -> list[np.ndarray]:
    """What each pass gives, and the gradient."""
    rng, inputs = np.random.default_rng(2), inputs_of(policy)
    states = rng.uniform(-1, 1, (9, policy.state_size)).astype(np.float32)
    firsts = np.array([True, False, False, True, True, False, True, False, False])
    out = [policy.value(inputs, states).copy(), *map(np.copy, policy.forward(inputs, None, states, firsts))]
    out += [policy.network.act(inputs, states)[0].copy(), *[states] * (policy.state_size > 0)]
    policy.backward(rng.standard_normal((9, 6)).astype(np.float32), rng.standard_normal(9).astype(np.float32))
    return [*out, policy.flat.gradient.copy()]


def assert_equal(a: list[np.ndarray], b: list[np.ndarray]) -> None:
    assert [x.tobytes() for x in a] == [x.tobytes() for x in b]


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_in_other_memory_gives_the_same_to_the_bit(kind: str) -> None:
    here, there = make(kind), make(kind, "cpu:0")
    assert_equal(passes(here), passes(there))
    rng = np.random.default_rng(5)
    for _ in range(2):
        step = 0.1 * rng.standard_normal(here.flat.size).astype(np.float32)
        for policy in (here, there):
            policy.flat.assign(policy.flat.vector + step)
        assert_equal(passes(here), passes(there))


@pytest.mark.parametrize("change", ["assign", "keep_within_bounds", "touch"])
def test_each_way_to_change_the_parameters_reaches_the_copies(change: str) -> None:
    policy = make("mlp", "cpu:0")
    assert policy.network.act(inputs_of(policy))[0].any()
    if change == "assign":
        policy.flat.assign(np.zeros(policy.flat.size, np.float32))
    else:
        policy.flat.vector[:] = 0.0
        assert policy.network.act(inputs_of(policy))[0].any(), "the stand-in has copies"
        getattr(policy.flat, change)()
    for out in passes(policy)[:4]:
        assert not out.any()


def test_constants_of_another_network_reach_the_copies() -> None:
    """As those of a checkpoint, or of rank 0."""
    here, there = make("own"), make("own", "cpu:0")
    for policy in (here, there):
        assert policy.network.act(inputs_of(policy))[0].any()
        policy.flat.set_constants({"drawn": np.linspace(-1, 1, 8, dtype=np.float32)})
    assert_equal(passes(here), passes(there))


def test_a_network_may_come_back() -> None:
    """As that of a learner that collects for another one, once ranks have died."""
    here, there = make("mlp"), make("mlp", "cpu:0")
    passes(there)
    assert there.place is not None
    there.flat.assign(0.5 * there.flat.vector)
    here.flat.assign(0.5 * here.flat.vector)
    there.place("cpu")
    assert_equal(passes(here), passes(there))
    there.flat.vector[:] = 0.0
    assert not there.network.act(inputs_of(there))[0].any(), "the flat vector is its memory again"


def test_a_network_of_numpy_stays_where_it_is() -> None:
    cfg = ModelConfig(hidden=(6,))
    policy = make_policy(VECTORS, spaces.Discrete(3), cfg, MomentsConfig(), np.random.default_rng(0))
    assert policy.place is None


@pytest.mark.parametrize(
    ("space", "cfg", "why"),
    [
        (VECTORS, ModelConfig(bf16=True), "this network has none: leave it out"),
        (VECTORS, ModelConfig(bf16=True, backend="torch"), "this network has none: leave it out"),
        (spaces.Discrete(500), ModelConfig(bf16=True), "this network has none: leave it out"),
        (VECTORS, ModelConfig(bf16=True, factory="a:b"), r"none \(a factory may use torch.autocast itself\)"),
    ],
)
def test_bf16_is_refused_where_there_is_no_encoder(space: spaces.Space[Any], cfg: ModelConfig, why: str) -> None:
    with pytest.raises(ValueError, match=f"model.bf16 is for dppo's encoders of images, and .*{why}"):
        make_policy(space, spaces.Discrete(3), cfg, MomentsConfig(), np.random.default_rng(0))


@pytest.mark.parametrize("encoder", ["auto", "impala"])
def test_bf16_rounds_the_encoders_features_and_nothing_else(encoder: str) -> None:
    """Parameters, gradients, outputs and values are float32, and close to those without."""
    policies = []
    for bf16 in (False, True):
        cfg = ModelConfig(hidden=(6,), encoder=encoder, bf16=bf16)
        policies.append(make_policy(IMAGES, spaces.Box(-1, 1, (3,)), cfg, MomentsConfig(), np.random.default_rng(0)))
    exact, rounded = map(passes, policies)
    assert policies[0].flat.vector.tobytes() == policies[1].flat.vector.tobytes()
    assert all(a.dtype == np.float32 for a in rounded)
    assert not np.array_equal(exact[1], rounded[1])
    for a, b in zip(exact, rounded, strict=True):
        assert (a * b).sum() > 0.95 * np.linalg.norm(a) * np.linalg.norm(b)
        assert np.linalg.norm(b) == pytest.approx(np.linalg.norm(a), rel=0.1)
    assert_equal(rounded, passes(policies[1]))
    assert "in bfloat16" in policies[1].description
