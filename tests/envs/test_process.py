"""What making an environment must not change for everybody else in the process."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch

from dppo.envs.process import kept_as_it_was


def umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


CHANGES: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "NumPy raises": (lambda: np.seterr(all="raise"), np.geterr),
    "warnings are errors": (lambda: warnings.simplefilter("error"), lambda: list(warnings.filters)),
    "the mode of files": (lambda: os.umask(0o777), umask),
    "stdout": (lambda: setattr(sys, "stdout", None), lambda: sys.stdout),
    "stderr": (lambda: setattr(sys, "stderr", sys.stdout), lambda: sys.stderr),
    "torch's gradients": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
    "torch's floats": (lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype),
    "torch's threads": (lambda: torch.set_num_threads(torch.get_num_threads() + 3), torch.get_num_threads),
}


@pytest.mark.parametrize("fails", [False, True], ids=["made", "fails"])
@pytest.mark.parametrize("name", CHANGES)
def test_what_it_changes_is_put_back(name: str, fails: bool) -> None:
    change, look = CHANGES[name]
    before = look()
    with pytest.raises(ZeroDivisionError) if fails else warnings.catch_warnings(), kept_as_it_was():
        change()
        assert look() != before
        if fails:
            raise ZeroDivisionError
    assert look() == before


def test_warnings_that_it_hides_stay_hidden() -> None:
    with warnings.catch_warnings():
        with kept_as_it_was():
            warnings.filterwarnings("ignore", "of no interest")
        with warnings.catch_warnings(record=True) as seen:
            warnings.warn("of no interest", stacklevel=1)
    assert seen == []


def test_where_torch_is_imported_meanwhile_it_gets_this_ranks_share(monkeypatch: pytest.MonkeyPatch) -> None:
    before, module = torch.get_num_threads(), sys.modules["torch"]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delitem(sys.modules, "torch")
    with kept_as_it_was():
        sys.modules["torch"] = module
        torch.set_num_threads(7)
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


def test_children_of_what_cannot_be_made_are_ended() -> None:
    """Python would wait for them before it ends."""
    context = multiprocessing.get_context("fork")
    before = context.Process(target=time.sleep, args=(60,))
    before.start()
    with pytest.raises(ZeroDivisionError), kept_as_it_was():
        started = context.Process(target=time.sleep, args=(60,))
        started.start()
        raise ZeroDivisionError
    started.join(10)
    assert not started.is_alive() and before.is_alive()
    before.terminate()
    before.join(10)
