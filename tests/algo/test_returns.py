"""GAE, n-step returns and V-trace: by hand, against the papers' sums, and at the edges."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from dppo.algo.returns import gae, sums_ahead, sums_behind, vtrace

GAMMA, LAM = 0.97, 0.9


class Rows(NamedTuple):
    """A rollout of T rows and N environments; what the functions take, in their order."""

    rewards: np.ndarray
    values: np.ndarray
    next_values: np.ndarray
    dones: np.ndarray


def column(*numbers: float) -> np.ndarray:
    """[T, 1] float32."""
    return np.array(numbers, np.float32)[:, None]


def random_rows(rng: np.random.Generator, t: int, n: int) -> Rows:
    """Rewards and values at random; a quarter of the rows end an episode, half of them by a time limit."""
    rewards, values, finals = (rng.standard_normal((t, n)).astype(np.float32) for _ in range(3))
    terminations, truncations = rng.random((2, t, n)) < 0.125
    dones = terminations | truncations
    next_values = finals.copy()  # at an end, and after the last row, a value that no row of the rollout has
    next_values[:-1][~dones[:-1]] = values[1:][~dones[:-1]]
    next_values[terminations] = 0.0
    return Rows(rewards, values, next_values, dones)


def last_row(rows: Rows, t: int, i: int) -> int:
    """The last row that belongs to the same episode as row t, or the rollout's last."""
    while not rows.dones[t, i] and t < len(rows.rewards) - 1:
        t += 1
    return t


def td_error(rows: Rows, t: int, i: int) -> float:
    """delta_t^V of both papers."""
    return float(rows.rewards[t, i]) + GAMMA * float(rows.next_values[t, i]) - float(rows.values[t, i])


@pytest.fixture(params=[(1, 1), (1, 5), (7, 1), (23, 4)], ids=lambda s: f"T={s[0]},N={s[1]}")
def rows(request: pytest.FixtureRequest) -> Rows:
    """A random rollout: T = 1, one environment, and an ordinary shape."""
    return random_rows(np.random.default_rng(request.param), *request.param)


# -- sums along episodes --------------------


@pytest.mark.parametrize("t", [0, 1, 2, 3, 4, 5, 8, 31, 64, 100])
def test_sums_ahead_are_those_of_a_loop_over_rows(t: int) -> None:
    rng = np.random.default_rng(t)
    terms, decay = rng.standard_normal((t, 3)), rng.random((t, 3))
    decay[rng.random((t, 3)) < 0.2] = 0.0
    expected, after = np.empty((t, 3)), np.zeros(3)
    for row in reversed(range(t)):
        after = expected[row] = terms[row] + decay[row] * after
    np.testing.assert_allclose(sums_ahead(terms, decay), expected, rtol=1e-12)


def test_sums_behind_worked_by_hand() -> None:
    terms, dones = column(1, 2, 3, 4, 5), np.array([[False], [True], [False], [False], [True]])
    sums = sums_behind(terms, dones, 0.5, np.array([8.0]))
    np.testing.assert_array_equal(sums[:, 0], [1 + 4, 2 + 2.5, 3, 4 + 1.5, 5 + 2.75])


def test_sums_behind_in_two_parts_are_those_of_the_whole(rows: Rows) -> None:
    before = np.arange(rows.rewards.shape[1], dtype=float)
    whole = sums_behind(rows.rewards, rows.dones, 0.9, before)
    middle = len(whole) // 2
    first = sums_behind(rows.rewards[:middle], rows.dones[:middle], 0.9, before)
    if middle:
        before = first[-1] * ~rows.dones[middle - 1]
    second = sums_behind(rows.rewards[middle:], rows.dones[middle:], 0.9, before)
    np.testing.assert_allclose(np.concatenate((first, second)), whole, rtol=1e-12)


# -- by hand --------------------


def test_gae_worked_by_hand() -> None:
    """delta = (0.5, 1.5, 3); A_2 = 3, A_1 = 1.5 + 3/4, A_0 = 0.5 + 2.25/4."""
    rewards, values, next_values = column(1, 2, 3), column(1, 1, 1), column(1, 1, 2)
    advantages, returns = gae(rewards, values, next_values, np.zeros((3, 1), bool), gamma=0.5, lam=0.5)
    assert advantages[:, 0].tolist() == [1.0625, 2.25, 3.0]
    assert returns[:, 0].tolist() == [2.0625, 3.25, 4.0]


def test_n_step_returns_worked_by_hand_are_gae_with_lambda_one() -> None:
    """R_2 = 3 + 2/2, R_1 = 2 + 4/2, R_0 = 1 + 4/2."""
    rewards, values, next_values = column(1, 2, 3), column(1, 1, 1), column(1, 1, 2)
    advantages, returns = gae(rewards, values, next_values, np.zeros((3, 1), bool), gamma=0.5, lam=1.0)
    assert returns[:, 0].tolist() == [3.0, 4.0, 4.0]
    assert advantages[:, 0].tolist() == [2.0, 3.0, 3.0]


def test_vtrace_worked_by_hand() -> None:
    """Ratios 2 and 1/2 are clipped to rho = c = (1, 1/2); gamma 1/2, values 1, bootstrap 2.

    delta_1 = 1/2 (2 + 1 - 1) = 1, v_1 = 2; delta_0 = 1 + 1/2 - 1 = 1/2, v_0 = 1 + 1/2 + 1/2 (2 - 1) = 2.
    A_1 = 1/2 (2 + 1 - 1) = 1, A_0 = 1 + 2/2 - 1 = 1.
    """
    log_ratios = np.log(column(2, 0.5))
    advantages, targets = vtrace(
        column(1, 2), column(1, 1), column(1, 2), np.zeros((2, 1), bool), log_ratios, gamma=0.5
    )
    np.testing.assert_allclose(targets[:, 0], [2.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(advantages[:, 0], [1.0, 1.0], rtol=1e-6)


# -- against the papers' sums --------------------


def test_gae_is_the_discounted_sum_of_td_errors(rows: Rows) -> None:
    """Schulman et al. 2016, eq. 16: A_t = sum over l of (gamma lam)^l delta_{t+l}."""
    advantages, returns = gae(*rows, GAMMA, LAM)
    for t, i in np.ndindex(rows.rewards.shape):
        expected = sum((GAMMA * LAM) ** (k - t) * td_error(rows, k, i) for k in range(t, last_row(rows, t, i) + 1))
        assert advantages[t, i] == pytest.approx(expected, abs=1e-5)
        assert returns[t, i] == pytest.approx(expected + rows.values[t, i], abs=1e-5)


def test_with_lambda_one_returns_are_discounted_rewards_and_a_bootstrap(rows: Rows) -> None:
    """Mnih et al. 2016, section 4: R_t = sum of gamma^i r_{t+i} + gamma^k V(s_{t+k})."""
    advantages, returns = gae(*rows, GAMMA, 1.0)
    for t, i in np.ndindex(rows.rewards.shape):
        last = last_row(rows, t, i)
        expected = sum(GAMMA ** (k - t) * rows.rewards[k, i] for k in range(t, last + 1))
        expected += GAMMA ** (last + 1 - t) * rows.next_values[last, i]
        assert returns[t, i] == pytest.approx(expected, abs=1e-5)
        assert advantages[t, i] == pytest.approx(expected - rows.values[t, i], abs=1e-5)


@pytest.mark.parametrize(("rho_clip", "c_clip", "lam"), [(1.0, 1.0, 1.0), (2.0, 0.7, 1.0), (1.0, 1.0, 0.8)])
def test_vtrace_is_the_double_sum_of_the_paper(rows: Rows, rho_clip: float, c_clip: float, lam: float) -> None:
    """Espeholt et al. 2018, eq. 1:

        v_s = V(x_s) + sum over t = s..s+n-1 of gamma^(t-s) (product over i = s..t-1 of c_i) delta_t V

    with delta_t V = rho_t (r_t + gamma V(x_{t+1}) - V(x_t)); the policy gradient's advantage, section 4.2, is
    rho_s (r_s + gamma v_{s+1} - V(x_s)).
    """
    log_ratios = np.random.default_rng(5).normal(0.0, 0.8, rows.rewards.shape).astype(np.float32)
    advantages, targets = vtrace(*rows, log_ratios, GAMMA, lam, rho_clip, c_clip)
    ratio = np.exp(log_ratios.astype(np.float64))
    rho, c = np.minimum(rho_clip, ratio), lam * np.minimum(c_clip, ratio)
    for s, i in np.ndindex(rows.rewards.shape):
        v = [0.0, 0.0]  # of row s and of the row after it
        for k in (0, 1):
            if s + k > last_row(rows, s, i):
                v[k] = float(rows.next_values[s, i])
                continue
            v[k] = float(rows.values[s + k, i])
            for t in range(s + k, last_row(rows, s, i) + 1):
                traces = float(np.prod(c[s + k : t, i]))
                v[k] += GAMMA ** (t - s - k) * traces * rho[t, i] * td_error(rows, t, i)
        assert targets[s, i] == pytest.approx(v[0], abs=2e-5)
        expected = rho[s, i] * (rows.rewards[s, i] + GAMMA * v[1] - rows.values[s, i])
        assert advantages[s, i] == pytest.approx(expected, abs=2e-5)


# -- how they meet --------------------


def test_gae_with_lambda_zero_is_the_td_error(rows: Rows) -> None:
    advantages, _ = gae(*rows, GAMMA, 0.0)
    expected = [td_error(rows, t, i) for t, i in np.ndindex(rows.rewards.shape)]
    np.testing.assert_allclose(advantages.reshape(-1), expected, atol=1e-6)


def test_vtrace_on_policy_is_n_step(rows: Rows) -> None:
    advantages, targets = vtrace(*rows, np.zeros_like(rows.rewards), GAMMA)
    expected_advantages, expected_returns = gae(*rows, GAMMA, 1.0)
    np.testing.assert_allclose(targets, expected_returns, atol=1e-5)
    np.testing.assert_allclose(advantages, expected_advantages, atol=1e-5)


def test_vtrace_on_policy_has_the_targets_of_gae(rows: Rows) -> None:
    _, targets = vtrace(*rows, np.zeros_like(rows.rewards), GAMMA, LAM)
    np.testing.assert_allclose(targets, gae(*rows, GAMMA, LAM)[1], atol=1e-5)


def test_vtrace_learns_nothing_from_actions_that_the_policy_never_takes(rows: Rows) -> None:
    advantages, targets = vtrace(*rows, np.full_like(rows.rewards, -80.0), GAMMA)
    np.testing.assert_allclose(targets, rows.values, atol=1e-6)
    np.testing.assert_allclose(advantages, 0.0, atol=1e-6)


@pytest.mark.filterwarnings("error")
def test_vtrace_bears_a_policy_that_has_moved_very_far(rows: Rows) -> None:
    for log_ratio in (-500.0, 500.0):
        for array in vtrace(*rows, np.full_like(rows.rewards, log_ratio), GAMMA):
            assert np.isfinite(array).all()


# -- edges --------------------


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
def test_an_end_by_time_limit_bootstraps_and_a_terminal_state_does_not(lam: float) -> None:
    """One row, reward 1, V = 2; the final observation is worth 10."""
    done = np.ones((1, 1), bool)
    truncated, _ = gae(column(1), column(2), column(10), done, 0.5, lam)
    terminated, _ = gae(column(1), column(2), column(0), done, 0.5, lam)
    assert truncated.item() == 1 + 0.5 * 10 - 2
    assert terminated.item() == 1 - 2


def test_nothing_crosses_the_end_of_an_episode(rows: Rows) -> None:
    """What comes after an end, however large, changes nothing before it."""
    dones = rows.dones.copy()
    middle = len(dones) // 2
    dones[middle] = True
    changed = Rows(rows.rewards.copy(), rows.values.copy(), rows.next_values.copy(), dones)
    for array in changed[:3]:
        array[middle + 1 :] += 1e6
    before, after = Rows(*rows[:3], dones), changed
    log_ratios = np.full_like(rows.rewards, 0.1)
    for a, b in [
        (gae(*before, GAMMA, LAM), gae(*after, GAMMA, LAM)),
        (gae(*before, GAMMA, 1.0), gae(*after, GAMMA, 1.0)),
        (vtrace(*before, log_ratios, GAMMA), vtrace(*after, log_ratios, GAMMA)),
    ]:
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x[: middle + 1], y[: middle + 1])


def test_environments_do_not_mix(rows: Rows) -> None:
    together = gae(*rows, GAMMA, LAM)[0]
    for i in range(rows.rewards.shape[1]):
        alone = gae(*Rows(*(array[:, i : i + 1] for array in rows)), GAMMA, LAM)[0]
        np.testing.assert_array_equal(alone[:, 0], together[:, i])


def test_no_rows_give_no_advantages() -> None:
    empty = np.empty((0, 3), np.float32)
    for array in gae(empty, empty, empty, empty.astype(bool), GAMMA, LAM):
        assert array.shape == (0, 3)


def test_the_arguments_are_left_as_they_are(rows: Rows) -> None:
    copies = [array.copy() for array in rows]
    log_ratios = np.full_like(rows.rewards, 0.3)
    gae(*rows, GAMMA, LAM)
    gae(*rows, GAMMA, 1.0)
    vtrace(*rows, log_ratios, GAMMA)
    for array, copy in zip(rows, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_results_are_float32(rows: Rows) -> None:
    for array in (*gae(*rows, GAMMA, LAM), *vtrace(*rows, np.zeros_like(rows.rewards), GAMMA, LAM)):
        assert array.dtype == np.float32


def test_unequal_shapes_are_refused_by_name() -> None:
    four, three = np.zeros((4, 2), np.float32), np.zeros((3, 2), np.float32)
    with pytest.raises(ValueError, match=r"rewards=\(4, 2\).*values=\(3, 2\)"):
        gae(four, three, four, four.astype(bool), GAMMA, LAM)
    with pytest.raises(ValueError, match=r"\[T, N\]"):
        vtrace(four, four, four, four.astype(bool), four[:, 0], GAMMA)
