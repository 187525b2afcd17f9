"""Networks of the user's own that remember: step by step as over sequences, what is refused, and a whole run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from dppo.algo.sequences import first_steps, order_in_sequences
from dppo.config import ModelConfig, MomentsConfig
from dppo.models.policy import ActorCritic, make_policy
from dppo.models.structured import RememberingNetwork
from dppo.training.policy import load_policy
from tests.parts import make_parts, save, settle

SPACE = spaces.Dict({"camera": spaces.Box(0, 255, (2, 3, 1), np.uint8), "speed": spaces.Box(-1, 1, (2,), np.float32)})
ROWS, ENVS = 7, 3


class Remembers(nn.Module):
    """A GRU's cell over the image and the vector."""

    state_size = 5

    def __init__(self, observation_space: spaces.Dict, action_heads: Any) -> None:
        super().__init__()
        assert list(observation_space) == ["camera", "speed"]
        self.cell = nn.GRUCell(8, 5)
        self.head, self.critic = nn.Linear(5, sum(head.size for head in action_heads)), nn.Linear(5, 1)

    def features(self, observations: Any) -> torch.Tensor:
        return torch.cat([observations["camera"].flatten(1) / 255, observations["speed"]], 1)

    def forward(self, observations: Any, states: torch.Tensor) -> Any:
        after = self.cell(self.features(observations), states)
        return self.head(after), self.critic(after)[:, 0], after


class WritesToItsStates(Remembers):
    """Autograd needs them as they were."""

    def forward(self, observations: Any, states: torch.Tensor) -> Any:
        out = super().forward(observations, states)
        with torch.no_grad():
            states.zero_()
        return out


class OnVector(nn.Module):
    """For a plain vector."""

    state_size = 4

    def __init__(self, observation_space: Any, action_heads: Any) -> None:
        super().__init__()
        self.cell, self.head, self.critic = nn.GRUCell(4, 4), nn.Linear(4, 2), nn.Linear(4, 1)

    def forward(self, observations: torch.Tensor, states: torch.Tensor) -> Any:
        after = self.cell(observations, states)
        return self.head(after), self.critic(after)[:, 0], after


class GivesNoStates(Remembers):
    def forward(self, observations: Any, states: torch.Tensor) -> Any:
        return super().forward(observations, states)[:2]


class GivesOtherStates(Remembers):
    def forward(self, observations: Any, states: torch.Tensor) -> Any:
        head, value, after = super().forward(observations, states)
        return head, value, after[:, :3]


class GivesDoubles(Remembers):
    def forward(self, observations: Any, states: torch.Tensor) -> Any:
        head, value, after = super().forward(observations, states)
        return head, value, after.double()


class MixesRows(Remembers):
    def forward(self, observations: Any, states: torch.Tensor) -> Any:
        head, value, after = super().forward(observations, states)
        return head, value, after - after.mean(0)


class TakesNoStates(Remembers):
    def forward(self, observations: Any) -> Any:  # type: ignore[override]
        return super().forward(observations, torch.zeros(len(observations["speed"]), 5))


class SizeIsNoNumber(Remembers):
    state_size = "5"  # type: ignore[assignment]


class SizeIsNegative(Remembers):
    state_size = -1


REFUSED = {
    "GivesNoStates": r"must give \(head \[2, 3\], value \[2\], states \[2, 5\]\), but gave \[\(2, 3\), \(2,\)\]",
    "GivesOtherStates": r"states \[2, 5\]\), but gave \[\(2, 3\), \(2,\), \(2, 3\)\]",
    "GivesDoubles": r"forward must give float32, but gave \['torch.float64', 'torch.float32'\]",
    "MixesRows": "depends on the others in its batch",
    "TakesNoStates": "raised TypeError",
    "WritesToItsStates": "backward raised RuntimeError: one of the variables .* modified by an inplace operation",
    "SizeIsNoNumber": "its state_size is '5'; a module with memory gives there the length of its state",
    "SizeIsNegative": "its state_size is -1; a module with memory",
}


def make(name: str, space: spaces.Space[Any] = SPACE) -> ActorCritic:
    cfg = ModelConfig(factory=f"{__name__}:{name}")
    return make_policy(space, spaces.Discrete(3), cfg, MomentsConfig(), np.random.default_rng(0))


def observations(policy: ActorCritic, *shape: int) -> np.ndarray:
    rng, out = np.random.default_rng(1), np.zeros(shape, policy.inputs.type[1])
    out["camera"], out["speed"] = rng.integers(0, 256, (*shape, 2, 3, 1)), rng.uniform(-1, 1, (*shape, 2))
    return out


@pytest.mark.parametrize("length", [1, 3, ROWS])
def test_whole_sequences_give_what_acting_gave_and_autograds_gradient(length: int) -> None:
    policy = make("Remembers")
    assert isinstance(policy.network, RememberingNetwork) and policy.state_size == 5
    seen = observations(policy, ROWS, ENVS)
    rng = np.random.default_rng(2)
    dones = rng.random((ROWS, ENVS)) < 0.25
    noise = np.zeros((ENVS, policy.distribution.noise_size), np.float32)
    states, now = np.empty((ROWS, ENVS, 5), np.float32), rng.uniform(-1, 1, (ENVS, 5)).astype(np.float32)
    heads, values = np.empty((ROWS, ENVS, 3), np.float32), np.empty((ROWS, ENVS), np.float32)
    for t in range(ROWS):
        states[t] = now
        expected = policy.value(seen[t], now)
        np.testing.assert_array_equal(states[t], now)
        _, heads[t], got = policy.act(seen[t], noise, states=now)
        assert got is not None
        values[t] = got
        np.testing.assert_allclose(values[t], expected, atol=1e-6)
        now[dones[t]] = 0.0
    order = order_in_sequences(ROWS, ENVS, length)
    firsts = first_steps(dones, np.ones_like(dones), length).reshape(-1)[order]
    at = [column.reshape(ROWS * ENVS, *column.shape[2:])[order] for column in (seen, states, heads, values)]
    head, value = policy.forward(at[0], None, at[1], firsts)
    np.testing.assert_allclose(head, at[2], atol=1e-6)
    np.testing.assert_allclose(value, at[3], atol=1e-6)

    d_head, d_value = rng.standard_normal(head.shape).astype(np.float32), rng.standard_normal(len(value))
    policy.backward(d_head, d_value.astype(np.float32))
    found, module = policy.flat.gradient.copy(), policy.network.module
    module.zero_grad(set_to_none=False)
    total, state = torch.zeros(()), torch.zeros(1, 5)
    for b in range(len(head)):
        state = torch.from_numpy(at[1][b : b + 1].copy()) if firsts[b] else state
        row = {name: torch.from_numpy(at[0][name][b : b + 1].copy()) for name in ("camera", "speed")}
        row["speed"] = torch.from_numpy(policy.inputs.vectors(at[0][b : b + 1]))
        one, critic, state = module(row, state.clone())
        total = total + (one[0] * torch.from_numpy(d_head[b])).sum() + critic[0] * float(d_value[b])
    total.backward()
    np.testing.assert_allclose(found, policy.flat.gradient, rtol=1e-4, atol=1e-5)


class OfTwoNumbers(OnVector):
    def __init__(self, observation_size: int, head_size: int) -> None:
        super().__init__(None, None)


def test_memory_needs_the_form_with_spaces() -> None:
    with pytest.raises(ValueError, match="has a state_size, and only a factory with the parameters observation_space"):
        make("OfTwoNumbers", spaces.Box(-1, 1, (4,), np.float32))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.factory={__name__}:{name}: .*{REFUSED[name]}"):
        make(name)


def test_a_run_learns_with_it_and_the_policy_is_loaded(tmp_path: Path) -> None:
    place = make_parts(model=ModelConfig(factory=f"{__name__}:OnVector"), horizon=16)
    settle(place)
    policy = load_policy(save(place, tmp_path / "run"))
    seen = np.random.default_rng(0).normal(0, 1, (2, 4)).astype(np.float32)
    first = policy.value(seen)
    policy.act(seen)
    assert (policy.value(seen) != first).all()
    policy.reset()
    np.testing.assert_array_equal(policy.value(seen), first)
    before = place.policy.flat.vector.copy()
    place.iterate()
    assert (place.policy.flat.vector != before).any()
