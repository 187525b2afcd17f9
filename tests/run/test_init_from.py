"""A run begins with another one's parameters and moments, and says what does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from dppo.config import Config, ModelConfig
from dppo.errors import UsageError
from dppo.run.init_from import init_from, take_over
from dppo.run.preflight import Plan
from dppo.rundir.checkpoint import Checkpoint, checkpoint_folders, write_checkpoint
from dppo.rundir.evaluations import evaluated, settle_best, write_evaluated
from tests.parts import Parts, make_parts, probe, settle


@pytest.fixture
def source(tmp_path: Path) -> tuple[Path, Parts]:
    """A run that has learnt something, and its worker."""
    place = make_parts()
    settle(place)
    place.iterate()
    state = place.state
    write_checkpoint(tmp_path, Checkpoint(state.env_steps, state.iteration, state.as_dict(), {}, {}), keep=3)
    return tmp_path, place


def begin(place: Parts, source: Path | None, **changes: Any) -> str | None:
    config = replace(Config(), init_from=None if source is None else str(source), **changes)
    return init_from(Plan(config, Path("run"), None, 1), place.state, MPI.COMM_SELF)


def test_parameters_and_moments_are_taken_over_and_nothing_else(source: tuple[Path, Parts]) -> None:
    run_dir, before = source
    place = make_parts(seed=5)
    line = begin(place, run_dir)
    assert line is not None and f"moments of {run_dir}" in line and "but not" not in line
    np.testing.assert_array_equal(place.policy.flat.vector, before.policy.flat.vector)
    np.testing.assert_array_equal(place.state.moments.pack(), before.state.moments.pack())
    assert (place.state.env_steps, place.state.updates, place.state.iteration) == (0, 0, 0)
    assert not place.state.optimizer.state.any() and before.state.optimizer.state.any()
    place.iterate()
    assert np.isfinite(place.policy.flat.vector).all()


def test_a_checkpoint_may_be_named_itself(source: tuple[Path, Parts]) -> None:
    run_dir, before = source
    place = make_parts(seed=5)
    begin(place, checkpoint_folders(run_dir)[0])
    np.testing.assert_array_equal(place.policy.flat.vector, before.policy.flat.vector)


def test_nothing_happens_without_it_or_on_a_resume(source: tuple[Path, Parts]) -> None:
    place = make_parts(seed=5)
    vector = place.policy.flat.vector.copy()
    assert begin(place, None) is None
    config, saved = Config(init_from=str(source[0])), object()
    assert init_from(Plan(config, Path("run"), saved, 2), place.state, MPI.COMM_SELF) is None  # type: ignore[arg-type]
    np.testing.assert_array_equal(place.policy.flat.vector, vector)


def test_other_actions_are_named_and_the_rest_is_taken_over_on_request(source: tuple[Path, Parts]) -> None:
    """Acrobot has 6 numbers to see and 3 actions, CartPole 4 and 2: a bias and the value fit."""
    run_dir, before = source
    place = make_parts(env="Acrobot-v1", seed=5)
    fresh = place.policy.flat.vector.copy()
    with pytest.raises(
        UsageError, match=r"policy.weight is \(8, 2\) there and \(8, 3\) here.*--init-from-partial"
    ) as told:
        begin(place, run_dir)
    assert "the moments are of 4 observed numbers there and of 6 here" in str(told.value)
    np.testing.assert_array_equal(place.policy.flat.vector, fresh)
    line = begin(place, run_dir, init_from_partial=True)
    assert line is not None and "but not: hidden.0.weight" in line
    parameters, others = place.policy.flat.parameters, before.policy.flat.parameters
    for name in ("hidden.0.bias", "value.weight", "value.bias"):
        np.testing.assert_array_equal(parameters[name], others[name])
    assert parameters["policy.weight"].shape == (8, 3) and place.state.moments.are_empty
    np.testing.assert_array_equal(place.state.moments.rewards.pack(), before.state.moments.rewards.pack())


def test_a_parameter_of_one_side_only_is_named(source: tuple[Path, Parts]) -> None:
    with pytest.raises(UsageError, match="log_std is only here"):
        begin(make_parts(env="Pendulum-v1"), source[0])


def test_what_has_no_part_in_common_is_refused_even_partly(source: tuple[Path, Parts]) -> None:
    saved = source[1].state.as_dict()
    saved["shapes"] = {f"other.{name}": shape for name, shape in saved["shapes"].items()}
    with pytest.raises(UsageError, match="--init-from RUN has no parameter that fits"):
        take_over(make_parts().state, saved, "RUN", partial=True)


@pytest.mark.parametrize("name", ["nowhere", "nowhere/checkpoints/step_000000100"])
def test_a_source_without_a_checkpoint_is_wrong_use(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"--init-from .*{name}"):
        begin(make_parts(), tmp_path / name)


def test_a_damaged_checkpoint_is_wrong_use(source: tuple[Path, Parts]) -> None:
    folder = checkpoint_folders(source[0])[0]
    (folder / "state.safetensors").write_bytes(b"no tensors")
    for where in (source[0], folder):
        with pytest.raises(UsageError, match=r"--init-from .*state\.safetensors"):
            begin(make_parts(), where)


# -- constant buffers of a network of the user's own --------------------

OWN = ModelConfig(factory="tests.models.structured_networks:OnProbe")
OTHER = ModelConfig(factory="tests.models.structured_networks:WithOtherConstants")


def own(model: ModelConfig = OWN, seed: int = 0) -> Parts:
    return make_parts(env=probe("Inputs"), model=model, seed=seed)


def test_constants_are_taken_over_with_the_parameters() -> None:
    """They were drawn with another seed, and the parameters have learnt with them."""
    before, place = own(), own(seed=5)
    assert not np.allclose(place.policy.flat.constants["drawn"], before.policy.flat.constants["drawn"])
    line = take_over(place.state, before.state.as_dict(), "RUN", partial=False)
    assert "but not" not in line
    assert place.policy.flat.fingerprint() == before.policy.flat.fingerprint()


def test_constants_that_do_not_fit_are_named_and_stay_as_they_are_on_request() -> None:
    before, place = own(), own(OTHER, seed=5)
    saved, fresh = before.state.as_dict(), place.policy.flat.constants["drawn"].copy()
    odd = r"the buffer drawn is \(\(18,\), 'float32'\) there and \(\(18,\), 'float64'\) here"
    odd += "; the buffer more is only here"
    with pytest.raises(UsageError, match=rf"--init-from RUN does not fit to this run: {odd}; --init-from-partial"):
        take_over(place.state, saved, "RUN", partial=False)
    assert "but not: the buffer drawn" in take_over(place.state, saved, "RUN", partial=True)
    np.testing.assert_array_equal(place.policy.flat.constants["drawn"], fresh)
    np.testing.assert_array_equal(place.policy.flat.vector, before.policy.flat.vector)


def test_the_best_checkpoint_may_be_named(source: tuple[Path, Parts]) -> None:
    run_dir, before = source
    state = before.state.as_dict()
    write_evaluated(run_dir, state)
    settle_best(run_dir, [{"env_steps": before.state.env_steps, "return_mean": 1.0}], ())
    for path in (run_dir / "checkpoints" / "best", *evaluated(run_dir).values()):
        place = make_parts(seed=5)
        begin(place, path)
        np.testing.assert_array_equal(place.policy.flat.vector, before.policy.flat.vector)
