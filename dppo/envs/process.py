"""What of this process the making of environments must not change: numbers, speed and messages rest on it."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np


@contextlib.contextmanager
def kept_as_it_was() -> Iterator[None]:
    """Afterwards are what they were: what NumPy does about overflow, warnings that are raised as errors, torch's
    threads, gradients and type of floats, the output streams, and the mode of new files. The working directory is left
    where it is: environments may read files there, and all paths of a run are absolute.

    Where it fails, what multiprocessing has started meanwhile is ended: Python would wait for it before it ends.
    """
    errors, streams, mask = np.geterr(), (sys.stdout, sys.stderr), os.umask(0o077)
    os.umask(mask)
    threads, torch = _torch_threads(), _torch_settings()
    filters = warnings.catch_warnings()
    filters.__enter__()
    fatal, children = _fatal(), _children()
    try:
        yield
    except BaseException:
        for child in _children() - children:
            child.terminate()
        raise
    finally:
        if _fatal() != fatal:  # one that only hides warnings stays: its author does not want to see them
            filters.__exit__(None, None, None)
        np.seterr(**errors)
        sys.stdout, sys.stderr = streams
        os.umask(mask)
        _set_torch_threads(threads or os.environ.get("OMP_NUM_THREADS", ""))
        _set_torch(torch)


def _fatal() -> list[object]:
    """The filters that make errors of warnings."""
    return [which for which in warnings.filters if which[0] == "error"]


def _children() -> set[Any]:
    """Those of multiprocessing, where somebody uses it."""
    return set(sys.modules["multiprocessing"].active_children()) if "multiprocessing" in sys.modules else set()


def _torch_settings() -> tuple[bool, str]:
    """Whether it keeps gradients, and its type of floats; what they are at first where it is not imported yet."""
    torch = sys.modules.get("torch")
    return (True, "torch.float32") if torch is None else (torch.is_grad_enabled(), str(torch.get_default_dtype()))


def _set_torch(settings: tuple[bool, str]) -> None:
    if "torch" in sys.modules and settings != _torch_settings():
        torch, (keeps_gradients, floats) = sys.modules["torch"], settings
        torch.set_grad_enabled(keeps_gradients)
        torch.set_default_dtype(getattr(torch, floats.removeprefix("torch.")))


def _torch_threads() -> str:
    """Empty where torch is not imported yet."""
    return str(sys.modules["torch"].get_num_threads()) if "torch" in sys.modules else ""


def _set_torch_threads(number: str) -> None:
    if "torch" in sys.modules and number.isdigit() and number != _torch_threads():
        sys.modules["torch"].set_num_threads(int(number))
