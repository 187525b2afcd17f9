"""The moments of a run: both kinds travel, freeze and merge together."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from dppo.algo.moments import RewardScale
from dppo.config import MomentsConfig
from dppo.models.inputs import Inputs
from dppo.training.moments import RunMoments


def make() -> RunMoments:
    return RunMoments(Inputs(spaces.Box(-1.0, 1.0, (2,)), MomentsConfig()), RewardScale(is_used=True))


def sums(moments: RunMoments, seed: int = 0) -> np.ndarray:
    """Of 50 observations and returns."""
    rng = np.random.default_rng(seed)
    return moments.deltas(rng.normal(2.0, 3.0, (50, 2)), rng.normal(1.0, 5.0, (50, 1)))


def test_merged_samples_count_from_the_next_freeze_on() -> None:
    moments = make()
    assert moments.are_empty and len(sums(moments)) == moments.num_sums == (1 + 2 * 2) + (1 + 2 * 1)
    moments.merge(sums(moments))
    assert not moments.are_empty
    assert [mean.tolist() for mean in moments.frozen_means] == [[0.0, 0.0], [0.0]]
    moments.freeze()
    assert np.abs(np.concatenate(moments.frozen_means)).min() > 0.1 and moments.rewards.scale < 1.0


def test_sums_may_be_about_the_means_that_come_with_them() -> None:
    """In async, a worker's sums are about the means that it had frozen."""
    worker, server = make(), make()
    for moments in (worker, server):
        moments.merge(sums(moments))
    worker.freeze()
    again = sums(worker, seed=1)
    worker.merge(again)
    server.merge(again, worker.frozen_means)
    np.testing.assert_allclose(server.pack(), worker.pack(), rtol=1e-12)


def test_pack_and_unpack_lose_nothing() -> None:
    first, second = make(), make()
    first.merge(sums(first))
    second.unpack(first.pack())
    np.testing.assert_array_equal(first.pack(), second.pack())
    assert len(first.pack()) == first.num_sums and not second.frozen_means[0].any()


def test_the_first_problem_is_named() -> None:
    moments = make()
    assert moments.problem() is None
    moments.inputs.now.m2[1] = np.inf
    assert "moments of observation 1" in str(moments.problem())
    moments.rewards.now.m2[0] = np.nan
    assert "discounted returns" in str(moments.problem())
