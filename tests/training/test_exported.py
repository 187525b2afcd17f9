"""ONNX files of policies with every kind of space and network compute what the policies do."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from gymnasium import spaces

from dppo.config import ModelConfig
from dppo.envs.leaves import leaves
from dppo.errors import UsageError
from dppo.rundir.spaces import space_from_json
from dppo.training.exported import export
from dppo.training.onnx_check import Difference
from dppo.training.policy import Policy
from tests.exported import MANY_ACTED, MANY_OBSERVED, policy_of
from tests.models import structured_networks

VECTOR = spaces.Box(-np.inf, np.inf, (4,), np.float32)
SMALL = ModelConfig(hidden=(8,))


def own(name: str, module: str) -> ModelConfig:
    return ModelConfig(factory=f"{__name__ if module == 'test_exported' else f'tests.models.{module}'}:{name}")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class CountsRows(structured_networks.Everything):
    """Asks for the number of rows in Python, which torch takes for a constant at first."""

    def forward(self, observations: Any) -> Any:
        head, value = super().forward(observations)
        return head, value + torch.ones(len(value))


SOME = spaces.Dict({key: MANY_OBSERVED[key] for key in ("action_mask", "first", "half", "index")})
PIXELS = spaces.Box(0, 255, (36, 36, 1), np.uint8)
CASES: dict[str, tuple[spaces.Space[Any], spaces.Space[Any], ModelConfig, int, bool]] = {
    "numpy": (
        spaces.Discrete(9), spaces.Tuple([spaces.MultiDiscrete([2, 4]), spaces.Box(-2, 5, (2,))]),
        ModelConfig(hidden=(8, 6), activation="relu"), 6, False,
    ),
    "everything": (MANY_OBSERVED, MANY_ACTED, ModelConfig(hidden=(8,), shared=True), 19, True),
    "gru": (VECTOR, spaces.Discrete(3, start=1), ModelConfig(hidden=(8,), core="gru", core_size=6), 3, False),
    "lstm": (
        spaces.Tuple([PIXELS, VECTOR]), spaces.Box(-1, 1, (3,)),
        ModelConfig(hidden=(8,), core="lstm", core_size=6, shared=True), 0, True,
    ),
    "impala-in-bf16": (
        spaces.Box(0, 255, (9, 8, 2), np.uint8), spaces.MultiBinary(3),
        ModelConfig(hidden=(8,), encoder="impala", bf16=True), 0, False,
    ),
    "own": (SOME, MANY_ACTED["arm"], own("CountsRows", "test_exported"), 5, False),
    "own-vector": (VECTOR, spaces.Discrete(3), own("Attention", "networks_of_others"), 0, False),
    "own-memory": (VECTOR, spaces.Discrete(2), own("OnVector", "test_structured"), 0, True),
}  # fmt: skip
"""Spaces of observations and of actions, the network, the size of masks, and whether actions are sampled."""


@functools.cache
def exported(name: str) -> tuple[Policy, bytes, Difference]:
    observed, acted, model, mask_size, stochastic = CASES[name]
    policy = policy_of(observed, acted, model, mask_size=mask_size)
    return policy, *export(policy, stochastic=stochastic)


def ran(data: bytes, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_the_file_computes_what_the_policy_does(name: str) -> None:
    """On 1,000 observations, as the command compares; and as a user would, who knows the file only."""
    *_, mask_size, stochastic = CASES[name]
    policy, data, worst = exported(name)
    assert worst.size < 1e-5, worst
    text = {pair.key: pair.value for pair in onnx.load_from_string(data).metadata_props}
    inputs, outputs = json.loads(text["inputs"]), json.loads(text["outputs"])
    zeros = {one["name"]: np.zeros((2, *one["shape"]), one["dtype"]) for one in inputs}
    for leaf in leaves(space_from_json(text["observation_space"])):
        key = f"observation/{leaf.name}".rstrip("/")
        if key in zeros:
            zeros[key][...] = getattr(leaf.space, "start", 0)
    if mask_size:
        zeros["mask"][...] = True
    found = ran(data, zeros)
    assert [(k, str(v.dtype), list(v.shape[1:])) for k, v in found.items()] == [
        (one["name"], one["dtype"], one["shape"]) for one in outputs
    ]
    sent = space_from_json(text["action_space"])
    for leaf in leaves(sent):
        action = found[f"action/{leaf.name}".rstrip("/")][0]
        assert leaf.space.contains(np.asarray(action, leaf.dtype)) or leaf.space.contains(leaf.dtype.type(action))
    assert {k: len(text[k]) > 0 for k in ("env", "versions", "noise")} == dict.fromkeys(
        ("env", "versions", "noise"), True
    )
    assert text["actions"] == ("sampled" if stochastic else "greedy") and text["env_steps"] == str(policy.env_steps)
    assert ("noise" in zeros, "mask" in zeros) == (stochastic, mask_size > 0)


def test_states_pass_through_the_file() -> None:
    """Zeros begin an episode; a sequence by the file is the sequence by `predict`."""
    policy, data, _ = exported("gru")
    rng, state = np.random.default_rng(0), None
    states = np.zeros((3, policy.actor_critic.state_size), np.float32)
    for step in range(6):
        observations = rng.normal(size=(3, 4)).astype(np.float32)
        starts = np.array([step == 3, False, step == 0])
        states[starts] = 0.0
        found = ran(data, {"observation": observations, "state_in": states, "mask": np.ones((3, 3), bool)})
        actions, state = policy.predict(observations, state, starts)
        np.testing.assert_array_equal(found["action"], actions)
        np.testing.assert_allclose(found["state_out"], state, atol=1e-5)
        states = found["state_out"]


def test_a_mask_rules_actions_out_of_the_file() -> None:
    policy, data, _ = exported("gru")
    states = np.zeros((3, policy.actor_critic.state_size), np.float32)
    found = ran(data, {"observation": np.zeros((3, 4), np.float32), "mask": np.eye(3, dtype=bool), "state_in": states})
    assert found["action"].tolist() == [1, 2, 3]
    np.testing.assert_allclose(found["log_prob"], 0.0, atol=1e-6)


# -- what cannot be exported --------------------


class LooksAtNumbers(structured_networks.Plain):
    """Decides by what it sees, which no graph can."""

    def forward(self, observations: Any) -> Any:
        if not torch.isfinite(observations["vector"]).all():
            raise ValueError("not finite")
        return super().forward(observations)


def made_of(network: type) -> Policy:
    return policy_of(
        structured_networks.SPACE, spaces.Discrete(2), ModelConfig(factory=f"{__name__}:{network.__name__}")
    )


def test_a_network_that_torch_cannot_follow_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"model\.factory=.*:LooksAtNumbers: torch cannot export it: .*[Dd]ata-dependent"
    ):
        export(made_of(LooksAtNumbers))


def test_a_network_that_is_too_large_for_one_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dppo.training.exported.MOST_BYTES", 100)
    with pytest.raises(UsageError, match=r"has 1\d\d parameters, and an ONNX file has less than 2 GiB"):
        export(policy_of(VECTOR, spaces.Discrete(3), SMALL))
