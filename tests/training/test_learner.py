"""From a rollout to gradients: targets, statistics over ranks, minibatches, and one worker equal to many."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest

from dppo.algo import losses, returns
from dppo.config import A3CConfig, ModelConfig, PPOConfig
from dppo.data import Batch, Minibatch, Rollout
from dppo.training.learner import STATISTICS, explained_variance
from tests.parts import NextStep, Parts, make_parts, probe, settle

SAMPLES = list(Minibatch.__slots__)


def statistic(batch: Batch, name: str) -> float:
    return float(batch.statistics[STATISTICS.index(name)])


def prepared(place: Parts) -> tuple[Rollout, Batch]:
    """The next rollout, and what the learner makes of it."""
    rollout, discounted = place.rollout()
    return rollout, place.learner.prepare(rollout, discounted)


# -- targets --------------------


@pytest.mark.parametrize("env", ["CartPole-v1", probe("Truncation")])
def test_advantages_and_targets_are_gae_of_the_scaled_rewards(env: str) -> None:
    """An oracle in plain Python, over rewards in units of the running return's deviation."""
    place = make_parts(env=env, horizon=60)
    settle(place)
    rollout, batch = prepared(place)
    cfg, scale = place.config.ppo, place.learner.moments.rewards.scale
    assert scale != 1.0
    for i in range(2):
        advantage = 0.0
        for t in reversed(range(60)):
            value, next_value = float(rollout.values[t, i]), float(rollout.next_values[t, i])
            delta = scale * float(rollout.rewards[t, i]) + cfg.gamma * next_value - value
            ended = rollout.terminations[t, i] or rollout.truncations[t, i]
            advantage = delta + (0.0 if ended else cfg.gamma * cfg.lam * advantage)
            assert batch.samples.advantages[2 * t + i] == pytest.approx(advantage, abs=1e-4)
            assert batch.samples.returns[2 * t + i] == pytest.approx(advantage + value, abs=1e-4)


def test_a_time_limit_is_worth_what_goes_on_after_it() -> None:
    """Reward 1 for ever, cut after 10 steps; with the right critic, V = 1 / (1 - gamma), nothing is left to learn."""
    place = make_parts(env=probe("Truncation"), horizon=25, ppo=PPOConfig(gamma=0.9, minibatches=1))
    last_bias = place.policy.flat.parameters["value.bias"]
    place.policy.flat.parameters["value.weight"][:] = 0.0
    last_bias[:] = 1 / (1 - 0.9)
    rollout, batch = prepared(place)
    assert rollout.truncations.any() and not rollout.terminations.any()
    np.testing.assert_allclose(rollout.next_values, 10.0, rtol=1e-5)
    np.testing.assert_allclose(batch.samples.advantages, 0.0, atol=1e-4)
    np.testing.assert_allclose(batch.samples.returns, 10.0, rtol=1e-4)


def test_a_terminal_state_is_worth_nothing() -> None:
    """One step, reward 1: whatever the critic says of the next episode, the target is 1."""
    place = make_parts(env=probe("Constant"))
    place.policy.flat.parameters["value.bias"][:] = 5.0
    rollout, batch = prepared(place)
    assert rollout.terminations.all()
    np.testing.assert_array_equal(batch.samples.returns, 1.0)


def test_rows_that_were_spent_on_a_reset_enter_no_batch_and_no_sum() -> None:
    place = make_parts(env=probe("Constant"), horizon=9, envs=NextStep(), ppo=PPOConfig(minibatches=2))
    rollout, batch = prepared(place)
    valid = rollout.valid.reshape(-1)
    assert len(batch.samples) == valid.sum() == 13
    assert statistic(batch, "samples") == statistic(batch, "env_steps") == 13
    np.testing.assert_array_equal(batch.samples.log_probs, rollout.log_probs.reshape(-1)[valid])
    np.testing.assert_array_equal(batch.samples.inputs, rollout.inputs.reshape(18, -1)[valid])
    moments = batch.statistics[len(STATISTICS) :]
    assert moments[0] == moments[-3] == 13
    for samples in place.learner.minibatches(batch, 0):
        assert not (set(samples.returns) - set(batch.samples.returns))


def test_an_end_before_a_reset_row_keeps_its_advantage() -> None:
    """GAE does not run through the reset row: without it the samples are the same."""
    place = make_parts(env=probe("Constant"), horizon=9, envs=NextStep(), ppo=PPOConfig(minibatches=1))
    rollout, batch = prepared(place)
    column = rollout.valid[:, 0]
    rewards, values, next_values = (a[column, :1] for a in (rollout.rewards, rollout.values, rollout.next_values))
    cfg = place.config.ppo
    expected, _ = returns.gae(rewards, values, next_values, rollout.terminations[column, :1], cfg.gamma, cfg.lam)
    first_env = np.tile([True, False], 9)[rollout.valid.reshape(-1)]
    np.testing.assert_allclose(batch.samples.advantages[first_env], expected[:, 0], rtol=1e-6)


def test_a_rollout_that_was_given_up_at_once_is_an_empty_batch() -> None:
    for env in ("CartPole-v1", "Pendulum-v1", probe("Bits")):
        for mode in ("sync", "async"):
            place = make_parts(env=env, mode=mode, loss="ppo")
            rollout = place.collector.collect(16, 0, lambda: True)
            batch = place.learner.prepare(rollout, place.collector.discounted_returns(rollout))
            assert len(batch.samples) == 0
            assert not batch.statistics.any()


# -- memory --------------------

MEMORY = ModelConfig(hidden=(8,), core="gru", core_size=6, sequence=8)


@pytest.mark.parametrize("env", ["CartPole-v1", "native"])
def test_samples_lie_in_sequences_and_keep_their_targets(env: str) -> None:
    """Each sample still has the advantage of its own step, and the first minibatch's ratio is 1."""
    changes: dict[str, Any] = {"vectorization": "native"} if env == "native" else {"env": env}
    place, flat = make_parts(model=MEMORY, horizon=32, **changes), make_parts(horizon=32, **changes)
    for each in (place, flat):
        settle(each)
    rollout, batch = prepared(place)
    samples = batch.samples
    dones = rollout.terminations | rollout.truncations
    rewards = rollout.rewards * np.float32(place.learner.moments.rewards.scale)
    advantages, targets = returns.gae(rewards, rollout.values, rollout.next_values, dones, 0.99, 0.95)
    steps = [(t, i) for start in range(0, 32, 8) for i in range(2) for t in range(start, start + 8)]
    steps = [(t, i) for t, i in steps if rollout.valid[t, i]]
    assert len(samples) == len(steps) == rollout.num_steps
    for b, (t, i) in enumerate(steps):
        assert samples.advantages[b] == advantages[t, i] and samples.returns[b] == targets[t, i]
        np.testing.assert_array_equal(samples.states[b], rollout.states[t, i])
        begins = t % 8 == 0 or dones[t - 1, i] or not rollout.valid[t - 1, i]
        assert samples.firsts[b] == begins, (t, i)
    head, value = place.policy.forward(samples.inputs, samples.masks, samples.states, samples.firsts)
    log_probs = place.policy.distribution.evaluate(head, samples.actions)[0]
    np.testing.assert_allclose(log_probs, samples.log_probs, atol=1e-5)
    np.testing.assert_allclose(value, samples.values, atol=1e-5)
    error = targets[rollout.valid] - rollout.values[rollout.valid]
    assert batch.statistics[STATISTICS.index("error2")] == pytest.approx(np.square(error, dtype=np.float64).sum())


@pytest.mark.parametrize(("sequence", "length"), [(8, 8), (None, 32)])
def test_a_network_of_the_users_own_that_remembers_is_trained_on_sequences(sequence: int | None, length: int) -> None:
    """The gradient of a minibatch passes through the states, of as many rows as with a core."""
    own = ModelConfig(factory="tests.models.test_structured:OnVector", sequence=sequence)
    place = make_parts(model=own, horizon=32)
    settle(place)
    rollout, batch = prepared(place)
    ends = rollout.terminations | rollout.truncations
    begins = np.vstack((np.ones((1, 2), bool), ends[:-1])) | (np.arange(32) % length == 0)[:, None]
    assert batch.samples.firsts.sum() == begins.sum() < 32
    place.learner.gradient(batch.samples)
    whole = place.policy.flat.gradient.copy()
    batch.samples.firsts[:] = True
    place.learner.gradient(batch.samples)
    assert not np.allclose(place.policy.flat.gradients["cell.weight_hh"], 0.0)
    assert np.abs(whole - place.policy.flat.gradient).max() > 1e-4


def test_minibatches_are_of_whole_sequences() -> None:
    place = make_parts(model=MEMORY, horizon=32)
    _, batch = prepared(place)
    for minibatch in place.learner.minibatches(batch, 0):
        assert minibatch.firsts[0]
        head, _ = place.policy.forward(minibatch.inputs, minibatch.masks, minibatch.states, minibatch.firsts)
        np.testing.assert_allclose(head, minibatch.heads, atol=1e-5)


@pytest.mark.parametrize("length", [1, 5, 32])
def test_vtrace_with_memory_and_the_acting_policy_has_the_targets_of_gae(length: int) -> None:
    model = replace(MEMORY, sequence=length)
    place, other = (
        make_parts(mode="async", loss="ppo", vtrace=on, model=model, horizon=32, ppo=PPOConfig(minibatches=1))
        for on in (True, False)
    )
    for each in (place, other):
        settle(each)
    np.testing.assert_allclose(prepared(place)[1].samples.returns, prepared(other)[1].samples.returns, atol=1e-4)


# -- V-trace --------------------


def test_vtrace_with_the_acting_policy_has_the_targets_of_gae() -> None:
    place, other = (make_parts(mode="async", loss="ppo", vtrace=on) for on in (True, False))
    _, corrected = prepared(place)
    _, plain = prepared(other)
    np.testing.assert_allclose(corrected.samples.returns, plain.samples.returns, atol=1e-5)


def test_vtrace_corrects_towards_the_present_policy_with_its_critic() -> None:
    """Parameters have moved since the rollout: ratios and values are those of the new ones, bootstraps of the old."""
    place = make_parts(mode="async", loss="ppo", horizon=60)
    settle(place)
    rollout, discounted = place.rollout()
    place.policy.flat.vector += np.random.default_rng(3).normal(0, 0.05, place.policy.flat.size).astype(np.float32)
    batch = place.learner.prepare(rollout, discounted)

    inputs, actions = rollout.inputs.reshape(120, -1), rollout.actions.reshape(120)
    head, value = (a.copy() for a in place.policy.forward(inputs))
    values = value.reshape(60, 2)
    log_probs = place.policy.distribution.evaluate(head, actions)[0].reshape(60, 2)
    ended = rollout.terminations | rollout.truncations
    next_values = np.where(ended, rollout.next_values, np.vstack((values[1:], rollout.next_values[-1:])))
    scale, cfg = np.float32(place.learner.moments.rewards.scale), place.config.ppo
    advantages, targets = returns.vtrace(
        scale * rollout.rewards, values, next_values, ended, log_probs - rollout.log_probs, cfg.gamma, cfg.lam
    )
    assert np.abs(log_probs - rollout.log_probs).max() > 0.01
    np.testing.assert_allclose(batch.samples.advantages, advantages.reshape(-1), atol=1e-5)
    np.testing.assert_allclose(batch.samples.returns, targets.reshape(-1), atol=1e-5)
    np.testing.assert_allclose(batch.samples.values, value, atol=1e-6)
    np.testing.assert_array_equal(batch.samples.log_probs, rollout.log_probs.reshape(-1))  # of the acting policy


# -- statistics over ranks --------------------


def test_advantages_are_normalised_over_the_samples_of_all_ranks() -> None:
    """Three workers with different numbers of samples, against all advantages in one array."""
    places = [make_parts(worker=w, horizon=h) for w, h in enumerate((4, 20, 52))]
    batches = [prepared(place)[1] for place in places]
    everything = np.concatenate([b.samples.advantages for b in batches]).astype(np.float64)
    totals = np.sum([b.statistics for b in batches], axis=0)
    for place, batch in zip(places, batches, strict=True):
        place.learner.normalise_advantages(batch, totals)
    normalised = np.concatenate([b.samples.advantages for b in batches])
    np.testing.assert_allclose(normalised, (everything - everything.mean()) / everything.std(), rtol=1e-3, atol=1e-5)
    assert normalised.dtype == np.float32


def test_normalising_can_be_switched_off_and_is_off_in_a3c() -> None:
    for place in (
        make_parts(ppo=PPOConfig(normalize_advantages=False, minibatches=1)),
        make_parts(loss="a3c"),
    ):
        _, batch = prepared(place)
        before = batch.samples.advantages.copy()
        place.learner.normalise_advantages(batch, batch.statistics)
        np.testing.assert_array_equal(batch.samples.advantages, before)


def test_equal_advantages_and_no_samples_are_normalised_without_a_warning() -> None:
    place = make_parts()
    _, batch = prepared(place)
    batch.samples.advantages[:] = 3.0
    with np.errstate(all="raise"):
        place.learner.normalise_advantages(batch, totals_of(np.full(32, 3.0)))
        place.learner.normalise_advantages(batch, totals_of(np.empty(0)))
    assert np.isfinite(batch.samples.advantages).all()


def totals_of(advantages: np.ndarray) -> np.ndarray:
    """The first five statistics."""
    return np.array([0.0, len(advantages), len(advantages), advantages.sum(), (advantages**2).sum()])


def test_explained_variance_is_that_of_all_samples() -> None:
    places = [make_parts(worker=w) for w in (0, 1)]
    pairs = [prepared(place) for place in places]
    totals = np.sum([b.statistics for _, b in pairs], axis=0)
    targets = np.concatenate([b.samples.returns for _, b in pairs]).astype(np.float64)
    values = np.concatenate([r.values.reshape(-1) for r, _ in pairs]).astype(np.float64)
    assert explained_variance(totals) == pytest.approx(1 - (targets - values).var() / targets.var(), abs=1e-6)


def test_moments_are_of_raw_observations_and_running_returns() -> None:
    place = make_parts(horizon=30)
    rollout, discounted = place.rollout()
    batch = place.learner.prepare(rollout, discounted)
    place.state.merge(batch.statistics[len(STATISTICS) :])
    observations = rollout.observations.reshape(60, -1).astype(np.float64)
    moments, of_returns = place.policy.inputs.now, place.learner.moments.rewards.now
    np.testing.assert_allclose(moments.mean, observations.mean(0))
    np.testing.assert_allclose(moments.m2 / moments.count, observations.var(0))
    np.testing.assert_allclose(of_returns.m2 / of_returns.count, discounted.var())


# -- minibatches --------------------


def test_every_epoch_has_every_sample_once_in_an_order_of_its_own() -> None:
    place = make_parts(horizon=32, ppo=PPOConfig(epochs=3, minibatches=4))
    _, batch = prepared(place)
    batch.samples.advantages = np.arange(64, dtype=np.float32)  # names
    parts = [m.advantages.astype(int).tolist() for m in place.learner.minibatches(batch, 0)]
    assert [len(p) for p in parts] == [16] * 12
    epochs = [tuple(itertools.chain(*parts[4 * e : 4 * e + 4])) for e in range(3)]
    assert all(sorted(epoch) == list(range(64)) for epoch in epochs)
    assert len({*epochs, tuple(range(64))}) == 4


def test_all_of_a_sample_goes_together() -> None:
    place = make_parts(env="Pendulum-v1")
    _, batch = prepared(place)
    for part in place.learner.minibatches(batch, 0):
        for k in range(len(part)):
            index = int(np.flatnonzero((batch.samples.inputs == part.inputs[k]).all(1))[0])
            for name in SAMPLES:
                np.testing.assert_array_equal(getattr(part, name)[k], getattr(batch.samples, name)[index])


@pytest.mark.parametrize("samples", [0, 1, 3, 30])
def test_a_rollout_that_was_cut_short_gives_the_same_number_of_minibatches(samples: int) -> None:
    """Ranks meet at every update: none may have one less. Some may be empty."""
    place = make_parts(ppo=PPOConfig(epochs=2, minibatches=4))
    _, batch = prepared(place)
    batch = replace(batch, samples=batch.samples[np.arange(samples)], parts=((0, samples),))
    parts = list(place.learner.minibatches(batch, 0))
    assert len(parts) == place.learner.updates_per_rollout == 8
    assert sum(map(len, parts)) == 2 * samples


def test_the_order_is_that_of_worker_and_iteration() -> None:
    def order(worker: int, iteration: int) -> list[float]:
        place = make_parts(worker=worker)
        batch = Batch(numbered(32), np.empty(0), ((worker, 32),))
        return [x for m in place.learner.minibatches(batch, iteration) for x in m.advantages.tolist()]

    assert order(0, 5) == order(0, 5)
    assert len({tuple(order(w, i)) for w in (0, 1) for i in (0, 1)}) == 4


def numbered(count: int) -> Minibatch:
    """Samples that are their own numbers."""
    numbers = np.arange(count, dtype=np.float32)
    masks, states, firsts = np.empty((count, 0), bool), np.empty((count, 0), np.float32), np.ones(count, bool)
    heads = numbers[:, None]
    return Minibatch(heads, masks, states, firsts, numbers, heads, numbers, numbers, numbers, numbers)


def test_a3c_takes_one_gradient_of_the_whole_rollout() -> None:
    place = make_parts(loss="a3c")
    _, batch = prepared(place)
    parts = list(place.learner.minibatches(batch, 0))
    assert len(parts) == place.learner.updates_per_rollout == 1
    assert parts[0] is batch.samples


def joined_workers(*rows: int, **changes: Any) -> tuple[list[Parts], list[Batch], Batch]:
    """Workers with rollouts of so many rows (0: given up at once), their batches, and all of them joined."""
    places = [make_parts(worker=w, **changes) for w in range(len(rows))]
    batches = []
    for place, horizon in zip(places, rows, strict=True):
        settle(place)
        rollout, discounted = place.rollout(horizon)
        batches.append(place.learner.prepare(rollout, discounted))
    return places, batches, Batch.joined(batches)


def test_a_joined_batch_has_all_samples_in_order_and_the_sum_of_the_statistics() -> None:
    _, batches, joined = joined_workers(16, 5, 0, 9)
    for name in SAMPLES:
        expected = np.concatenate([getattr(b.samples, name) for b in batches])
        actual = getattr(joined.samples, name)
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)
    np.testing.assert_allclose(joined.statistics, np.sum([b.statistics for b in batches], axis=0), rtol=1e-15)
    assert statistic(joined, "samples") == statistic(joined, "env_steps") == 2 * (16 + 5 + 9)
    assert joined.parts == ((0, 32), (1, 10), (2, 0), (3, 18))


def test_joining_copies_and_may_be_done_in_two_steps() -> None:
    _, batches, joined = joined_workers(16, 5, 9)
    twice = Batch.joined([Batch.joined(batches[:2]), batches[2]])
    for batch in batches:
        batch.samples.advantages[:] = np.nan
        batch.statistics[:] = np.nan
    assert twice.parts == joined.parts
    np.testing.assert_array_equal(twice.samples.advantages, joined.samples.advantages)
    np.testing.assert_allclose(twice.statistics, joined.statistics, rtol=1e-12)
    assert np.isfinite(joined.samples.advantages).all() and np.isfinite(joined.statistics).all()


@pytest.mark.parametrize("rows", [(16, 16), (16, 5, 9), (16, 0, 1)], ids=str)
@pytest.mark.parametrize("env", ["Pendulum-v1", probe("Bits")])
def test_minibatches_of_a_joined_batch_are_each_workers_own_side_by_side(env: str, rows: tuple[int, ...]) -> None:
    """The same samples in the same update, whoever computes: each worker's own stream shuffles its samples."""
    places, batches, joined = joined_workers(*rows, env=env, ppo=PPOConfig(epochs=2, minibatches=4))
    own = [list(p.learner.minibatches(b, 3)) for p, b in zip(places, batches, strict=True)]
    together = list(places[0].learner.minibatches(joined, 3))
    assert len(together) == places[0].learner.updates_per_rollout == 8
    for m, minibatch in enumerate(together):
        for name in SAMPLES:
            expected = np.concatenate([getattr(parts[m], name) for parts in own])
            np.testing.assert_array_equal(getattr(minibatch, name), expected)


@pytest.mark.parametrize("loss", ["ppo", "a3c"])
def test_one_update_of_a_joined_rollout_takes_it_whole(loss: str) -> None:
    places, _, joined = joined_workers(16, 5, loss=loss, ppo=PPOConfig(epochs=1, minibatches=1))
    (only,) = places[0].learner.minibatches(joined, 0)
    assert only is joined.samples


@pytest.mark.parametrize("objective", ["clip", "kl"])
@pytest.mark.parametrize("rows", [(16, 16), (16, 5, 0)], ids=str)
def test_the_gradient_of_a_joined_minibatch_is_the_sum_of_the_workers_own(
    rows: tuple[int, ...], objective: str
) -> None:
    """And so are the metric sums; in each update, with advantages normalised over all, and a policy that has moved."""
    cfg = PPOConfig(epochs=2, minibatches=2, objective=objective, entropy_coef=0.01)  # type: ignore[arg-type]
    places, batches, joined = joined_workers(*rows, ppo=cfg)
    totals = joined.statistics
    own = []
    for place, batch in zip(places, batches, strict=True):
        place.learner.normalise_advantages(batch, totals)
        own.append(list(place.learner.minibatches(batch, 1)))
        place.policy.flat.vector += np.random.default_rng(2).normal(0, 0.1, place.policy.flat.size).astype(np.float32)
    learner, flat = places[0].learner, places[0].policy.flat
    learner.normalise_advantages(joined, totals)
    for m, minibatch in enumerate(learner.minibatches(joined, 1)):
        expected = np.zeros(len(flat.summed), np.float64)
        for place, parts in zip(places, own, strict=True):
            place.learner.gradient(parts[m], 0.5, 0.01)
            expected += place.policy.flat.summed
        learner.gradient(minibatch, 0.5, 0.01)
        actual, size = flat.summed, flat.size
        assert np.linalg.norm((actual - expected)[:size]) < 1e-5 * np.linalg.norm(expected[:size])
        np.testing.assert_allclose(actual[size:], expected[size:], rtol=1e-4, atol=1e-4)


# -- gradients --------------------


@pytest.mark.parametrize("objective", ["clip", "kl"])
def test_gradient_writes_the_configured_losss_sums(objective: str) -> None:
    cfg = PPOConfig(objective=objective, minibatches=1, entropy_coef=0.1, kl_target=1e-4)  # type: ignore[arg-type]
    place = make_parts(ppo=cfg)
    _, batch = prepared(place)
    place.policy.flat.vector += np.random.default_rng(0).normal(0, 0.1, place.policy.flat.size).astype(np.float32)
    place.policy.flat.summed[:] = 7.0
    place.learner.gradient(batch.samples, kl_coef=3.0, last_kl=0.25)
    actual = place.policy.flat.summed.copy()

    head, value = place.policy.forward(batch.samples.inputs)
    loss = losses.ppo(place.policy.distribution, head, value, batch.samples, cfg, 3.0, 0.25)
    place.policy.backward(loss.d_head, loss.d_value)
    # the learner's loss may be compiled, and sums come in another order
    np.testing.assert_allclose(actual[: place.policy.flat.size], place.policy.flat.gradient, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(actual[place.policy.flat.size :], loss.sums, rtol=1e-5)


def test_the_first_minibatchs_ratio_is_one() -> None:
    for env in ("CartPole-v1", "Pendulum-v1", probe("Copy"), probe("Bits")):
        place = make_parts(env=env)
        settle(place)
        _, batch = prepared(place)
        place.learner.gradient(next(place.learner.minibatches(batch, 0)))
        named = dict(zip(losses.METRICS, place.policy.flat.sums.tolist(), strict=True))
        assert named["clip_fraction"] == 0.0
        assert named["approx_kl"] / named["count"] < 1e-10


@pytest.mark.parametrize(
    ("field", "message"),
    [("inputs", "first bad array is inputs, at"), ("advantages", "advantages, at"), ("returns", "value targets, at")],
)
def test_a_loss_that_is_not_finite_names_the_first_bad_array(field: str, message: str) -> None:
    place = make_parts()
    _, batch = prepared(place)
    getattr(batch.samples, field)[5] = np.nan
    with pytest.raises(FloatingPointError, match=message):
        place.learner.gradient(batch.samples)


def test_parameters_that_are_not_finite_are_found_by_the_networks_output() -> None:
    place = make_parts()
    _, batch = prepared(place)
    place.policy.flat.vector[0] = np.nan
    with pytest.raises(FloatingPointError, match=r"the network's head, at .* a smaller optim\.lr may help"):
        place.learner.gradient(batch.samples)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_names_the_first_parameter(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is finite; a torch network's root of 0 does this."""
    place = make_parts(worker=3)
    _, batch = prepared(place)
    backward = place.policy.backward

    def spoilt(*arguments: np.ndarray) -> None:
        backward(*arguments)
        place.policy.flat.gradients["policy.weight"][2, 1] = bad

    monkeypatch.setattr(place.policy, "backward", spoilt)
    with pytest.raises(
        FloatingPointError, match=rf"worker 3: the gradient is not finite.*policy\.weight\[2, 1\] is {bad}"
    ):
        place.learner.gradient(batch.samples)


def test_a_large_gradient_is_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its squares are not, in float32."""
    place = make_parts()
    _, batch = prepared(place)
    backward = place.policy.backward

    def large(*arguments: np.ndarray) -> None:
        backward(*arguments)
        place.policy.flat.gradient[:] = 1e30

    monkeypatch.setattr(place.policy, "backward", large)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        place.learner.gradient(batch.samples)


@pytest.mark.parametrize("objective", ["clip", "kl"])
def test_no_samples_have_no_gradient_and_the_network_does_not_see_them(
    objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some networks cannot take 0 rows."""
    place = make_parts(ppo=PPOConfig(objective=objective, minibatches=1))  # type: ignore[arg-type]
    _, batch = prepared(place)
    monkeypatch.setattr(place.policy, "forward", lambda inputs: pytest.fail("it was asked"))
    place.policy.flat.summed[:] = 7.0
    place.learner.gradient(batch.samples[:0], 1.0, 0.3)
    assert not place.policy.flat.summed.any()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_masked_logit_is_not_what_a_bad_loss_is_blamed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    place = make_parts()
    _, batch = prepared(place)
    head, value = place.policy.forward(batch.samples.inputs)
    head[0, 0], value[3] = -np.inf, np.nan
    monkeypatch.setattr(place.policy, "forward", lambda *_: (head, value))
    with pytest.raises(FloatingPointError, match=r"first bad array is the network's value, at \[3\]"):
        place.learner.gradient(batch.samples)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("loss", ["ppo", "a3c"])
@pytest.mark.parametrize("reward", [1e18, -1e20, 1e30, 3e38])
def test_rewards_that_are_too_large_are_named(reward: float, loss: str) -> None:
    """By their value, row and environment; it is not the learning rate that is to blame."""
    place = make_parts(env=probe("Constant"), worker=1, loss=loss, horizon=8)
    rollout, discounted = place.rollout()
    rollout.rewards[5, 1] = reward
    with pytest.raises(FloatingPointError, match=r"rewards are too large: .* in row 5 of environment 3") as caught:
        place.learner.prepare(rollout, discounted)
    assert "lr" not in str(caught.value)
    assert f"{np.float32(reward):g}" in str(caught.value)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("value", [1e20, np.inf, np.nan])
def test_values_that_are_too_large_are_not_blamed_on_rewards(value: float) -> None:
    place = make_parts()
    rollout, discounted = place.rollout()
    rollout.values[4, 0] = value
    with pytest.raises(FloatingPointError, match=r"the critic's values reach .* smaller optim\.lr"):
        place.learner.prepare(rollout, discounted)


@pytest.mark.parametrize("reward", [1e5, 1e10, 1e13])
def test_large_rewards_are_learnt_from(reward: float) -> None:
    """Before the first moments they are taken as they are."""
    place = make_parts(env=probe("Constant"))
    rollout, discounted = place.rollout()
    rollout.rewards[:] *= np.float32(reward)
    batch = place.learner.prepare(rollout, discounted)
    place.learner.normalise_advantages(batch, batch.statistics)
    for samples in place.learner.minibatches(batch, 0):
        place.learner.gradient(samples)
        assert place.state.step(place.policy.flat.summed)
    assert place.state.updates > 0


class InUnits(gymnasium.RewardWrapper):
    """Rewards in another unit."""

    def __init__(self, env: gymnasium.Env[Any, Any], unit: float) -> None:
        super().__init__(env)
        self.unit = unit

    def reward(self, reward: Any) -> float:
        return self.unit * float(reward)


def test_rewards_in_any_unit_are_learnt_alike() -> None:
    shares = {}
    for unit in (1.0, 1e-8, 1e-5, 1e-3, 1e5):
        name = f"Units{np.log10(unit):.0f}-v0".replace("-", "m", 1) if unit < 1 else f"Units{np.log10(unit):.0f}-v0"
        gymnasium.register(name, lambda unit=unit: InUnits(gymnasium.make("dppo/ProbeContext-v0"), unit))
        place = make_parts(env=name, num_envs=8, horizon=32, ppo=PPOConfig(epochs=4, minibatches=4))
        for _ in range(20):
            place.iterate()
        earned = [e.episode_return for report in place.reports[-3:] for e in report.episodes]
        shares[unit] = np.mean(earned) / unit
        assert place.learner.moments.rewards.scale * unit == pytest.approx(1.5, abs=0.5)
    assert shares[1.0] > 0.6
    assert list(shares.values()) == pytest.approx([shares[1.0]] * len(shares), abs=0.1)


# -- one worker and many --------------------

CELLS: dict[str, dict[str, Any]] = {
    "ppo": {"ppo": PPOConfig(epochs=1, minibatches=1, entropy_coef=0.01)},
    "ppo, kl": {"ppo": PPOConfig(epochs=1, minibatches=1, objective="kl")},
    "a3c": {"loss": "a3c", "a3c": A3CConfig(normalize_advantages=True)},
}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", probe("Copy"), probe("Bits")])
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_together_give_the_gradient_of_one_with_all_environments(cell: str, env: str, workers: int) -> None:
    """Eight environments: rollout, statistics, gradient and metric sums of the ranks add up to those of one rank."""
    changes: dict[str, Any] = {"env": env, "horizon": 24, **CELLS[cell]}
    alone = make_parts(num_envs=8, **changes)
    places = [make_parts(num_envs=8 // workers, worker=w, **changes) for w in range(workers)]
    batches = []
    for place in (alone, *places):
        settle(place)
        batches.append(prepared(place)[1])
    totals = np.sum([b.statistics for b in batches[1:]], axis=0)
    np.testing.assert_allclose(totals, batches[0].statistics, rtol=1e-5, atol=1e-4)
    for place, batch in zip((alone, *places), batches, strict=True):
        place.learner.normalise_advantages(batch, totals)
        place.learner.gradient(batch.samples, 1.0, 0.0)
    together = np.sum([p.policy.flat.summed for p in places], axis=0)
    expected = alone.policy.flat.summed
    size = alone.policy.flat.size
    assert np.linalg.norm((together - expected)[:size]) < 1e-5 * np.linalg.norm(expected[:size])
    np.testing.assert_allclose(together[size:], expected[size:], rtol=1e-4, atol=1e-3)


def test_a_worker_with_fewer_samples_weighs_less() -> None:
    """The mean gradient of a worker with 4 rows and one with 28 is that of the 32 rows together."""
    places = [make_parts(worker=w, horizon=h, ppo=PPOConfig(minibatches=1)) for w, h in ((0, 4), (1, 28))]
    batches = [prepared(place)[1].samples for place in places]
    for place, samples in zip(places, batches, strict=True):
        place.learner.gradient(samples)
    together = np.sum([p.policy.flat.summed for p in places], axis=0)
    arrays = [np.concatenate([getattr(b, name) for b in batches]) for name in SAMPLES]
    places[0].learner.gradient(Minibatch(*arrays))
    np.testing.assert_allclose(together, places[0].policy.flat.summed, rtol=1e-3, atol=1e-4)
