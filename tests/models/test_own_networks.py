"""Networks of the user's own on observations of any space: what they are given, what is refused, constant buffers."""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from dppo.config import Config, ModelConfig, MomentsConfig
from dppo.envs.leaves import array_type, leaves, to_array
from dppo.models.distributions import make_distribution
from dppo.models.inputs import Inputs
from dppo.models.own_networks import ActionHead, action_heads
from dppo.models.policy import ActorCritic, make_policy
from dppo.models.structured import Structured
from dppo.models.torch_network import MOST_ROWS
from dppo.training.policy import load_policy
from tests.models import structured_networks
from tests.models.structured_networks import SPACE
from tests.parts import Parts, make_parts, probe, save
from tests.trajectories.test_any_space import drawn, values

MODULE = structured_networks.__name__


def samples(space: spaces.Space[Any], rows: int) -> np.ndarray:
    """Random observations [rows, *obs]."""
    space.seed(0)
    return np.concatenate([to_array(space, space.sample())[0] for _ in range(rows)])


def make(factory: Any, space: spaces.Space[Any] = SPACE, actions: Any = None, seed: int = 0) -> ActorCritic:
    name = factory if isinstance(factory, str) else factory.__name__
    cfg, rng = ModelConfig(factory=f"{MODULE}:{name}"), np.random.default_rng(seed)
    return make_policy(space, actions or spaces.Discrete(3), cfg, MomentsConfig(), rng)


# -- what a factory is given --------------------

ACTIONS = spaces.Dict({
    "bits": spaces.MultiBinary((2, 2)),
    "drive": spaces.Tuple([spaces.Discrete(3, start=1), spaces.Box(-2.0, 2.0, (2, 2), np.float32)]),
    "grid": spaces.Box(0, 4, (2,), np.int64),
    "many": spaces.MultiDiscrete([2, 5]),
})  # fmt: skip


def test_a_factory_is_told_the_outputs_of_each_leaf_in_their_order() -> None:
    heads = action_heads(ACTIONS)
    assert heads == (
        ActionHead("bits", "bernoulli", 4, ()),
        ActionHead("drive/0", "categorical", 3, (3,)),
        ActionHead("drive/1", "gaussian", 4, ()),
        ActionHead("grid", "categorical", 10, (5, 5)),
        ActionHead("many", "categorical", 7, (2, 5)),
    )
    distribution = make_distribution(ACTIONS)
    assert sum(head.size for head in heads) == distribution.network_outputs
    first = 0
    for head in heads:  # outputs of a leaf decide its own part of the action
        outputs = np.zeros((1, distribution.head_size), np.float32)
        outputs[0, first : first + head.size] = [-2.0] * (head.size - 1) + [2.0]
        first += head.size
        zeros = distribution.mode(np.zeros_like(outputs))
        moved = distribution.mode(outputs)
        changed = {leaf.name for leaf in leaves(ACTIONS) if not np.array_equal(leaf.of(zeros), leaf.of(moved))}
        assert changed == {head.name}
    assert action_heads(spaces.Discrete(4)) == (ActionHead("", "categorical", 4, (4,)),)


TREE = spaces.Dict(
    OrderedDict(
        z=spaces.Box(-1.0, 1.0, (2, 3), np.float64),
        action_mask=spaces.MultiBinary(3),
        image=spaces.Box(0, 255, (2, 3, 4), np.uint8),
        inner=spaces.Tuple([
            spaces.Discrete(100, start=-50, dtype=np.int8),
            spaces.Dict({"bits": spaces.MultiBinary((1, 2)), "float": spaces.Box(0.0, 1.0, (3, 2, 2), np.float64)}),
            spaces.MultiDiscrete([[2, 90]], start=[[5, -1]]),
        ]),
        few=spaces.Discrete(3, start=1),
        number=spaces.Box(-1, 1, (), np.int64),
    )
)  # fmt: skip


def test_forward_gets_observations_nested_as_the_space_is() -> None:
    """In the space's order, without the mask of actions; indices from 0, pixels as they are, numbers normalised."""
    inputs = Inputs(TREE, MomentsConfig())
    raw = samples(TREE, 5)
    raw["inner"]["0"][:2] = -50, 49
    inputs.merge(inputs.deltas(raw))
    inputs.freeze()
    given = Structured(inputs, TREE)(raw)
    assert list(given) == ["z", "image", "inner", "few", "number"] and type(given["inner"]) is tuple
    number, inner, many = given["inner"]
    assert list(inner) == ["bits", "float"]
    types = {
        "z": (given["z"], torch.float32), "image": (given["image"], torch.uint8),
        "number": (given["number"], torch.float32),
        "inner/0": (number, torch.int64), "inner/1/bits": (inner["bits"], torch.float32),
        "inner/1/float": (inner["float"], torch.float32), "inner/2": (many, torch.int64),
        "few": (given["few"], torch.int64),
    }  # fmt: skip
    for leaf in leaves(TREE):
        if leaf.name != "action_mask":
            tensor, dtype = types[leaf.name]
            assert (tuple(tensor.shape), tensor.dtype) == ((5, *leaf.shape), dtype), leaf.name
            assert tensor.is_contiguous()
    assert number[:2].tolist() == [0, 99]
    np.testing.assert_array_equal(given["few"], raw["few"] - 1)
    np.testing.assert_array_equal(many, raw["inner"]["2"] - [[5, -1]])
    np.testing.assert_array_equal(given["image"], raw["image"])
    np.testing.assert_array_equal(inner["float"], raw["inner"]["1"]["float"].astype(np.float32))
    np.testing.assert_array_equal(inner["bits"], raw["inner"]["1"]["bits"])
    z = raw["z"]
    np.testing.assert_allclose(given["z"], (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-8), atol=1e-5)


@pytest.mark.parametrize(
    ("space", "shape", "dtype"),
    [
        (spaces.Box(-1.0, 1.0, (3,), np.float32), (4, 3), torch.float32),
        (spaces.Box(0, 9, (), np.int64), (4,), torch.float32),
        (spaces.Box(0, 255, (3, 8, 8), np.uint8), (4, 3, 8, 8), torch.uint8),
        (spaces.Box(0, 9, (3, 8, 8), np.int32), (4, 3, 8, 8), torch.float32),
        (spaces.Discrete(5, start=-2), (4,), torch.int64),
        (spaces.MultiDiscrete([3, 100]), (4, 2), torch.int64),
        (spaces.MultiBinary(6), (4, 6), torch.float32),
    ],
)
def test_a_plain_space_is_one_tensor(space: spaces.Space[Any], shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = Structured(Inputs(space, MomentsConfig()), space)(samples(space, 4))
    assert (tuple(tensor.shape), tensor.dtype) == (shape, dtype)


def test_arrays_that_may_not_be_written_to_and_empty_ones_are_taken() -> None:
    space = spaces.Box(0, 255, (3, 8, 8), np.uint8)
    structured, raw = Structured(Inputs(space, MomentsConfig()), space), samples(space, 4)
    raw.flags.writeable = False
    np.testing.assert_array_equal(structured(raw), raw)
    assert structured(raw[:0]).shape == (0, 3, 8, 8)


def test_a_mask_alone_is_nothing_to_observe() -> None:
    space = spaces.Dict({"action_mask": spaces.MultiBinary(3)})
    with pytest.raises(ValueError, match=r"model\.factory=.*Plain: there is nothing to observe in Dict"):
        make("Plain", space)


# -- the network behind the seam --------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("factory", structured_networks.TRAINABLE, ids=lambda factory: factory.__name__)
def test_a_network_of_any_space_is_trained(factory: Any) -> None:
    """Acting, values and forward agree; the flat gradient is autograd's, and of finite differences."""
    policy = make(factory)
    assert policy.inputs.is_raw and policy.blank_rollout(0, 2, 2).inputs.dtype == array_type(SPACE)[1]
    raw = samples(SPACE, 6)
    raw["image"] %= 4
    outputs, values = policy.network.act(raw)
    head, value = policy.forward(raw)
    np.testing.assert_allclose(outputs, head, rtol=1e-5)
    np.testing.assert_allclose(values, value, rtol=1e-5)
    np.testing.assert_allclose(policy.value(raw), value, rtol=1e-5)
    rng = np.random.default_rng(2)
    d_head, d_value = rng.standard_normal((6, 3)).astype(np.float32), rng.standard_normal(6).astype(np.float32)
    policy.forward(raw)
    policy.backward(d_head, d_value)
    gradient, vector = policy.flat.gradient.copy(), policy.flat.vector
    assert gradient.any()
    for i in np.flatnonzero(gradient)[:: max(1, np.count_nonzero(gradient) // 20)]:
        kept, ends = vector[i], []
        for h in (1e-2, -1e-2):
            vector[i] = kept + np.float32(h)
            head, value = policy.forward(raw)
            ends.append(float((head * d_head).sum(dtype=np.float64) + np.dot(value, d_value)))
        vector[i] = kept
        assert gradient[i] == pytest.approx((ends[0] - ends[1]) / 2e-2, abs=1e-2)


def test_values_of_a_whole_rollout_are_computed_piece_by_piece() -> None:
    policy, raw = make("Plain"), samples(SPACE, 2 * MOST_ROWS + 3)
    value = policy.value(raw).copy()
    np.testing.assert_allclose(value, policy.forward(raw)[1], rtol=1e-5)
    assert policy.value(raw[:0]).shape == (0,)


def test_a_composite_action_has_all_its_outputs() -> None:
    policy, raw = make("Plain", actions=ACTIONS), samples(SPACE, 3)
    sent = policy.distribution.to_env(policy.greedy(raw))
    assert sent.dtype == array_type(ACTIONS)[1] and "log_std" in policy.flat.parameters
    assert policy.flat.parameters["policy.bias"].shape == (4 + 3 + 4 + 10 + 7,)


def test_a_vector_space_is_normalised_for_either_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two forms of one network give the same outputs."""
    seen: list[torch.Tensor] = []

    class Net(torch.nn.Module):
        def __init__(self, size: int, outputs: int) -> None:
            super().__init__()
            self.policy, self.critic = torch.nn.Linear(size, outputs), torch.nn.Linear(size, 1)

        def forward(self, x: torch.Tensor) -> Any:
            seen.append(x)
            return self.policy(x), self.critic(x)[:, 0]

    def structured(observation_space: spaces.Box, action_heads: Any) -> torch.nn.Module:
        return Net(*observation_space.shape, sum(head.size for head in action_heads))

    for function in (Net, structured):
        monkeypatch.setattr(structured_networks, function.__name__, function, raising=False)
    space, raw = spaces.Box(-9.0, 9.0, (4,), np.float32), np.random.default_rng(0).normal(3, 2, (50, 4))
    given, heads = [], []
    for name in ("Net", "structured"):
        policy = make(name, space)
        policy.inputs.merge(policy.inputs.deltas(raw))
        policy.inputs.freeze()
        heads.append(policy.forward(policy.inputs(raw.astype(np.float32)))[0].copy())
        given.append(seen[-1])
    torch.testing.assert_close(*given)
    np.testing.assert_allclose(*heads, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.*overflow encountered")
@pytest.mark.parametrize("seed", range(20))
def test_spaces_drawn_at_random_are_observed(seed: int) -> None:
    """The network is given each leaf, whatever its type, bounds and place."""
    rng = np.random.default_rng(seed)
    space = drawn(rng, 2)
    policy = make("Everything", space)
    raw = values(space, (5,), rng)
    policy.inputs.merge(policy.inputs.deltas(raw))
    policy.inputs.freeze()
    head, value = policy.forward(raw)
    assert np.isfinite(head).all() and np.isfinite(value).all()
    policy.backward(np.ones_like(head), np.ones_like(value))
    assert np.isfinite(policy.flat.gradient).all()


# -- what is refused --------------------


@pytest.mark.parametrize("name", structured_networks.REFUSED)
def test_what_does_not_fit_is_refused_with_the_reason_and_the_repair(name: str) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match=rf"^model\.factory={MODULE}:{name}: .*{structured_networks.REFUSED[name]}"):
        make(name)
    assert time.monotonic() - began < 20, "no time and memory are spent on what is refused"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("def make(:", "cannot be imported: SyntaxError"),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(3)", "cannot be imported: SystemExit: 3"),
        ("import sys\ndef make(observation_space, action_heads): sys.exit(3)", "it raised SystemExit: 3"),
    ],
)
def test_a_module_that_does_not_work_is_no_fault_of_the_environment(
    text: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_network.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_network", raising=False)
    cfg = ModelConfig(factory="broken_network:make")
    with pytest.raises(ValueError, match=rf"^model\.factory=broken_network:make: {problem}"):
        make_policy(SPACE, spaces.Discrete(2), cfg, MomentsConfig(), np.random.default_rng(0))


def test_constants_that_share_memory_are_taken_over() -> None:
    policy = make("Expanded")
    policy.flat.set_constants({"same": np.full(8, 3.0, np.float32)})
    assert policy.flat.constants["same"].tolist() == [3.0] * 8


def test_a_function_in_c_is_of_the_old_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structured_networks, "in_c", max, raising=False)
    with pytest.raises(ValueError, match=r"it gave a int, not a torch\.nn\.Module"):
        make("in_c", spaces.Box(-1.0, 1.0, (4,), np.float32))


# -- constant buffers --------------------


def constants(policy: ActorCritic) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in policy.flat.constants.items()}


def test_a_buffer_that_is_drawn_is_the_same_on_every_rank() -> None:
    """Whatever was drawn before; it is none of the parameters, and the fingerprint of a rank tells."""
    torch.manual_seed(1)
    first = make("Constants")
    torch.manual_seed(2)
    second = make("Constants")
    assert list(first.flat.constants) == ["drawn", "from_numpy", "order", "allowed", "on"]
    for name, array in first.flat.constants.items():
        np.testing.assert_array_equal(array, second.flat.constants[name])
    assert first.flat.size == make("Plain").flat.size
    assert first.flat.fingerprint() == second.flat.fingerprint()
    second.flat.constants["drawn"][3] += 1
    assert first.flat.fingerprint() != second.flat.fingerprint()


def test_what_a_module_draws_when_it_is_imported_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process imports it once, and may make several networks: of runs one after the other, of `load_policy`."""
    policies = []
    for _ in range(2):
        policies.append(make("Constants"))
        monkeypatch.delitem(sys.modules, MODULE)
    policies.append(make("Constants"))
    assert len({policy.flat.fingerprint() for policy in policies}) == 1


def test_the_arrays_of_constants_are_the_modules_memory() -> None:
    policy, raw = make("Constants"), samples(SPACE, 3)
    before = policy.forward(raw)[0].copy()
    policy.flat.constants["drawn"][:] = 0.0
    assert not np.allclose(before, policy.forward(raw)[0])


CONFIG = Config(
    env=probe("Inputs"), num_envs=2, horizon=16, total_steps=10_000,
    model=ModelConfig(factory=f"{MODULE}:OnProbe"),
)  # fmt: skip


def of_probe(seed: int = 0) -> Parts:
    return make_parts(replace(CONFIG, seed=seed))


def test_constants_are_in_checkpoints_and_a_policy_of_another_seed_takes_them_over(tmp_path: Path) -> None:
    """So a checkpoint gives the same actions where a generator draws other numbers: another torch, another CPU."""
    place, other = of_probe(), of_probe(seed=5)
    place.policy.flat.vector += np.random.default_rng(0).normal(0.0, 0.1, place.policy.flat.size).astype(np.float32)
    observations = place.collector.envs.reset()
    assert not np.allclose(other.policy.flat.constants["drawn"], place.policy.flat.constants["drawn"])
    other.state.load(place.state.as_dict())
    other.state.begin_iteration()
    assert other.policy.flat.fingerprint() == place.policy.flat.fingerprint()
    save(place, tmp_path / "run")
    loaded = load_policy(tmp_path / "run")
    for name, array in place.policy.flat.constants.items():
        np.testing.assert_array_equal(loaded.actor_critic.flat.constants[name], array)
    place.state.begin_iteration()
    expected = place.policy.forward(observations)[0]
    np.testing.assert_array_equal(other.policy.forward(observations)[0], expected)
    actions = loaded.act({name: observations[name] for name in observations.dtype.names or ()})
    np.testing.assert_array_equal(actions, expected.argmax(axis=1))


def without(saved: dict[str, Any]) -> None:
    del saved["constants"]


def another_name(saved: dict[str, Any]) -> None:
    saved["constants"]["other"] = saved["constants"].pop("drawn")


def another_type(saved: dict[str, Any]) -> None:
    saved["constants"]["drawn"] = saved["constants"]["drawn"].astype(np.float64)


def another_shape(saved: dict[str, Any]) -> None:
    saved["constants"]["drawn"] = saved["constants"]["drawn"][1:]


@pytest.mark.parametrize("change", [without, another_name, another_type, another_shape])
def test_a_checkpoint_with_other_constants_does_not_fit(change: Callable[[dict[str, Any]], None]) -> None:
    place = of_probe()
    saved = place.state.as_dict()
    change(saved)
    with pytest.raises(ValueError, match=r"the checkpoint holds a network with the buffers .*drawn"):
        place.state.load(saved)


def test_a_network_without_buffers_saves_none_and_a_checkpoint_without_them_fits() -> None:
    place = make_parts()
    saved = place.state.as_dict()
    assert "constants" not in saved
    place.state.load(saved)
