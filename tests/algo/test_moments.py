"""Running moments: parts on many ranks are one whole, about a frozen mean; normalisation uses them."""

from __future__ import annotations

import numpy as np
import pytest

from dppo.algo.moments import Moments, Normaliser, deltas, merge, normalise
from dppo.config import MomentsConfig


def moments_of(samples: np.ndarray) -> Moments:
    """All at once, by the definition."""
    mean = samples.mean(0, dtype=np.float64)
    return Moments(float(len(samples)), mean, ((samples - mean) ** 2).sum(0, dtype=np.float64))


def assert_same(a: Moments, b: Moments) -> None:
    assert a.count == b.count
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12)
    np.testing.assert_allclose(a.m2, b.m2, rtol=1e-9)


# -- sums and merging --------------------


def test_sums_about_a_frozen_mean_worked_by_hand() -> None:
    """(1, 4) about 2: n = 2, -1 + 2, 1 + 4."""
    assert deltas(np.array([[1.0], [4.0]]), np.array([2.0])).tolist() == [2.0, 1.0, 5.0]


def test_merge_worked_by_hand() -> None:
    """{2, 4} (mean 3, M2 2) and {9}: mean 5, M2 9 + 1 + 16; the sums of {9} are taken about 3."""
    merged = merge(Moments(2.0, np.array([3.0]), np.array([2.0])), np.array([1.0, 6.0, 36.0]), np.array([3.0]))
    assert (merged.count, merged.mean.item(), merged.m2.item()) == (3.0, 5.0, 26.0)


@pytest.mark.parametrize("num_ranks", [1, 2, 5])
def test_parts_of_many_ranks_are_all_samples_at_once(num_ranks: int) -> None:
    """Several iterations; in each the ranks bring unequal numbers of samples and add up sums about one mean."""
    rng = np.random.default_rng(0)
    known, seen = Moments.empty(3), np.empty((0, 3))
    for _ in range(4):
        frozen = known.mean
        total = np.zeros(7)
        for _ in range(num_ranks):
            part = rng.normal([5.0, -1.0, 0.0], [1.0, 0.1, 30.0], (rng.integers(0, 20), 3))
            total += deltas(part, frozen)
            seen = np.concatenate((seen, part))
        known = merge(known, total, frozen)
    assert_same(known, moments_of(seen))


def test_sums_may_be_about_an_older_mean_than_the_moments() -> None:
    """In async the server has merged others' samples since a worker froze its mean."""
    rng = np.random.default_rng(1)
    first, second, third = (rng.normal(2.0, 1.0, (n, 2)) for n in (30, 5, 12))
    frozen = moments_of(first).mean
    known = merge(moments_of(first), deltas(second, frozen), frozen)
    known = merge(known, deltas(third, frozen), frozen)
    assert_same(known, moments_of(np.concatenate((first, second, third))))


def test_a_sample_counts_the_same_on_any_rank() -> None:
    """The mean of 1 and of 3 x 5 is 4, not 3: ranks are not averaged."""
    mean = np.zeros(1)
    total = deltas(np.full((1, 1), 1.0), mean) + deltas(np.full((3, 1), 5.0), mean)
    assert merge(Moments.empty(1), total, mean).mean.item() == 4.0


def test_no_samples_change_nothing() -> None:
    known = moments_of(np.arange(6.0).reshape(3, 2))
    assert merge(known, deltas(np.empty((0, 2)), known.mean), known.mean) is known


def test_large_offsets_lose_no_precision() -> None:
    """Standard deviation 1 about ten million, from float32 samples (spacing 1): sums of squares would drown it."""
    samples = (1e7 + np.random.default_rng(2).integers(-3, 4, (1000, 1))).astype(np.float32)
    known, frozen = Moments.empty(1), np.zeros(1)
    for part in np.split(samples, 10):
        known = merge(known, deltas(part, frozen), frozen)
        frozen = known.mean
    assert known.std(eps=0.0).item() == pytest.approx(samples.astype(np.float64).std(), rel=1e-3)


def test_constant_samples_have_no_negative_variance() -> None:
    samples = np.full((1000, 1), 0.1)
    known = merge(Moments.empty(1), deltas(samples, np.array([0.3])), np.array([0.3]))
    assert 0.0 <= known.m2.item() < 1e-9


def test_std_is_that_of_the_population_and_one_before_two_samples() -> None:
    assert Moments(4.0, np.zeros(1), np.array([36.0])).std().item() == pytest.approx(3.0)
    assert Moments(1.0, np.zeros(1), np.zeros(1)).std().item() == 1.0
    assert Moments.empty(2).std().tolist() == [1.0, 1.0]


def test_integer_samples_do_not_overflow() -> None:
    assert deltas(np.full((2, 1), 200, np.uint8), np.zeros(1)).tolist() == [2.0, 400.0, 80000.0]


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[B, 2\], got \(5, 3\)"):
        deltas(np.zeros((5, 3)), np.zeros(2))
    with pytest.raises(ValueError, match=r"\[5\], got \(3,\)"):
        merge(Moments.empty(2), np.zeros(3), np.zeros(2))


# -- normalising --------------------


def test_normalise_worked_by_hand() -> None:
    samples = np.array([[1.0, 10.0], [5.0, -90.0]])
    out = normalise(samples, np.array([1.0, 10.0], np.float32), np.array([0.5, 0.1], np.float32), clip=3.0)
    assert out.tolist() == [[0.0, 0.0], [2.0, -3.0]]
    assert out.dtype == np.float32


def test_normalise_lets_nan_through() -> None:
    """It is found and named where rollouts are checked; clipped away it would stay hidden."""
    out = normalise(np.array([[np.nan]]), np.zeros(1, np.float32), np.ones(1, np.float32), clip=3.0)
    assert np.isnan(out).all()


def filled(cfg: MomentsConfig, seed: int = 0) -> tuple[Normaliser, np.ndarray, np.ndarray]:
    """A normaliser that has merged samples, not frozen yet, and the samples."""
    rng = np.random.default_rng(seed)
    normaliser = Normaliser(3, cfg)
    observations, returns = rng.normal(4.0, 2.0, (200, 3)), rng.normal(1.0, 5.0, (200, 1))
    normaliser.merge(normaliser.deltas(observations, returns))
    return normaliser, observations, returns


def test_merged_samples_count_from_the_next_freeze_on() -> None:
    """Acting, advantages and gradients of one iteration see the same numbers."""
    normaliser, observations, returns = filled(MomentsConfig())
    np.testing.assert_array_equal(normaliser.inputs(observations[:5]), observations[:5].astype(np.float32))
    assert normaliser.reward_scale == 1.0
    normaliser.freeze()
    normalised = normaliser.inputs(observations)
    np.testing.assert_allclose(normalised.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(normalised.std(0), 1.0, rtol=1e-5)
    assert normaliser.reward_scale == pytest.approx(1 / returns.std())


def test_sums_are_about_the_frozen_means() -> None:
    normaliser, observations, returns = filled(MomentsConfig())
    normaliser.freeze()
    sums = normaliser.deltas(observations, returns)
    assert len(sums) == normaliser.num_sums == 1 + 2 * 3 + 1 + 2 * 1
    np.testing.assert_allclose(sums[1:4], 0.0, atol=1e-9)
    assert sums[0] == sums[7] == 200


def test_rollouts_that_share_frozen_means_are_merged_one_after_another() -> None:
    rng = np.random.default_rng(3)
    normaliser, seen = Normaliser(1, MomentsConfig()), []
    for _ in range(2):
        normaliser.freeze()
        for _ in range(3):
            samples = rng.normal(5.0, 2.0, (10, 1))
            seen.append(samples)
            normaliser.merge(normaliser.deltas(samples, -samples))
    assert_same(normaliser.observations, moments_of(np.concatenate(seen)))
    assert_same(normaliser.returns, moments_of(-np.concatenate(seen)))


def test_clip_bounds_what_the_network_sees() -> None:
    normaliser, _, _ = filled(MomentsConfig(clip=2.0))
    normaliser.freeze()
    assert np.abs(normaliser.inputs(np.full((1, 3), 1e6))).max() == 2.0


def test_each_kind_can_be_switched_off() -> None:
    normaliser, observations, returns = filled(MomentsConfig(observations=False))
    normaliser.freeze()
    np.testing.assert_array_equal(normaliser.inputs(observations), observations.astype(np.float32))
    assert normaliser.reward_scale == pytest.approx(1 / returns.std())
    normaliser, observations, _ = filled(MomentsConfig(returns=False))
    normaliser.freeze()
    assert normaliser.reward_scale == 1.0
    assert abs(normaliser.inputs(observations).mean()) < 1e-5


def test_pack_and_unpack_lose_nothing() -> None:
    first, _, _ = filled(MomentsConfig())
    second = Normaliser(3, MomentsConfig())
    packed = first.pack()
    second.unpack(packed)
    packed[:] = 0.0  # a message's memory is used again
    for a, b in ((first.observations, second.observations), (first.returns, second.returns)):
        assert a.count == b.count
        np.testing.assert_array_equal(a.mean, b.mean)
        np.testing.assert_array_equal(a.m2, b.m2)


def test_observations_of_any_shape_are_flattened() -> None:
    normaliser = Normaliser(1, MomentsConfig())
    assert normaliser.inputs(np.array([1.0, 2.0])).tolist() == [[1.0], [2.0]]  # Box(shape=())


def test_a_return_that_does_not_vary_scales_nothing() -> None:
    """Divided by the eps of a deviation of 0, a reward of 1 would become 10,000."""
    normaliser = Normaliser(1, MomentsConfig())
    for value in (0.0, 1.0, 100.0):
        normaliser.merge(normaliser.deltas(np.zeros((50, 1)), np.full((50, 1), value)))
        normaliser.freeze()
        if value == 0.0:
            assert normaliser.reward_scale == 1.0
    assert 0 < normaliser.reward_scale < 1


def test_a_large_offset_does_not_swallow_wide_observations() -> None:
    """The first batch is summed about 0 and loses its spread; those after it are summed about the mean."""
    normaliser = Normaliser(1, MomentsConfig())
    observations = 1e8 + np.array([[-1.0], [1.0]] * 50)
    for _ in range(20):
        normaliser.merge(normaliser.deltas(observations, np.zeros((100, 1))))
        normaliser.freeze()
    np.testing.assert_allclose(normaliser.inputs(observations[:2]), [[-1], [1]], rtol=0.1)
