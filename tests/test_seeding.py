"""Random streams: the same under any layout, never shared, and nothing of them has to be saved."""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from dppo.seeding import ActionNoise, EpisodeSeeds, Purpose, draw_noise, draw_rows, generator, seed_global_generators

SEED = 42


def test_a_stream_is_a_function_of_its_key() -> None:
    draws = [generator(SEED, Purpose.SHUFFLE, 3, 5).random(4).tolist() for _ in range(2)]
    assert draws[0] == draws[1]


def test_no_two_streams_share_a_draw() -> None:
    """Seeds, purposes, environments, blocks; keys that could be read together, such as (1, 23) and (12, 3), too."""
    keys = [(), (0,), (0, 0), (1,), (1, 23), (12, 3), (123,), (2**31, 0), (0, 2**31)]
    first_draws = [
        int(generator(seed, purpose, *key).integers(2**63))
        for seed, purpose, key in itertools.product((0, 1, 2**40), Purpose, keys)
    ]
    assert len(set(first_draws)) == len(first_draws)


# -- seeds of episodes --------------------


@pytest.mark.parametrize("num_workers", [1, 2, 4, 8])
def test_an_environments_episodes_do_not_depend_on_the_layout(num_workers: int) -> None:
    """Eight environments, dealt out over workers; the 130 episodes go over two block edges."""
    each = 8 // num_workers
    seeds = []
    for worker in range(num_workers):
        mine = EpisodeSeeds(SEED, worker * each, each)
        seeds += [[mine.next(i) for _ in range(130)] for i in range(each)]
    alone = EpisodeSeeds(SEED, 0, 8)
    assert seeds == [[alone.of(i, e) for e in range(130)] for i in range(8)]


def test_seeds_of_all_episodes_of_all_environments_differ() -> None:
    seeds = EpisodeSeeds(SEED, 0, 20)
    drawn = [seeds.of(i, e) for i in range(20) for e in range(200)]
    assert len(set(drawn)) == len(drawn)
    assert all(0 <= s < 2**31 for s in drawn)


def test_next_counts_and_current_says_where_one_is() -> None:
    seeds = EpisodeSeeds(SEED, 5, 2)
    first = [seeds.next(0), seeds.next(1), seeds.next(0)]
    assert seeds.episodes.tolist() == [1, 0]
    assert seeds.current() == [first[2], first[1]]


def test_after_resume_the_count_is_all_that_is_needed() -> None:
    before = EpisodeSeeds(SEED, 5, 1)
    for _ in range(100):
        before.next(0)
    after = EpisodeSeeds(SEED, 5, 1)
    after.episodes[:] = before.episodes
    assert [after.next(0) for _ in range(5)] == [before.next(0) for _ in range(5)]


def test_evaluation_sees_other_episodes_than_training() -> None:
    training, evaluation = EpisodeSeeds(SEED, 0, 4), EpisodeSeeds(SEED, 0, 4, Purpose.EVALUATION)
    drawn = [{seeds.of(i, e) for i in range(4) for e in range(50)} for seeds in (training, evaluation)]
    assert not drawn[0] & drawn[1]


# -- noise of actions --------------------


@pytest.mark.parametrize("kind", ["uniform", "normal", "gumbel"])
@pytest.mark.parametrize("num_workers", [1, 3, 6])
def test_an_environments_noise_does_not_depend_on_the_layout(kind: str, num_workers: int) -> None:
    each = 6 // num_workers
    parts = [ActionNoise(SEED, worker * each, each, ((kind, 2),)).rows(0, 50) for worker in range(num_workers)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), ActionNoise(SEED, 0, 6, ((kind, 2),)).rows(0, 50))


def test_a_row_is_the_same_however_it_is_asked_for() -> None:
    """Over block edges, in pieces, and by a fresh object that begins in the middle, as after a resume."""
    edge = ActionNoise.BLOCK
    noise = ActionNoise(SEED, 3, 2, (("uniform", 1),))
    whole = noise.rows(edge - 10, 2 * edge + 20)
    assert whole.shape == (2 * edge + 20, 2, 1)
    pieces = [noise.rows(first, 7) for first in range(edge - 10, edge + 11, 7)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole[:21])
    fresh = ActionNoise(SEED, 3, 2, (("uniform", 1),))
    np.testing.assert_array_equal(fresh.rows(2 * edge + 5, 5), whole[edge + 15 : edge + 20])
    assert noise.rows(7, 0).shape == (0, 2, 1)


def test_long_rows_come_in_blocks_that_fit_memory() -> None:
    size = 10_000  # 40 kB a row of an environment
    noise = ActionNoise(SEED, 0, 2, (("uniform", size),))
    whole = noise.rows(0, 20)
    assert len(np.unique(whole[:, :, 0])) == 40
    np.testing.assert_array_equal(ActionNoise(SEED, 1, 1, (("uniform", size),)).rows(13, 1)[0, 0], whole[13, 1])


MIXED = (("gumbel", 3), ("normal", 2), ("gumbel", 1), ("uniform", 2))
"""As a Dict of several kinds of actions has it."""


@pytest.mark.parametrize("num_workers", [1, 3, 6])
def test_noise_of_several_kinds_does_not_depend_on_the_layout_either(num_workers: int) -> None:
    each, edge = 6 // num_workers, ActionNoise.BLOCK
    parts = [ActionNoise(SEED, worker * each, each, MIXED).rows(edge - 20, 50) for worker in range(num_workers)]
    whole = ActionNoise(SEED, 0, 6, MIXED).rows(0, edge + 30)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole[edge - 20 :])
    assert whole.shape == (edge + 30, 6, 8)


def test_kinds_of_noise_lie_side_by_side_each_with_its_own_distribution() -> None:
    noise = ActionNoise(SEED, 0, 8, MIXED).rows(0, 1000).reshape(8000, 8)
    gumbel, normal, uniform = (0.5772, np.pi / np.sqrt(6)), (0.0, 1.0), (0.5, np.sqrt(1 / 12))
    for column, moments in zip(noise.T, [gumbel] * 3 + [normal] * 2 + [gumbel] + [uniform] * 2, strict=True):
        assert (column.mean(), column.std()) == pytest.approx(moments, abs=0.06)
    assert np.abs(np.corrcoef(noise.T) - np.eye(8)).max() < 0.05
    assert len(np.unique(noise)) > 0.999 * noise.size


@pytest.mark.parametrize("kind", ["uniform", "normal", "gumbel"])
def test_noise_of_one_kind_is_the_streams_next_block_as_it_is(kind: str) -> None:
    """The numbers of runs that were begun before there were several kinds."""
    noise = ActionNoise(SEED, 5, 2, ((kind, 3),)).rows(ActionNoise.BLOCK, 10)
    for i in range(2):
        block = draw_noise(generator(SEED, Purpose.ACTIONS, 5 + i, 1), kind, (ActionNoise.BLOCK, 3))
        np.testing.assert_array_equal(noise[:, i], block[:10])


def test_rows_of_several_kinds_are_drawn_one_kind_after_the_other() -> None:
    rng = generator(SEED, Purpose.EVALUATION)
    expected = [draw_noise(rng, kind, (4, size)) for kind, size in MIXED]
    drawn = draw_rows(generator(SEED, Purpose.EVALUATION), MIXED, 4)
    np.testing.assert_array_equal(drawn, np.concatenate(expected, axis=1))
    assert drawn.dtype == np.float32


def test_rows_environments_and_numbers_are_all_different() -> None:
    noise = ActionNoise(SEED, 0, 4, (("normal", 3),)).rows(ActionNoise.BLOCK - 100, 200)
    assert len(np.unique(noise)) > 0.999 * noise.size  # float32 has few enough values for a chance meeting


def test_noise_has_the_distribution_that_its_kind_names() -> None:
    uniform = ActionNoise(SEED, 0, 8, (("uniform", 2),)).rows(0, 1000)
    assert uniform.dtype == np.float32
    assert uniform.min() >= 0.0 and uniform.max() < 1.0
    np.testing.assert_allclose(np.histogram(uniform, 10, (0, 1))[0] / uniform.size, 0.1, atol=0.01)
    normal = ActionNoise(SEED, 0, 8, (("normal", 2),)).rows(0, 1000)
    assert (normal.mean(), normal.std()) == pytest.approx((0.0, 1.0), abs=0.03)
    assert np.mean(np.abs(normal) < 1.96) == pytest.approx(0.95, abs=0.01)
    gumbel = ActionNoise(SEED, 0, 8, (("gumbel", 2),)).rows(0, 1000)
    assert (gumbel.mean(), gumbel.std()) == pytest.approx((0.5772, np.pi / np.sqrt(6)), abs=0.03)
    assert np.mean(gumbel < 0) == pytest.approx(np.exp(-1), abs=0.01)


@pytest.mark.parametrize(
    ("kind", "mean", "std"),
    [("normal", 0.0, 1.0), ("uniform", 0.5, np.sqrt(1 / 12)), ("gumbel", 0.5772, np.pi / np.sqrt(6))],
)
def test_drawn_noise_is_finite_float32_with_the_moments_of_its_kind(kind: str, mean: float, std: float) -> None:
    noise = draw_noise(generator(SEED, Purpose.EVALUATION), kind, (1000, 500))
    assert noise.shape == (1000, 500) and noise.dtype == np.float32
    assert np.isfinite(noise).all()
    assert (noise.mean(), noise.std()) == pytest.approx((mean, std), abs=0.006)


def test_gumbel_noise_is_minus_the_logarithm_of_an_exponential_draw() -> None:
    """P(G <= g) = exp(-exp(-g)), of the stream's own exponential numbers."""
    noise = draw_noise(generator(SEED, Purpose.ACTIONS), "gumbel", (50, 4))
    exponential = generator(SEED, Purpose.ACTIONS).standard_exponential((50, 4), np.float32)
    np.testing.assert_allclose(noise, -np.log(exponential), rtol=1e-6)


@pytest.mark.filterwarnings("error")
def test_gumbel_noise_is_finite_where_the_exponential_draw_rounds_to_zero() -> None:
    """-log of half the generator's step, 2^-24, is 24 log 2: about what the true tail has there."""

    class Zeros:
        standard_exponential = staticmethod(np.zeros)

    assert draw_noise(Zeros(), "gumbel", (2,)) == pytest.approx([24 * np.log(2)] * 2)  # type: ignore[arg-type]


def test_another_kind_of_noise_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="cauchy"):
        draw_noise(generator(SEED, Purpose.ACTIONS), "cauchy", (1,))


def test_two_environments_are_not_correlated() -> None:
    noise = ActionNoise(SEED, 0, 2, (("normal", 1),)).rows(0, 5000)[:, :, 0]
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.05


# -- generators that are not ours --------------------


@pytest.fixture
def global_generators() -> Iterator[None]:
    """Puts this process's own back."""
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    yield
    random.setstate(kept[0])
    np.random.set_state(kept[1])  # noqa: NPY002
    torch.set_rng_state(kept[2])


def draws() -> tuple[float, ...]:
    return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002


@pytest.mark.usefixtures("global_generators")
def test_global_generators_repeat_and_differ_by_seed_and_key() -> None:
    keys = [(0,), (1,), (0, 0), (0, 1), (1, 0), (2**40, 3), (2**63 - 1,), (0, 2**40)]
    drawn = []
    for key in keys:
        seed_global_generators(*key)
        drawn.append(draws())
        draws()
        seed_global_generators(*key)
        assert draws() == drawn[-1]
    assert all(len(set(one)) == len(keys) for one in zip(*drawn, strict=True))


@pytest.mark.usefixtures("global_generators")
def test_torch_is_not_imported_to_be_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    seed_global_generators(SEED)
    assert "torch" not in sys.modules
