"""Torch networks: their parameters are the flat buffers, a user's own is checked before it is used."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from dppo.config import ModelConfig, MomentsConfig
from dppo.models.flat import FlatParameters
from dppo.models.policy import ActorCritic, make_policy
from dppo.models.torch_network import TorchMLP, TorchNetwork
from tests.models import networks_of_others

FACTORIES = '''
import torch
from torch import nn

class Shared(nn.Module):
    """One body for both outputs, and a parameter without an axis."""

    def __init__(self, size, outputs):
        super().__init__()
        self.body = nn.Linear(size, 7)
        self.policy = nn.Linear(7, outputs)
        self.value = nn.Linear(7, 1)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        features = torch.relu(self.body(x)) * self.scale
        return self.policy(features), self.value(features).squeeze(-1)

class Double(Shared):
    def __init__(self, size, outputs):
        super().__init__(size, outputs)
        self.double()

    def forward(self, x):
        return super().forward(x.double())

class Column(Shared):
    def forward(self, x):
        head, value = super().forward(x)
        return head, value[:, None]

class HeadOnly(Shared):
    def forward(self, x):
        return super().forward(x)[0]

class Normalised(Shared):
    def __init__(self, size, outputs):
        super().__init__(size, outputs)
        self.norm = nn.BatchNorm1d(7)

def not_a_module(size, outputs):
    return lambda x: x
'''


@pytest.fixture(autouse=True)
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the user's that can be imported."""
    (tmp_path / "factories.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "factories", raising=False)


def make(factory: str | None) -> ActorCritic:
    cfg = ModelConfig(hidden=(6,), factory=factory, backend="auto" if factory else "torch")
    observations = spaces.Box(-1.0, 1.0, (5,), np.float32)
    return make_policy(observations, spaces.Discrete(3), cfg, MomentsConfig(), np.random.default_rng(0))


def inputs_of(batch: int = 9) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((batch, 5)).astype(np.float32)


@pytest.mark.parametrize("factory", [None, "factories:Shared"])
def test_the_flat_vector_is_the_modules_memory(factory: str | None) -> None:
    policy = make(factory)
    assert policy.network.act(inputs_of())[0].any()
    policy.flat.vector[:] = 0.0
    assert not policy.network.act(inputs_of())[0].any()
    assert not policy.value(inputs_of()).any()


@pytest.mark.parametrize("size", ["(4,)", "(1, 40, 40)"], ids=["vector", "image"])
def test_training_imports_no_sympy_and_no_compiler(size: str) -> None:
    """Either takes each rank as long as the rest of torch."""
    code = f"""if True:
        import sys
        import numpy as np
        from gymnasium import spaces
        from dppo.config import ModelConfig, MomentsConfig
        from dppo.models.policy import make_policy
        both = spaces.Box(0, 255, {size}, np.uint8), spaces.Discrete(2)
        policy = make_policy(*both, ModelConfig(backend="torch"), MomentsConfig(), np.random.default_rng(0))
        observations = np.zeros((3, *{size}), np.uint8)
        policy.forward(policy.inputs(observations))
        policy.backward(np.ones((3, 2), np.float32), np.ones(3, np.float32))
        print(*({{"torch", "sympy", "torch._dynamo"}} & sys.modules.keys()))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout.split() == ["torch"], done.stderr


def test_gradients_of_another_shape_are_refused() -> None:
    policy = make(None)
    policy.forward(inputs_of(4))
    with pytest.raises(RuntimeError, match="shape"):
        policy.backward(np.ones((3, 3), np.float32), np.ones(4, np.float32))


@pytest.mark.parametrize("factory", [None, "factories:Shared"])
def test_backward_writes_autograds_gradient_into_the_flat_vector(factory: str | None) -> None:
    policy = make(factory)
    rng = np.random.default_rng(2)
    for batch in (9, 4):  # the second writes over the first
        d_head = rng.standard_normal((batch, 3)).astype(np.float32)
        d_value = rng.standard_normal(batch).astype(np.float32)
        policy.forward(inputs_of(batch))
        policy.backward(d_head, d_value)

    def objective() -> float:
        head, value = policy.forward(inputs_of(4))
        return float((head * d_head).sum(dtype=np.float64) + np.dot(value, d_value))

    gradient = policy.flat.gradient.copy()
    for i in rng.choice(policy.flat.size, 25, replace=False):
        kept, ends = policy.flat.vector[i], []
        for h in (1e-2, -1e-2):
            policy.flat.vector[i] = kept + np.float32(h)
            ends.append(objective())
        policy.flat.vector[i] = kept
        assert gradient[i] == pytest.approx((ends[0] - ends[1]) / 2e-2, abs=5e-3)


def test_the_default_network_is_the_numpy_one_in_torch() -> None:
    """The same weights give the same outputs under either backend."""
    module = TorchMLP(5, (6, 4), 3, "tanh")
    towers = [[m for m in t if isinstance(m, torch.nn.Linear)] for t in (module.policy_tower, module.value_tower)]
    cfg = ModelConfig(hidden=(6, 4))
    observations = spaces.Box(-1.0, 1.0, (5,), np.float32)
    policy = make_policy(observations, spaces.Discrete(3), cfg, MomentsConfig(), np.random.default_rng(0))
    ours = policy.flat.parameters
    for tower, (*hidden, head) in enumerate(towers):
        layers = [(ours[f"hidden.{i}.weight"][tower], ours[f"hidden.{i}.bias"][tower], m) for i, m in enumerate(hidden)]
        name = ("policy", "value")[tower]
        for weight, bias, module_layer in [*layers, (ours[f"{name}.weight"], ours[f"{name}.bias"], head)]:
            weight[...], bias[...] = module_layer.weight.detach().numpy().T, module_layer.bias.detach().numpy()
    outputs, value = module(torch.from_numpy(inputs_of()))
    np.testing.assert_allclose(policy.network.act(inputs_of())[0], outputs.detach(), atol=1e-5)
    np.testing.assert_allclose(policy.value(inputs_of()), value.detach(), atol=1e-5)


def test_initial_weights_are_orthogonal_as_in_numpy() -> None:
    policy = make(None)
    gains = {n: np.linalg.norm(p, 2) for n, p in policy.flat.parameters.items() if n.endswith("weight")}
    inside = 2**0.5
    expected = dict(zip(gains, (inside, 0.01, inside, 1.0), strict=True))
    assert gains == pytest.approx(expected, rel=1e-5)


def test_frozen_parameters_stay_and_have_no_gradient() -> None:
    module = TorchMLP(5, (6,), 3, "tanh")
    frozen = next(module.parameters()).requires_grad_(False)
    flat = FlatParameters(TorchNetwork.shapes(module), num_sums=0)
    network = TorchNetwork(flat, module)
    network.forward(inputs_of())
    network.backward(np.ones((9, 3), np.float32), np.ones(9, np.float32))
    assert not flat.gradient[: frozen.numel()].any()
    assert flat.gradient[frozen.numel() :].any()


@pytest.mark.parametrize(
    ("factory", "problem"),
    [
        ("nowhere:Net", "cannot be imported: No module named 'nowhere'"),
        ("factories:Missing", "cannot be imported"),
        ("factories:not_a_module", "gave a function, not a torch.nn.Module"),
        ("factories:Column", r"must give \(head \[2, 3\], value \[2\]\), but gave \[\(2, 3\), \(2, 1\)\]"),
        ("factories:HeadOnly", "but gave Tensor"),
        ("factories:Double", "all parameters must be float32"),
        ("factories:Normalised", "buffers"),
    ],
)
def test_a_factory_that_does_not_fit_is_refused_with_the_reason(factory: str, problem: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.factory={factory}.*{problem}"):
        make(factory)


def test_a_factorys_policy_says_where_it_comes_from() -> None:
    assert make("factories:Shared").description.startswith("factories:Shared, torch autograd")


# -- networks of others --------------------


def make_of_others(network: type[torch.nn.Module]) -> ActorCritic:
    return make(f"{networks_of_others.__name__}:{network.__name__}")


@pytest.mark.parametrize("network", networks_of_others.REFUSED, ids=lambda network: network.__name__)
def test_a_network_that_breaks_a_promise_is_refused_with_the_reason(network: type[torch.nn.Module]) -> None:
    with pytest.raises(
        ValueError, match=f"model.factory=.*{network.__name__}: .*({networks_of_others.REFUSED[network]})"
    ):
        make_of_others(network)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("network", networks_of_others.TRAINABLE, ids=lambda network: network.__name__)
def test_a_network_whose_rows_stand_for_themselves_is_trained(network: type[torch.nn.Module]) -> None:
    """The parameters are those that it was made with, and the flat gradient is autograd's."""
    torch.manual_seed(int(np.random.default_rng(0).integers(2**31)))
    np.random.seed(int(np.random.default_rng(0).integers(2**31)))  # noqa: NPY002
    module, policy = network(5, 3), make_of_others(network)
    for name, parameter in module.named_parameters():
        np.testing.assert_array_equal(policy.flat.parameters[name], parameter.detach())
    inputs = np.abs(inputs_of(4))
    head, _ = policy.forward(inputs)
    expected = module(torch.from_numpy(inputs))
    np.testing.assert_allclose(head, expected[0].detach(), rtol=1e-5, atol=1e-6)
    policy.flat.gradient[:] = 7.0  # of the minibatch before
    policy.backward(np.ones((4, 3), np.float32), np.ones(4, np.float32))
    sum(out.sum() for out in expected if out.requires_grad).backward()  # type: ignore[union-attr]
    for name, parameter in module.named_parameters():
        gradient = np.zeros(parameter.shape) if parameter.grad is None else parameter.grad
        np.testing.assert_allclose(policy.flat.gradients[name], gradient, rtol=1e-4, atol=1e-5)


def test_ranks_make_the_same_network_whatever_they_have_drawn_before() -> None:
    """Also what it draws from Python's and NumPy's generators, which go on as they were."""
    heads, states = [], []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        policy = make_of_others(networks_of_others.ConstantFromNumPy)
        heads.append(policy.network.act(inputs_of())[0].copy())
        states.append((random.random(), np.random.random()))  # noqa: NPY002
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        assert states[-1] == (random.random(), np.random.random())  # noqa: NPY002
    np.testing.assert_array_equal(heads[0], heads[1])
