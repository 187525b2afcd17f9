"""The learner's state: its step, its schedules, and that saved or sent it is the same to the bit."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dppo.algo.losses import METRICS
from dppo.config import A3CConfig, OptimConfig, PPOConfig
from dppo.rundir.checkpoint import Checkpoint, newest_valid, write_checkpoint
from dppo.training.packing import NUMBERS
from dppo.training.state import TrainingState, Usage
from tests.parts import Parts, make_parts


def summed(state: TrainingState, gradient: float, **sums: float) -> np.ndarray:
    """A message: the same gradient everywhere, and named metric sums."""
    values = [sums.get(name, 0.0) for name in METRICS]
    return np.concatenate((np.full(state.flat.size, gradient), values)).astype(np.float32)


def sgd(**changes: Any) -> Parts:
    """Plain steps: lr 0.5, no momentum, no clipping, no schedule."""
    optim = OptimConfig(name="sgd", lr=0.5, momentum=0.0, max_grad_norm=0.0, schedule="constant")
    return make_parts(**({"optim": optim} | changes))


# -- a step --------------------


def test_a_step_is_against_the_mean_over_samples() -> None:
    state = sgd().state
    before = state.flat.vector.copy()
    assert state.step(summed(state, 6.0, count=3))
    np.testing.assert_allclose(state.flat.vector, before - 0.5 * 2.0, atol=1e-6)
    assert (state.updates, state.optimizer.steps) == (1, 1)


def test_clipping_comes_after_averaging() -> None:
    """The mean gradient has norm 2 sqrt(P); clipped to 1, each entry is 1 / sqrt(P)."""
    state = sgd(optim=OptimConfig(name="sgd", lr=0.5, momentum=0.0, max_grad_norm=1.0, schedule="constant")).state
    before, root = state.flat.vector.copy(), np.sqrt(state.flat.size)
    state.step(summed(state, 6.0, count=3))
    np.testing.assert_allclose(before - state.flat.vector, 0.5 / root, rtol=1e-3)
    state.finish_iteration(0, 0.0)
    assert state.metrics()["grad_norm"] == pytest.approx(2 * root, rel=1e-5)


@pytest.mark.parametrize(("gradient", "kept"), [(-500.0, 20.0), (500.0, -20.0), (1.0, -0.5)])
def test_a_step_leaves_the_log_std_within_its_bounds(gradient: float, kept: float) -> None:
    state = sgd(env="Pendulum-v1").state
    before = state.flat.vector.copy()
    state.step(summed(state, gradient, count=1))
    np.testing.assert_array_equal(state.flat.parameters["log_std"], [np.float32(kept)])
    others = state.flat.size - 1
    np.testing.assert_allclose(state.flat.vector[:others], before[:others] - 0.5 * gradient, rtol=1e-5, atol=1e-5)


def test_no_samples_are_a_step_of_zero() -> None:
    state = sgd().state
    before = state.flat.vector.copy()
    state.step(summed(state, 0.0, count=0))
    np.testing.assert_array_equal(state.flat.vector, before)


@pytest.mark.parametrize("name", ["adam", "rmsprop", "sgd"])
def test_an_update_of_no_samples_is_none(name: Any) -> None:
    """Momentum and statistics stand still, nothing is counted, and the iteration goes on."""
    state = make_parts(optim=OptimConfig(name=name)).state
    state.step(summed(state, 1.0, count=5, approx_kl=0.05))
    before = fingerprint(state)
    for _ in range(3):
        assert state.step(summed(state, 0.0, count=0))
    assert fingerprint(state) == before
    state.finish_iteration(0, 0.0)
    assert state.metrics()["minibatches"] == 1


def test_the_last_kl_is_that_of_the_update_before_within_an_iteration() -> None:
    """The KL penalty's hinge goes by it. It travels with the state, for a server's workers know nothing else of it."""
    state = sgd(ppo=PPOConfig(objective="kl", target_kl=0.0, minibatches=1)).state
    assert state.last_kl == 0.0
    state.step(summed(state, 1.0, count=10, approx_kl=0.5))
    assert state.last_kl == pytest.approx(0.05)
    other = sgd(ppo=PPOConfig(objective="kl", target_kl=0.0, minibatches=1)).state
    other.unpack(state.packed())
    assert other.last_kl == state.last_kl
    state.finish_iteration(10, 0.0)
    assert state.last_kl == 0.0, "the policy that learns is the one that acts"
    other.forget_unfinished()
    assert other.last_kl == 0.0


def test_an_empty_update_says_nothing_of_the_kl() -> None:
    state = sgd(ppo=PPOConfig(objective="kl", kl_coef=2.0, kl_target=0.01, target_kl=0.0, minibatches=1)).state
    state.step(summed(state, 1.0, count=10, approx_kl=0.5))
    state.step(summed(state, 0.0, count=0))
    state.finish_iteration(0, 0.0)
    assert state.kl_coef == 3.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_is_not_stepped_with(bad: float) -> None:
    """The update and the first parameter are named."""
    state = make_parts().state
    for _ in range(2):
        state.step(summed(state, 1.0, count=1))
    before, message = fingerprint(state), summed(state, 1.0, count=1)
    message[[40, 70]] = bad
    name, shape = next(iter(state.flat.shapes.items()))
    place = ", ".join(map(str, np.unravel_index(40, shape)))
    with pytest.raises(
        FloatingPointError, match=re.escape("update 3 was not made") + f".*{re.escape(f'{name}[{place}]')} is"
    ):
        state.step(message)
    assert fingerprint(state) == before


def test_the_norm_of_a_large_gradient_does_not_overflow() -> None:
    """Entries of 1e20, whose squares float32 cannot hold: clipped like any other."""
    state = sgd(optim=OptimConfig(name="sgd", lr=0.5, momentum=0.0, max_grad_norm=1.0, schedule="constant")).state
    before, root = state.flat.vector.copy(), np.sqrt(state.flat.size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state.step(summed(state, 1e20, count=1))
    np.testing.assert_allclose(before - state.flat.vector, 0.5 / root, rtol=1e-3)
    state.finish_iteration(0, 0.0)
    assert state.metrics()["grad_norm"] == pytest.approx(1e20 * root, rel=1e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", ["adam", "rmsprop", "sgd"])
def test_parameters_that_a_step_makes_infinite_are_never_acted_on(name: Any) -> None:
    state = make_parts(optim=OptimConfig(name=name, lr=1000.0, schedule="constant", max_grad_norm=0.0)).state
    with pytest.raises(FloatingPointError, match=r"update \d has left a parameter .* smaller optim.lr"):
        for _ in range(4):
            state.step(summed(state, 100.0, count=1), weight=3e35)


def spoil_parameters(state: TrainingState) -> str:
    state.flat.vector[3] = np.nan
    return "hidden.0.weight"


def spoil_optimizer(state: TrainingState) -> str:
    state.optimizer.state[1, -1] = np.inf
    return "optimiser's statistics of value.bias"


def spoil_moments(state: TrainingState) -> str:
    state.moments.inputs.now.m2[1] = np.nan
    return "moments of observation 1"


def spoil_returns(state: TrainingState) -> str:
    state.moments.rewards.now.m2[0] = np.inf
    return "smaller rewards"


def spoil_penalty(state: TrainingState) -> str:
    state.kl_coef = np.inf
    return "kl_coef"


SPOIL = [spoil_parameters, spoil_optimizer, spoil_moments, spoil_returns, spoil_penalty]


@pytest.mark.parametrize("spoil", SPOIL)
def test_an_iteration_never_ends_with_a_state_that_is_not_finite(spoil: Callable[[TrainingState], str]) -> None:
    """Its end is what a checkpoint is made of, and what the next rollout acts with."""
    place = make_parts()
    place.iterate()
    updates, what = place.state.updates, spoil(place.state)
    with pytest.raises(FloatingPointError, match=f"after update {updates} the state is not finite: .*{what}"):
        place.state.finish_iteration(0, 0.0)


@pytest.mark.parametrize("spoil", SPOIL)
def test_a_saved_state_that_is_not_finite_is_refused(spoil: Callable[[TrainingState], str]) -> None:
    place = make_parts()
    place.iterate()
    what = spoil(place.state)
    with pytest.raises(ValueError, match=f"the saved state is not finite: .*{what}"):
        make_parts().state.load(place.state.as_dict())


@pytest.mark.parametrize(("mean_kl", "stepped"), [(0.149, True), (0.151, False)])
def test_a_step_whose_kl_is_over_the_limit_is_not_made(mean_kl: float, stepped: bool) -> None:
    """The limit is 1.5 times the target, on the mean over the samples of all ranks."""
    state = sgd(ppo=PPOConfig(target_kl=0.1, minibatches=1)).state
    before = state.flat.vector.copy()
    assert state.step(summed(state, 1.0, count=10, approx_kl=10 * mean_kl)) == stepped
    assert (state.flat.vector != before).any() == stepped
    assert state.updates == state.optimizer.steps == stepped
    state.finish_iteration(0, 0.0)
    assert state.metrics()["kl_stops"] == (not stepped)


@pytest.mark.parametrize("changes", [{"ppo": PPOConfig(target_kl=0.0, minibatches=1)}, {"loss": "a3c"}], ids=str)
def test_the_kl_stop_can_be_switched_off_and_is_off_in_a3c(changes: dict[str, Any]) -> None:
    state = sgd(**changes).state
    assert state.step(summed(state, 1.0, count=1, approx_kl=100.0))
    assert state.updates == 1


# -- an iteration --------------------


def test_metrics_are_means_over_samples_and_over_updates() -> None:
    state = sgd().state
    state.step(summed(state, 1.0, count=10, loss=5, entropy=20, clip_fraction=1))
    state.step(summed(state, 3.0, count=30, loss=7, entropy=20, clip_fraction=3))
    state.finish_iteration(env_steps=123, explained_variance=0.5)
    metrics = state.metrics()
    assert metrics["samples"] == 40
    assert metrics["loss"] == pytest.approx(12 / 40)
    assert metrics["entropy"] == pytest.approx(1.0)
    assert metrics["clip_fraction"] == pytest.approx(0.1)
    assert metrics["grad_norm"] == pytest.approx(0.1 * np.sqrt(state.flat.size), rel=1e-5)
    assert (metrics["minibatches"], metrics["explained_variance"], metrics["lr"]) == (2, 0.5, 0.5)
    assert (state.env_steps, state.iteration, state.updates) == (123, 1, 2)
    state.finish_iteration(0, 0.0)
    assert state.metrics()["samples"] == 0


def test_the_rate_is_annealed_between_iterations_and_not_within() -> None:
    state = make_parts(total_steps=1000, optim=OptimConfig(lr=0.4)).state
    rates = []
    for _ in range(3):
        state.step(summed(state, 1.0, count=1))
        rates.append(state.lr)
        state.step(summed(state, 1.0, count=1))
        assert state.lr == rates[-1]
        state.finish_iteration(env_steps=400, explained_variance=0.0)
    assert rates == pytest.approx([0.4, 0.24, 0.08])
    assert state.lr == 0.0


def test_the_kl_penalty_follows_the_iterations_kl() -> None:
    """Twice the target and more makes it 1.5 times larger; the clip objective has none."""
    state = sgd(ppo=PPOConfig(objective="kl", kl_coef=2.0, kl_target=0.01, target_kl=0.0, minibatches=1)).state
    state.step(summed(state, 1.0, count=10, approx_kl=0.5))
    state.finish_iteration(0, 0.0)
    assert state.kl_coef == 3.0 == state.metrics()["kl_coef"]
    state.step(summed(state, 1.0, count=10, approx_kl=0.0))
    state.finish_iteration(0, 0.0)
    assert state.kl_coef == 2.0
    state.finish_iteration(0, 0.0)  # nothing was learnt: nothing is known of the KL
    assert state.kl_coef == 2.0
    assert "kl_coef" not in sgd().state.metrics()


def test_the_rate_follows_the_mean_kl_of_an_iterations_updates() -> None:
    """Larger and smaller by 1.5, and the same on whoever takes over: within an iteration, and from a checkpoint."""
    optim, ppo = OptimConfig(lr=3e-4, schedule="kl"), PPOConfig(kl_target=0.01, target_kl=0.0, minibatches=1)
    state, other = (make_parts(optim=optim, ppo=ppo, total_steps=100).state for _ in range(2))
    state.step(summed(state, 1.0, count=10, approx_kl=0.0))
    other.unpack(state.packed())  # the server dies here
    for one in (state, other):
        one.step(summed(one, 1.0, count=10, approx_kl=0.6))  # the mean of both is 0.03
        one.finish_iteration(50, 0.0)
        assert one.metrics()["lr"] == 3e-4
        assert one.lr == pytest.approx(2e-4), "whatever share of the run is done"
    assert state.metrics() == other.metrics()
    again = make_parts(optim=optim, ppo=ppo, total_steps=100).state
    again.load(state.as_dict())
    assert again.lr == state.lr
    again.finish_iteration(0, 0.0)
    assert again.lr == state.lr, "nothing was learnt: nothing is known of the KL"
    assert "lr" not in sgd().state.as_dict()


def test_weights_that_are_scheduled_are_metrics_of_the_iteration_that_has_used_them() -> None:
    ppo = PPOConfig(clip=0.2, clip_schedule="linear", entropy_coef=0.1, entropy_schedule="cosine")
    state = make_parts(ppo=ppo, total_steps=100).state
    found = []
    for _ in range(2):
        state.finish_iteration(50, 0.0)
        found.append([state.metrics()[name] for name in ("clip", "entropy_coef")])
    assert found == [[0.2, 0.1], [0.1, 0.05]]
    named = make_parts(loss="a3c", a3c=A3CConfig(entropy_coef=0.2, entropy_schedule="linear")).state.metrics()
    assert "entropy_coef" in named
    assert "clip" not in named
    assert not {"clip", "entropy_coef"} & sgd().state.metrics().keys()


# -- saved and sent --------------------


def copy_by_checkpoint(state: TrainingState, other: TrainingState, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, Checkpoint(state.env_steps, state.iteration, state.as_dict(), {}, {}), keep=1)
    saved, _ = newest_valid(tmp_path)
    assert saved is not None
    other.load(saved.state)


def copy_by_dict(state: TrainingState, other: TrainingState, tmp_path: Path) -> None:
    other.load(state.as_dict())


def copy_by_message(state: TrainingState, other: TrainingState, tmp_path: Path) -> None:
    message = state.packed()
    other.unpack(message)
    message[:] = 0  # its memory is used again
    other.begin_iteration()


@pytest.mark.parametrize("copy", [copy_by_checkpoint, copy_by_dict, copy_by_message])
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop", "sgd"])
def test_a_copy_goes_on_to_the_bit(
    tmp_path: Path, copy: Callable[[TrainingState, TrainingState, Path], None], optimizer: Any
) -> None:
    """Three iterations, copied, and two more: parameters, moments, counters and schedules are the same."""
    ppo = PPOConfig(objective="kl", minibatches=1)
    changes: dict[str, Any] = {"optim": OptimConfig(name=optimizer), "ppo": ppo}
    place, other = make_parts(**changes), make_parts(**changes)
    for _ in range(3):
        place.iterate()
    copy(place.state, other.state, tmp_path)
    for _ in range(2):  # the environments are a worker's and are restored elsewhere: here both learn from one rollout
        place.state.begin_iteration()
        other.state.begin_iteration()
        rollout, discounted = place.rollout()
        for each in (place, other):
            batch = each.learner.prepare(rollout, discounted)
            each.learner.normalise_advantages(batch, batch.statistics)
            for samples in each.learner.minibatches(batch, each.state.iteration):
                each.learner.gradient(samples, each.state.kl_coef, each.state.last_kl)
                each.state.step(each.policy.flat.summed)
            each.state.merge(batch.statistics[-each.state.moments.num_sums :])
            each.state.finish_iteration(rollout.num_steps, 0.0)
    assert fingerprint(place.state) == fingerprint(other.state)
    assert place.state.metrics() == other.state.metrics()


def fingerprint(state: TrainingState) -> tuple[object, ...]:
    """Every bit of a state."""
    saved = state.as_dict()
    arrays = tuple(saved[name].tobytes() for name in ("parameters", "optimizer", "moments"))
    numbers = [saved[name] for name in ("numbers", "optimizer_steps", "kl_coef")]
    return (*arrays, *numbers, state.lr, state.moments.rewards.scale)


def test_a_worker_of_a_server_needs_no_optimiser_state() -> None:
    place, other = make_parts(), make_parts(seed=1)
    place.iterate()
    message = np.empty(place.state.layout.core_bytes, np.uint8)
    place.state.pack(message)
    other.state.unpack(message)
    assert other.policy.flat.fingerprint() == place.policy.flat.fingerprint()
    assert not other.state.optimizer.state.any()
    assert place.state.layout.all_bytes - place.state.layout.core_bytes == place.state.optimizer.state.nbytes


def test_a_message_holds_large_counters_exactly() -> None:
    state, other = make_parts().state, make_parts().state
    for i, name in enumerate(NUMBERS[:-1]):
        setattr(state, name, 2**60 + i)
    state.optimizer.steps = 2**60 + 9
    message = np.empty(state.layout.core_bytes, np.uint8)
    state.pack(message)
    other.unpack(message)
    assert [getattr(other, name) for name in NUMBERS[:-1]] == [2**60 + i for i in range(len(NUMBERS) - 1)]
    assert other.optimizer.steps == 2**60 + 9


def test_moments_that_arrive_are_not_frozen_before_the_next_iteration() -> None:
    place, other = make_parts(), make_parts()
    place.iterate()
    message = np.empty(place.state.layout.core_bytes, np.uint8)
    place.state.pack(message)
    other.state.unpack(message)
    assert other.policy.inputs.now.count > 0
    assert not other.policy.inputs.frozen_mean.any()


def test_what_was_saved_does_not_change_with_the_next_step() -> None:
    place = make_parts()
    place.iterate()
    saved = place.state.as_dict()
    kept = {name: saved[name].copy() for name in ("parameters", "optimizer", "moments")}
    place.iterate()
    for name, array in kept.items():
        np.testing.assert_array_equal(saved[name], array)


def test_a_checkpoint_of_another_network_or_optimiser_is_refused() -> None:
    saved = make_parts().state.as_dict()
    with pytest.raises(ValueError, match="the checkpoint holds a network of"):
        make_parts(env="Pendulum-v1").state.load(saved)
    with pytest.raises(ValueError, match="the checkpoint holds"):
        make_parts(optim=OptimConfig(name="sgd")).state.load(saved)


def test_the_first_progress_of_a_resumed_run_is_where_it_stands() -> None:
    place, other = make_parts(total_steps=100), make_parts(total_steps=100)
    place.iterate()
    other.state.load(place.state.as_dict())
    assert other.state.fraction_done == place.state.fraction_done == 0.32


# -- what was learnt from --------------------


@pytest.mark.parametrize(
    ("minibatches", "used", "most"),
    [
        ((10, 10), [1, 1], 20),
        ((10, 10), [1, 1, 1, 1], 20),  # a second epoch brings nothing new
        ((10, 10), [0, 1, 1, 1], 20),
        ((10, 10), [0, 1, 1, 0], 10),  # it may have been another ten; nobody has looked
        ((10, 10), [1], 10),  # the KL stop
        ((10, 9, 9), [0, 0, 1, 0, 1, 1, 0, 0, 0], 18),
        ((7,), [0, 0, 1], 7),
        ((7,), [0, 0], 0),
        ((7,), [], 0),
    ],
)
def test_a_transition_is_learnt_from_once_however_many_epochs(
    minibatches: tuple[int, ...], used: list[int], most: int
) -> None:
    usage = Usage(len(minibatches))
    for _ in range(2):
        new = [usage.add(minibatches[i % len(minibatches)], used=bool(u)) for i, u in enumerate(used)]
        assert (sum(new), usage.most) == (most, most)
        usage.begin()


def test_steps_are_learnt_from_with_each_iteration() -> None:
    """2 epochs of 2 minibatches; the second iteration stops by its KL after one."""
    state = sgd(ppo=PPOConfig(epochs=2, minibatches=2, target_kl=0.01)).state
    for _ in range(4):
        state.step(summed(state, 0.0, count=16))
    assert state.steps_learnt_from == 0
    state.finish_iteration(32, 0.0)
    assert (state.env_steps, state.steps_learnt_from) == (32, 32)
    state.step(summed(state, 0.0, count=16))
    assert not state.step(summed(state, 0.0, count=16, approx_kl=16.0))
    state.finish_iteration(32, 0.0)
    assert (state.env_steps, state.steps_learnt_from) == (64, 48)
    state.step(summed(state, 0.0, count=16))
    state.forget_unfinished()
    state.finish_iteration(0, 0.0)
    assert state.steps_learnt_from == 48
