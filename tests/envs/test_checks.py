"""The numbers and truths of a vector form are taken as they are meant, or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dppo.envs.checks import numbers, truths


@pytest.mark.parametrize("value", [[1, 2.5], np.array([1, 2.5]), torch.tensor([1, 2.5])], ids=repr)
def test_numbers_of_a_vector_form_are_copied(value: Any) -> None:
    taken = numbers("rewards", value, 2)
    assert taken.tolist() == [1, 2.5] and not np.shares_memory(taken, np.asarray(value))


@pytest.mark.parametrize(
    "value", [1.0, [1.0], np.zeros((2, 1)), np.zeros((1, 2)), [1, None], None, ["a", "b"]], ids=repr
)
def test_numbers_of_another_shape_or_type_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"the rewards .*; expected 2 numbers"):
        numbers("rewards", value, 2)


def test_truths_of_a_vector_form() -> None:
    assert truths("terminations", [True, False], 2).tolist() == truths("terminations", [1, 0], 2).tolist() == [1, 0]
    for value in (True, [True], [True, None], [0.0, 1.0], [1, 2], np.zeros((2, 1), bool), None):
        with pytest.raises(ValueError, match=r"the terminations .*; expected 2 of True or False"):
            truths("terminations", value, 2)
