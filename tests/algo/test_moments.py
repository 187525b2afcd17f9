"""Running moments: parts on many ranks are one whole, about a frozen mean; normalisation uses them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dppo.algo.moments import Moments, RewardScale, RunningMoments, deltas, merge, normalise


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


# -- running moments --------------------


def test_sums_are_about_the_frozen_mean() -> None:
    rng = np.random.default_rng(0)
    moments, samples = RunningMoments(3), rng.normal(4.0, 2.0, (200, 3))
    moments.merge(moments.deltas(samples))
    assert not moments.frozen_mean.any()
    moments.freeze()
    sums = moments.deltas(samples)
    assert len(sums) == moments.num_sums == 1 + 2 * 3
    np.testing.assert_allclose(sums[1:4], 0.0, atol=1e-9)
    assert sums[0] == 200


def test_rollouts_that_share_a_frozen_mean_are_merged_one_after_another() -> None:
    rng = np.random.default_rng(3)
    moments, seen = RunningMoments(1), []
    for _ in range(2):
        moments.freeze()
        for _ in range(3):
            samples = rng.normal(5.0, 2.0, (10, 1))
            seen.append(samples)
            moments.merge(moments.deltas(samples))
    assert_same(moments.now, moments_of(np.concatenate(seen)))


@pytest.mark.parametrize("kind", [lambda: RunningMoments(1), lambda: RewardScale(is_used=True)])
def test_pack_and_unpack_lose_nothing(kind: Callable[[], RunningMoments]) -> None:
    first, second = kind(), kind()
    first.merge(first.deltas(np.random.default_rng(0).normal(4.0, 2.0, (200, 1))))
    packed = first.pack()
    assert len(packed) == first.num_sums
    second.unpack(packed)
    packed[:] = 0.0  # a message's memory is used again
    assert first.now.count == second.now.count == 200
    np.testing.assert_array_equal(first.now.mean, second.now.mean)
    np.testing.assert_array_equal(first.now.m2, second.now.m2)
    second.unpack(packed)
    assert second.now.count == (0 if kind().deltas(np.ones((0, 1)))[0] else second.now.count)


# -- the scale of rewards --------------------


def scale_of(*parts: np.ndarray) -> RewardScale:
    """The scale after these returns, [B] each."""
    scale = RewardScale(is_used=True)
    for part in parts:
        scale.merge(scale.deltas(part[:, None]))
        scale.freeze()
    return scale


def test_merged_returns_count_from_the_next_freeze_on() -> None:
    scale, returns = RewardScale(is_used=True), np.random.default_rng(0).normal(1.0, 5.0, (200, 1))
    scale.merge(scale.deltas(returns))
    assert scale.scale == 1.0
    scale.freeze()
    assert scale.scale == pytest.approx(1 / returns.std())


def test_the_scale_can_be_switched_off() -> None:
    scale = RewardScale(is_used=False)
    scale.merge(scale.deltas(np.random.default_rng(0).normal(1.0, 5.0, (200, 1))))
    scale.freeze()
    assert scale.scale == 1.0


def test_the_first_returns_are_summed_about_zero() -> None:
    """However large: the numbers of ordinary runs depend on it."""
    assert RewardScale(is_used=True).deltas(np.array([[1e6], [3e6]])).tolist() == [2.0, 4e6, 1e13]


def test_a_return_that_does_not_vary_scales_nothing() -> None:
    """Divided by the eps of a deviation of 0, a reward of 1 would become 10,000."""
    assert scale_of(np.zeros(50)).scale == 1.0
    assert 0 < scale_of(np.zeros(50), np.ones(50), np.full(50, 100.0)).scale < 1


@pytest.mark.parametrize("c", [0.0, 1e-8, 1e-5, 1.0, 3.7, 1e5])
def test_a_constant_of_any_size_is_not_blown_up(c: float) -> None:
    """Nor what rounding makes of it."""
    for times in range(1, 6):
        assert scale_of(*[np.full(999, np.float32(c), np.float64)] * times).scale == 1.0


@pytest.mark.parametrize("unit", [1e-12, 1e-8, 1e-5, 1e-4, 1e-3, 1.0, 1e5, 1e12])
def test_rewards_of_any_unit_are_scaled_to_the_same(unit: float) -> None:
    """That their deviation is below some eps does not matter."""
    returns = unit * np.random.default_rng(0).normal(1.0, 2.0, 500)
    assert scale_of(returns).scale == pytest.approx(1 / returns.std(), rel=1e-4)


def test_the_scale_of_ordinary_rewards_is_baselines_to_the_bit() -> None:
    """1 / sqrt(variance + 1e-8)."""
    scale = scale_of(np.random.default_rng(0).normal(1.0, 5.0, 200))
    assert scale.scale == float(1.0 / scale.now.std()[0])


@pytest.mark.parametrize("noise", [1e-11, 1e-14, 1e-200])
def test_a_reward_after_a_time_of_noise_is_scaled_to_what_float32_can_square(noise: float) -> None:
    assert np.isfinite(np.square(np.float32(scale_of(noise * np.tile([-1.0, 1.0], 250)).scale)))


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
    moments = RunningMoments(2)
    for seen in (200, 400, 600, 800):
        moments.freeze()
        moments.merge(moments.deltas(samples[seen - 200 : seen]))
        expected = exact(samples[:seen])
        assert moments.now.count == seen
        tolerance = 1e-12 if seen == 200 else 1e-9 + 20 * rounding
        np.testing.assert_allclose(moments.now.m2, expected.m2, rtol=tolerance)
        np.testing.assert_allclose(moments.now.mean - offset, expected.mean - offset, atol=2 * rounding)


@pytest.mark.parametrize("num_ranks", [1, 2, 5])
def test_ranks_that_start_from_one_observation_are_one_rank_at_any_offset(num_ranks: int) -> None:
    """The ranks' own first samples differ; one of the observations is small."""
    rng = np.random.default_rng(1)
    parts = [rng.normal([1e9 + 1000.0 * rank, 2.0], [1.0, 0.5], (50, 2)) for rank in range(num_ranks)]
    ranks = [RunningMoments(2) for _ in parts]
    for rank in ranks:
        rank.start_from(parts[0][0])
    total = np.sum([r.deltas(part) for r, part in zip(ranks, parts, strict=True)], axis=0)
    for rank in ranks:
        rank.merge(total)
        np.testing.assert_allclose(rank.now.m2, exact(np.concatenate(parts)).m2, rtol=1e-9)


def test_in_async_each_worker_starts_from_its_own() -> None:
    """The server merges what comes, about the means that come with it."""
    rng = np.random.default_rng(2)
    server, seen = RunningMoments(1), []
    for offset in (1e9, 1e9 + 5.0, 1e9 - 7.0):
        worker = RunningMoments(1)
        samples = rng.normal(offset, 1.0, (40, 1))
        worker.start_from(samples[0])
        server.merge(worker.deltas(samples), worker.frozen_mean)
        seen.append(samples)
    np.testing.assert_allclose(server.now.m2, exact(np.concatenate(seen)).m2, rtol=1e-6)


def test_a_mean_far_from_where_the_environment_has_moved_loses_nothing() -> None:
    """The spread of all samples is dominated by the move itself."""
    rng = np.random.default_rng(3)
    before, after = rng.normal(0.0, 1.0, (5000, 1)), rng.normal(1e9, 1.0, (100, 1))
    moments = RunningMoments(1)
    for samples in (before, after, after + 0.5):
        moments.freeze()
        moments.merge(moments.deltas(samples))
    assert_same(moments.now, moments_of(np.concatenate((before, after, after + 0.5))))


def test_ordinary_samples_and_those_that_are_not_finite_start_from_zero() -> None:
    """The numbers of ordinary runs are as if nothing had been said."""
    moments = RunningMoments(5)
    moments.start_from(np.array([3.0, -999.0, np.nan, np.inf, 1001.0]))
    assert moments.frozen_mean.tolist() == [0.0, 0.0, 0.0, 0.0, 1001.0]
    assert moments.now.count == 0


def test_what_was_started_from_travels_with_the_moments() -> None:
    first, second = RunningMoments(2), RunningMoments(2)
    first.start_from(np.array([1e9, 0.0]))
    second.unpack(first.pack())
    second.freeze()
    assert second.frozen_mean.tolist() == [1e9, 0.0]


def test_a_start_of_ones_own_stays_until_there_are_samples() -> None:
    """In async a worker may get the server's state, which has none yet, between its start and its first rollout."""
    worker, server = RunningMoments(2), RunningMoments(2)
    worker.start_from(np.array([1e9, 0.0]))
    worker.unpack(server.pack())
    worker.freeze()
    assert worker.frozen_mean.tolist() == [1e9, 0.0]
    mean = np.array([5e8, 0.0])
    server.merge(deltas(np.array([[5e8, 1.0], [5e8, 3.0]]), mean), mean)
    worker.unpack(server.pack())
    worker.freeze()
    assert worker.frozen_mean.tolist() == [5e8, 2.0]


def test_the_first_moment_that_is_not_finite_is_found() -> None:
    moments = RunningMoments(3)
    assert moments.first_not_finite() is None
    with np.errstate(over="ignore", invalid="ignore"):
        moments.merge(moments.deltas(np.array([[0.0, 0.0, 1e200], [0.0, 0.0, -1e200]])))
    assert moments.first_not_finite() == 2
