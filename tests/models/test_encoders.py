"""Encoders of images, embeddings of choices, and the network that they feed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from dppo.config import ModelConfig, MomentsConfig
from dppo.envs.leaves import array_type, leaves
from dppo.models.encoders import EMBEDDING, EncodedModule, EncodedNetwork, make_encoder
from dppo.models.flat import FlatParameters
from dppo.models.inputs import Inputs
from dppo.models.policy import make_policy
from dppo.models.torch_network import MOST_ROWS

IMAGE = spaces.Box(0, 255, (40, 36, 3), np.uint8)
TREE = spaces.Dict({
    "camera": spaces.Box(0, 255, (4, 5, 5), np.uint8),
    "choice": spaces.MultiDiscrete([3, 100]),
    "gear": spaces.Discrete(3),
    "vector": spaces.Box(-1.0, 1.0, (2,), np.float32),
})  # fmt: skip


def samples(space: spaces.Space[Any], rows: int, seed: int = 0) -> np.ndarray:
    """Random observations [rows, *obs]."""
    space.seed(seed)
    shape, dtype = array_type(space)
    out = np.zeros((rows, *shape), dtype)
    for row in range(rows):
        value: Any = space.sample()
        for leaf in leaves(space):
            found = value
            for name in leaf.path:
                found = found[name]
            leaf.of(out)[row] = found
    return out


def network(space: spaces.Space[Any], **changes: Any) -> tuple[EncodedNetwork, EncodedModule, FlatParameters]:
    inputs, cfg = Inputs(space, MomentsConfig()), ModelConfig(hidden=(8,), **changes)
    torch.manual_seed(0)
    module = EncodedModule(inputs, 3, cfg)
    flat = FlatParameters(EncodedNetwork.shapes(module), 0)
    return EncodedNetwork(flat, module, inputs), module, flat


@pytest.mark.parametrize(
    ("name", "shape", "features"),
    [
        ("auto", (4, 84, 84), 512), ("nature", (1, 36, 50), 512), ("auto", (3, 7, 7), 128), ("auto", (1, 1, 9), 128),
        ("impala", (3, 64, 64), 256), ("impala", (3, 5, 4), 256),
    ],
)  # fmt: skip
def test_every_encoder_gives_its_features(name: str, shape: tuple[int, int, int], features: int) -> None:
    module, size = make_encoder(name, shape)
    assert size == features
    assert module(torch.zeros(2, *shape)).shape == (2, features)


def test_natures_encoder_is_that_of_the_paper() -> None:
    """84 x 84 x 4: 20 x 20 x 32, 9 x 9 x 64, 7 x 7 x 64, 512 (Mnih et al. 2015, methods)."""
    module, _ = make_encoder("nature", (4, 84, 84))
    sizes = [tuple(p.shape) for name, p in module.named_parameters() if name.endswith("weight")]
    assert sizes == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 3136)]


def test_an_image_that_is_too_small_is_refused_with_a_way_out() -> None:
    with pytest.raises(ValueError, match=r"at least 36 x 36.* 35 x 84: use model.encoder=auto or impala"):
        make_encoder("nature", (3, 35, 84))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("space", [IMAGE, TREE], ids=["image", "tree"])
def test_acting_values_and_forward_agree(space: spaces.Space[Any], shared: bool) -> None:
    net, _, _ = network(space, shared=shared)
    observations = samples(space, 6)
    outputs, value = net.forward(observations)
    acted, values = net.act(observations)
    np.testing.assert_allclose(acted, outputs, atol=1e-6)
    np.testing.assert_allclose(net.value(observations), value, atol=1e-6)
    assert (values is None) == (not shared), "a shared encoder gives the value in the same pass"
    if values is not None:
        np.testing.assert_allclose(values, value, atol=1e-6)


def test_values_of_many_rows_come_in_pieces() -> None:
    net, _, _ = network(TREE)
    observations = samples(TREE, MOST_ROWS + 3)
    assert net.value(observations).shape == (MOST_ROWS + 3,)
    np.testing.assert_allclose(net.value(observations)[-3:], net.value(observations[-3:]), atol=1e-6)


@pytest.mark.parametrize("shared", [True, False])
def test_the_gradient_is_that_of_finite_differences(shared: bool) -> None:
    net, module, flat = network(TREE, shared=shared, activation="tanh")
    observations, rng = samples(TREE, 5), np.random.default_rng(1)
    d_outputs, d_value = rng.normal(size=(5, 3)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    net.forward(observations)
    net.backward(d_outputs, d_value)
    gradient, before = flat.gradient.copy(), flat.vector.copy()
    direction = rng.normal(size=flat.size).astype(np.float32)

    def loss(step: float) -> float:
        flat.vector[:] = before + np.float32(step) * direction
        outputs, value = net.forward(observations)
        return float((outputs * d_outputs).sum(dtype=np.float64) + (value * d_value).sum(dtype=np.float64))

    numeric = (loss(1e-4) - loss(-1e-4)) / 2e-4
    assert numeric == pytest.approx(float(gradient @ direction), rel=0.05)
    assert {name for name, _ in module.named_parameters() if not flat.gradients[name].any()} == set()


def test_every_part_of_an_observation_counts() -> None:
    net, _, _ = network(TREE)
    observations = samples(TREE, 1)
    first = net.act(observations)[0].copy()
    for name, other in (("camera", 200), ("vector", 0.9), ("gear", (observations["gear"][0] + 1) % 3)):
        changed = observations.copy()
        changed[name] = other
        assert not np.array_equal(net.act(changed)[0], first), name
    changed = observations.copy()
    changed["choice"][0, 1] = (changed["choice"][0, 1] + 1) % 100
    assert not np.array_equal(net.act(changed)[0], first), "choice"


def test_pixels_are_scaled_to_one_and_channels_come_first() -> None:
    """The same image, channels first and last, gives the same output; 255 counts as 1."""
    first, last = spaces.Box(0, 255, (3, 40, 36), np.uint8), IMAGE
    image = samples(first, 2)
    outputs = [
        network(space)[0].act(pixels)[0] for space, pixels in ((first, image), (last, image.transpose(0, 2, 3, 1)))
    ]
    np.testing.assert_allclose(*outputs, atol=1e-6)
    unit, floats = spaces.Box(0.0, 1.0, (3, 40, 36), np.float32), (image / np.float32(255)).astype(np.float32)
    np.testing.assert_allclose(network(unit)[0].act(floats)[0], outputs[0], atol=1e-5)


def test_one_encoder_is_half_of_two() -> None:
    shared, apart = (network(IMAGE, shared=is_shared)[2].size for is_shared in (True, False))
    encoder = sum(p.numel() for p in make_encoder("auto", (3, 40, 36))[0].parameters())
    assert apart - shared == encoder


def test_a_choice_of_many_values_has_an_embedding() -> None:
    _, module, _ = network(spaces.Discrete(500))
    assert [tuple(e.weight.shape) for e in module.modules() if isinstance(e, torch.nn.Embedding)] == [(500, EMBEDDING)]


def test_a_policy_of_images_says_so_and_its_factory_is_refused() -> None:
    rng = np.random.default_rng(0)
    policy = make_policy(IMAGE, spaces.Discrete(2), ModelConfig(), MomentsConfig(), rng)
    assert "auto encoder of policy and value" in policy.description
    with pytest.raises(ValueError, match=r"model.factory=\S*Plain: it takes vectors.*FlattenObservation"):
        cfg = ModelConfig(factory="tests.models.networks_of_others:Plain")
        make_policy(IMAGE, spaces.Discrete(2), cfg, MomentsConfig(), rng)


def test_a_rollout_holds_an_image_once() -> None:
    """At most 1.2 times the raw observations."""
    space = spaces.Box(0, 255, (84, 84, 4), np.uint8)
    policy = make_policy(space, spaces.Discrete(6), ModelConfig(), MomentsConfig(), np.random.default_rng(0))
    rollout = policy.blank_rollout(0, 16, 2)
    assert rollout.inputs is rollout.observations and rollout.observations.dtype == np.uint8
    assert rollout.num_bytes <= 1.2 * 16 * 2 * 84 * 84 * 4
