"""From raw observations to the network's inputs, leaf by leaf."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from dppo.config import MomentsConfig
from dppo.envs.leaves import array_type
from dppo.models.inputs import Inputs


def box(*shape: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, shape)


def filled(cfg: MomentsConfig) -> tuple[Inputs, np.ndarray]:
    """Inputs that have merged samples, not frozen yet, and the samples."""
    inputs, observations = Inputs(box(3), cfg), np.random.default_rng(0).normal(4.0, 2.0, (200, 3))
    inputs.merge(inputs.deltas(observations))
    return inputs, observations


# -- numbers --------------------


def test_merged_samples_count_from_the_next_freeze_on() -> None:
    """Acting, advantages and gradients of one iteration see the same numbers."""
    inputs, observations = filled(MomentsConfig())
    np.testing.assert_array_equal(inputs(observations[:5]), observations[:5].astype(np.float32))
    inputs.freeze()
    normalised = inputs(observations)
    np.testing.assert_allclose(normalised.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(normalised.std(0), 1.0, rtol=1e-5)


def test_clip_bounds_what_the_network_sees() -> None:
    inputs, _ = filled(MomentsConfig(clip=2.0))
    inputs.freeze()
    assert np.abs(inputs(np.full((1, 3), 1e6))).max() == 2.0


def test_normalisation_can_be_switched_off() -> None:
    inputs, observations = filled(MomentsConfig(observations=False))
    inputs.freeze()
    np.testing.assert_array_equal(inputs(observations), observations.astype(np.float32))
    out = np.empty((200, 3), np.float32)
    assert inputs(observations, out) is out
    np.testing.assert_array_equal(out, observations.astype(np.float32))


@pytest.mark.parametrize("shape", [(), (1,), (17,), (2, 3), (2, 3, 4, 5)])
def test_a_box_of_any_shape_is_flattened(shape: tuple[int, ...]) -> None:
    inputs, observations = Inputs(box(*shape), MomentsConfig()), np.arange(2.0 * np.prod(shape)).reshape(2, *shape) / 99
    assert inputs.size == np.prod(shape)
    np.testing.assert_array_equal(inputs(observations), observations.reshape(2, -1).astype(np.float32))


@pytest.mark.parametrize("offset", [-3e4, 1e6, 1e8, 1e9, 1e12])
def test_a_large_offset_is_taken_off(offset: float) -> None:
    samples = offset + np.round(np.random.default_rng(0).normal(0.0, 1.0, (800, 2)) * 8) / 8 * [1.0, 30.0]
    inputs = Inputs(box(2), MomentsConfig())
    for part in np.split(samples, 4):
        inputs.freeze()
        inputs.merge(inputs.deltas(part))
    inputs.freeze()
    normalised = inputs(samples)
    np.testing.assert_allclose(normalised.std(0), 1.0, rtol=5e-3)
    np.testing.assert_allclose(normalised.mean(0), 0.0, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64])
def test_what_was_normalised_is_the_difference_from_the_whole_mean(dtype: type) -> None:
    """In float32 the mean itself would be rounded to a multiple of 8."""
    samples = (1e8 + 8 * np.random.default_rng(4).integers(-2, 3, (300, 1))).astype(dtype)
    inputs = Inputs(box(1), MomentsConfig())
    inputs.start_from(samples[0])
    np.testing.assert_array_equal(inputs(samples), np.clip(samples - np.float64(samples[0]), -10, 10))
    inputs.merge(inputs.deltas(samples))
    inputs.freeze()
    wide = samples.astype(np.float64)
    np.testing.assert_allclose(inputs(samples), (wide - wide.mean()) / wide.std(), atol=1e-6)


# -- other leaves --------------------


def test_choices_are_one_hot_from_their_start() -> None:
    inputs = Inputs(spaces.Discrete(4, start=-1), MomentsConfig())
    assert inputs(np.array([-1, 2])).tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]
    inputs = Inputs(spaces.MultiDiscrete([2, 3], start=[5, 0]), MomentsConfig())
    assert inputs(np.array([[5, 0], [6, 2]])).tolist() == [[1, 0, 1, 0, 0], [0, 1, 0, 0, 1]]
    inputs = Inputs(spaces.MultiDiscrete([[2, 2], [2, 2]]), MomentsConfig())
    assert inputs(np.array([[[0, 1], [1, 0]]])).tolist() == [[1, 0, 0, 1, 0, 1, 1, 0]]


def test_bits_are_themselves() -> None:
    inputs = Inputs(spaces.MultiBinary((2, 2)), MomentsConfig())
    assert inputs(np.array([[[0, 1], [1, 1]]], np.int8)).tolist() == [[0, 1, 1, 1]]


TREE = spaces.Dict({
    "a": spaces.Discrete(3),
    "b": spaces.Tuple([box(2), spaces.MultiBinary(1)]),
    "c": spaces.Box(0, 9, (2,), np.int64),
})  # fmt: skip


def values(rows: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    out = np.zeros(rows, array_type(TREE)[1])
    out["a"], out["b"]["1"] = rng.integers(0, 3, rows), rng.integers(0, 2, (rows, 1))
    out["b"]["0"], out["c"] = rng.normal(5.0, 2.0, (rows, 2)), rng.integers(0, 9, (rows, 2))
    return out


def test_leaves_lie_side_by_side_and_only_numbers_have_moments() -> None:
    inputs, observations = Inputs(TREE, MomentsConfig()), values(300)
    assert (inputs.size, inputs.num_sums) == (3 + 2 + 1 + 2, 1 + 2 * 4)
    inputs.merge(inputs.deltas(observations))
    inputs.freeze()
    rows = inputs(observations)
    np.testing.assert_array_equal(rows[:, :3], np.eye(3)[observations["a"]])
    np.testing.assert_array_equal(rows[:, 5:6], observations["b"]["1"])
    for columns, raw in (((3, 4), observations["b"]["0"]), ((6, 7), observations["c"])):
        wide = raw.astype(np.float64)
        np.testing.assert_allclose(rows[:, columns], (wide - wide.mean(0)) / wide.std(0), atol=1e-5)
    out = np.full((300, 8), np.nan, np.float32)
    assert inputs(observations, out) is out
    np.testing.assert_array_equal(out, rows)


def test_a_dict_of_one_box_is_that_box() -> None:
    space = spaces.Dict({"only": box(3)})
    observations = np.zeros(4, array_type(space)[1])
    observations["only"] = np.arange(12.0).reshape(4, 3) / 10
    np.testing.assert_array_equal(Inputs(space, MomentsConfig())(observations), observations["only"])


def test_a_moment_that_is_not_finite_is_named_by_its_leaf() -> None:
    plain, tree = Inputs(box(3), MomentsConfig()), Inputs(TREE, MomentsConfig())
    assert plain.problem() is tree.problem() is None
    with np.errstate(over="ignore", invalid="ignore"):
        plain.merge(plain.deltas(np.array([[0.0, 0.0, 1e200], [0.0, 0.0, -1e200]])))
    assert "observation 2;" in str(plain.problem())
    tree.now.m2[3] = np.inf
    assert "observation c 1;" in str(tree.problem())


@pytest.mark.parametrize(
    ("shape", "expected"), [((4, 84, 80), (4, 84, 80)), ((84, 80, 3), (3, 84, 80)), ((3, 2, 3), (3, 3, 2))]
)
def test_an_images_channels_are_found_by_its_shape(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Nothing of it is a vector, and nothing has moments; the network takes the raw array."""
    inputs = Inputs(spaces.Box(0, 255, shape, np.uint8), MomentsConfig())
    raw = np.random.default_rng(0).integers(0, 256, (2, *shape)).astype(np.uint8)
    assert inputs(raw) is raw
    assert (inputs.is_raw, inputs.size, inputs.num_sums, inputs.type) == (True, 0, 1, (shape, np.uint8))
    (image,) = inputs.images
    assert image.shape == image.of(raw).shape[1:] == expected
    assert np.shares_memory(image.of(raw), raw)
    assert (image.low, image.scale) == (0.0, 1 / 255)


def test_an_image_without_bounds_is_not_scaled() -> None:
    (image,) = Inputs(box(3, 8, 8), MomentsConfig()).images
    assert (image.low, image.scale) == (0.0, 1.0)


@pytest.mark.parametrize("bound", [np.finfo(np.float32).max, 1e300, np.iinfo(np.int64).max])
def test_an_image_with_huge_bounds_has_none(bound: float) -> None:
    """In float32 such a bound would swallow all pixels, or be infinite."""
    dtype = np.int64 if isinstance(bound, int) else np.float64
    (image,) = Inputs(spaces.Box(-bound, bound, (3, 8, 8), dtype), MomentsConfig()).images
    assert (image.low, image.scale) == (0.0, 1.0)


def test_an_image_of_unsigned_numbers_is_scaled_by_whatever_bounds() -> None:
    (image,) = Inputs(spaces.Box(0, 2**32 - 1, (3, 8, 8), np.uint32), MomentsConfig()).images
    assert image.scale == 1 / (2**32 - 1)


def test_leaves_without_elements_add_nothing() -> None:
    space = spaces.Dict({"image": spaces.Box(0, 255, (0, 4, 3)), "none": spaces.MultiDiscrete([]), "x": box(2)})
    assert Inputs(space, MomentsConfig())(np.ones(3, array_type(space)[1])).tolist() == [[1, 1]] * 3


def test_no_rows_have_no_inputs() -> None:
    """The last rollout of a run often has none."""
    parts = (TREE, box(2, 3), spaces.MultiDiscrete([[2, 3]]), spaces.MultiDiscrete([2, 70]), spaces.Discrete(70), box())
    inputs = Inputs(spaces.Tuple(parts), MomentsConfig())
    none = np.zeros(0, inputs.observation_type[1])
    assert inputs.vectors(none).shape == (0, inputs.size)
    assert inputs.indices(none).shape == (0, 3)
    assert inputs.deltas(none).tolist() == [0.0] * inputs.num_sums


def test_choices_of_many_values_are_indices() -> None:
    inputs = Inputs(spaces.Dict({"a": spaces.Discrete(65, start=3), "b": spaces.Discrete(64)}), MomentsConfig())
    observations = np.zeros(2, inputs.observation_type[1])
    observations["a"], observations["b"] = [3, 67], [0, 63]
    assert (inputs.is_raw, inputs.size, inputs.choices) == (True, 64, [65])
    assert inputs.indices(observations).tolist() == [[0], [64]]
    assert inputs.vectors(observations)[1, 63] == 1.0


def test_an_action_mask_is_no_input() -> None:
    space = spaces.Dict({"action_mask": spaces.MultiBinary(3), "x": box(2)})
    assert Inputs(space, MomentsConfig()).size == 2


@pytest.mark.parametrize("space", [spaces.Text(3), spaces.Sequence(box(1)), spaces.Dict({"a": spaces.Text(2)})])
def test_other_spaces_are_refused(space: spaces.Space[Any]) -> None:
    with pytest.raises(ValueError, match="is not of Box, Discrete"):
        Inputs(space, MomentsConfig())
