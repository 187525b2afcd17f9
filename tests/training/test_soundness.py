"""Whether a learner's state is sound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dppo.training.soundness import check_shapes, first_not_finite
from tests.parts import Parts, make_parts


def found(place: Parts, kl_coef: float = 1.0) -> str | None:
    return first_not_finite(place.policy.flat, place.state.optimizer, place.state.moments, kl_coef)


def check(place: Parts, saved: dict[str, Any]) -> None:
    check_shapes(saved, place.policy.flat, place.state.optimizer, place.state.moments)


def test_a_fresh_state_is_sound_and_fits_itself() -> None:
    place = make_parts()
    assert found(place) is None
    check(place, place.state.as_dict())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_number_that_is_not_finite_is_named_with_the_repair(bad: float) -> None:
    place = make_parts()
    place.policy.inputs.now.m2[1] = bad
    assert "moments of observation 1" in str(found(place))
    assert found(place, kl_coef=bad) == f"kl_coef is {bad}"
    place.state.optimizer.state[1, 0] = bad
    text = str(found(place))
    assert text.startswith("the optimiser's statistics of ") and "max_grad_norm" in text
    place.policy.flat.vector[0] = bad
    text = str(found(place))
    assert text.startswith("parameter ") and "a smaller optim.lr may help" in text


def lose_a_parameter(saved: dict[str, Any]) -> None:
    saved["parameters"] = saved["parameters"][1:]


def lose_a_moment(saved: dict[str, Any]) -> None:
    saved["moments"] = saved["moments"][1:]


def lose_a_statistic(saved: dict[str, Any]) -> None:
    saved["optimizer"] = saved["optimizer"][:, 1:]


def rename(saved: dict[str, Any]) -> None:
    saved["shapes"] = {"other": [saved["parameters"].size]}


def negative_count(saved: dict[str, Any]) -> None:
    saved["moments"][0] = -1.0


def negative_variance(saved: dict[str, Any]) -> None:
    saved["moments"][-1] = -1.0


@pytest.mark.parametrize(
    "spoil", [lose_a_parameter, lose_a_moment, lose_a_statistic, rename, negative_count, negative_variance]
)
def test_a_state_of_another_shape_or_of_impossible_moments_is_refused(spoil: Callable[[dict[str, Any]], None]) -> None:
    place = make_parts()
    saved = place.state.as_dict()
    spoil(saved)
    with pytest.raises(ValueError, match="the checkpoint holds"):
        check(place, saved)


def test_a_variance_that_rounding_has_left_below_zero_is_as_good_as_zero() -> None:
    place = make_parts()
    saved = place.state.as_dict()
    saved["moments"][-1] = -1e-12
    check(place, saved)
