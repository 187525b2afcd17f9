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
    assert np.sqrt(known.m2 / known.count).item() == pytest.approx(samples.astype(np.float64).std(), rel=1e-3)


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


@pytest.mark.parametrize("c", [0.0, 1e-8, 1e-5, 1.0, 3.7, 1e5])
def test_a_constant_of_any_size_is_not_blown_up(c: float) -> None:
    """Nor what rounding makes of it."""
    normaliser = Normaliser(1, MomentsConfig())
    for _ in range(5):
        normaliser.merge(normaliser.deltas(np.zeros((999, 1)), np.full((999, 1), np.float32(c), np.float64)))
        normaliser.freeze()
        assert normaliser.reward_scale == 1.0


@pytest.mark.parametrize("unit", [1e-12, 1e-8, 1e-5, 1e-4, 1e-3, 1.0, 1e5, 1e12])
def test_rewards_of_any_unit_are_scaled_to_the_same(unit: float) -> None:
    """That their deviation is below some eps does not matter."""
    returns = unit * np.random.default_rng(0).normal(1.0, 2.0, (500, 1))
    normaliser = Normaliser(1, MomentsConfig())
    normaliser.merge(normaliser.deltas(np.zeros((500, 1)), returns))
    normaliser.freeze()
    assert normaliser.reward_scale == pytest.approx(1 / returns.std(), rel=1e-4)


def test_the_scale_of_ordinary_rewards_is_baselines_to_the_bit() -> None:
    """1 / sqrt(variance + 1e-8)."""
    normaliser, _, _ = filled(MomentsConfig())
    normaliser.freeze()
    assert normaliser.reward_scale == float(1.0 / normaliser.returns.std()[0])


def test_a_reward_after_a_time_of_noise_is_scaled_to_what_float32_can_square() -> None:
    normaliser = Normaliser(1, MomentsConfig())
    for noise in (1e-11, 1e-14, 1e-200):
        normaliser.returns = Moments.empty(1)
        normaliser.merge(normaliser.deltas(np.zeros((500, 1)), noise * np.tile([[-1.0], [1.0]], (250, 1))))
        normaliser.freeze()
        assert np.isfinite(np.square(np.float32(normaliser.reward_scale)))


# -- large offsets --------------------


def exact(samples: np.ndarray) -> Moments:
    """All at once, about the first sample: exact for what is one number apart."""
    moments = moments_of(samples - samples[0])
    return Moments(moments.count, moments.mean + samples[0], moments.m2)


OFFSETS = [-3e4, 1e6, 1e8, 1e9, 1e12]


@pytest.mark.parametrize("offset", OFFSETS)
def test_the_first_merge_keeps_the_spread_of_samples_with_a_large_offset(offset: float) -> None:
    """And every later one: what is left is the rounding of the mean itself."""
    rng = np.random.default_rng(0)
    samples = offset + np.round(rng.normal(0.0, 1.0, (800, 2)) * 8) / 8 * [1.0, 30.0]
    rounding = np.finfo(np.float64).eps * abs(offset)
    normaliser = Normaliser(2, MomentsConfig())
    for seen in (200, 400, 600, 800):
        normaliser.freeze()
        normaliser.merge(normaliser.deltas(samples[seen - 200 : seen], np.zeros((200, 1))))
        expected = exact(samples[:seen])
        assert normaliser.observations.count == seen
        tolerance = 1e-12 if seen == 200 else 1e-9 + 20 * rounding
        np.testing.assert_allclose(normaliser.observations.m2, expected.m2, rtol=tolerance)
        np.testing.assert_allclose(normaliser.observations.mean - offset, expected.mean - offset, atol=2 * rounding)
    normaliser.freeze()
    normalised = normaliser.inputs(samples)
    np.testing.assert_allclose(normalised.std(0), 1.0, rtol=5e-3)
    np.testing.assert_allclose(normalised.mean(0), 0.0, atol=1e-3)


@pytest.mark.parametrize("num_ranks", [1, 2, 5])
def test_ranks_that_start_from_one_observation_are_one_rank_at_any_offset(num_ranks: int) -> None:
    """The ranks' own first samples differ; one of the observations is small."""
    rng = np.random.default_rng(1)
    parts = [rng.normal([1e9 + 1000.0 * rank, 2.0], [1.0, 0.5], (50, 2)) for rank in range(num_ranks)]
    ranks = [Normaliser(2, MomentsConfig()) for _ in parts]
    for rank in ranks:
        rank.start_from(parts[0][0])
    total = np.sum([r.deltas(part, np.zeros((50, 1))) for r, part in zip(ranks, parts, strict=True)], axis=0)
    for rank in ranks:
        rank.merge(total)
        np.testing.assert_allclose(rank.observations.m2, exact(np.concatenate(parts)).m2, rtol=1e-9)


def test_in_async_each_worker_starts_from_its_own() -> None:
    """The server merges what comes, about the means that come with it."""
    rng = np.random.default_rng(2)
    server, seen = Normaliser(1, MomentsConfig()), []
    for offset in (1e9, 1e9 + 5.0, 1e9 - 7.0):
        worker = Normaliser(1, MomentsConfig())
        samples = rng.normal(offset, 1.0, (40, 1))
        worker.start_from(samples[0])
        server.merge(worker.deltas(samples, np.zeros((40, 1))), worker.frozen_mean, worker.frozen_return_mean)
        seen.append(samples)
    np.testing.assert_allclose(server.observations.m2, exact(np.concatenate(seen)).m2, rtol=1e-6)


def test_a_mean_far_from_where_the_environment_has_moved_loses_nothing() -> None:
    """The spread of all samples is dominated by the move itself."""
    rng = np.random.default_rng(3)
    before, after = rng.normal(0.0, 1.0, (5000, 1)), rng.normal(1e9, 1.0, (100, 1))
    normaliser = Normaliser(1, MomentsConfig())
    for samples in (before, after, after + 0.5):
        normaliser.freeze()
        normaliser.merge(normaliser.deltas(samples, np.zeros((len(samples), 1))))
    assert_same(normaliser.observations, moments_of(np.concatenate((before, after, after + 0.5))))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64])
def test_what_was_normalised_is_the_difference_from_the_whole_mean(dtype: type) -> None:
    """In float32 the mean itself would be rounded to a multiple of 8."""
    samples = (1e8 + 8 * np.random.default_rng(4).integers(-2, 3, (300, 1))).astype(dtype)
    normaliser = Normaliser(1, MomentsConfig())
    normaliser.start_from(samples[0])
    np.testing.assert_array_equal(normaliser.inputs(samples), np.clip(samples - np.float64(samples[0]), -10, 10))
    normaliser.merge(normaliser.deltas(samples, np.zeros((300, 1))))
    normaliser.freeze()
    wide = samples.astype(np.float64)
    np.testing.assert_allclose(normaliser.inputs(samples), (wide - wide.mean()) / wide.std(), atol=1e-6)


def test_ordinary_observations_and_those_that_are_not_finite_start_from_zero() -> None:
    """The numbers of ordinary runs are as if nothing had been said."""
    normaliser = Normaliser(5, MomentsConfig())
    normaliser.start_from(np.array([3.0, -999.0, np.nan, np.inf, 1001.0]))
    assert normaliser.frozen_mean.tolist() == [0.0, 0.0, 0.0, 0.0, 1001.0]
    assert normaliser.observations.count == 0


def test_what_was_started_from_travels_with_the_moments() -> None:
    first, second = Normaliser(2, MomentsConfig()), Normaliser(2, MomentsConfig())
    first.start_from(np.array([1e9, 0.0]))
    second.unpack(first.pack())
    second.freeze()
    assert second.frozen_mean.tolist() == [1e9, 0.0]


def test_a_start_of_ones_own_stays_until_there_are_samples() -> None:
    """In async a worker may get the server's state, which has none yet, between its start and its first rollout."""
    worker, server = Normaliser(2, MomentsConfig()), Normaliser(2, MomentsConfig())
    worker.start_from(np.array([1e9, 0.0]))
    worker.unpack(server.pack())
    worker.freeze()
    assert worker.frozen_mean.tolist() == [1e9, 0.0]
    mean = np.array([5e8, 0.0])
    server.merge(np.append(deltas(np.array([[5e8, 1.0], [5e8, 3.0]]), mean), np.zeros(3)), mean)
    worker.unpack(server.pack())
    worker.freeze()
    assert worker.frozen_mean.tolist() == [5e8, 2.0]


def test_moments_that_are_not_finite_are_named() -> None:
    normaliser = Normaliser(3, MomentsConfig())
    assert normaliser.first_not_finite() is None
    with np.errstate(over="ignore", invalid="ignore"):
        normaliser.merge(normaliser.deltas(np.array([[0.0, 0.0, 1e200], [0.0, 0.0, -1e200]]), np.zeros((2, 1))))
    assert "observation 2" in str(normaliser.first_not_finite())
