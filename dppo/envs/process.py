"""Keeps the making of environments from changing what a process's numbers, speed and messages depend on."""

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
    """Restores afterwards what NumPy does about overflow, which warnings are raised as errors, torch's threads,
    gradients and type of floats, the output streams, and the mode of new files. Leaves the working directory where it
    is: environments may read files there, and all paths of a run are absolute.

    After an error, ends what multiprocessing has started meanwhile: Python would wait for that before it ends.
    """
    errors, streams, mask = np.geterr(), (sys.stdout, sys.stderr), os.umask(0o077)
    os.umask(mask)
    torch = _torch_settings()
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
        if _fatal() != fatal:  # a filter that only hides warnings stays: its author does not want to see them
            filters.__exit__(None, None, None)
        np.seterr(**errors)
        sys.stdout, sys.stderr = streams
        os.umask(mask)
        _set_torch(torch)


@contextlib.contextmanager
def printing_to_stderr() -> Iterator[None]:
    """Sends to standard error what is printed on standard output, also by child processes and code in C."""
    with contextlib.ExitStack() as afterwards, contextlib.redirect_stdout(sys.stderr):
        with contextlib.suppress(OSError):  # where one of the two is closed
            kept = os.dup(1)
            afterwards.callback(os.close, kept)
            os.dup2(2, 1)
            afterwards.callback(os.dup2, kept, 1)
        yield


def _fatal() -> list[object]:
    """Returns the filters that turn warnings into errors."""
    return [which for which in warnings.filters if which[0] == "error"]


def _children() -> set[Any]:
    """Returns the children of multiprocessing, where somebody uses it."""
    return set(sys.modules["multiprocessing"].active_children()) if "multiprocessing" in sys.modules else set()


def _torch_settings() -> tuple[str, bool, str]:
    """Returns torch's threads, whether it keeps gradients, and its type of floats. Where torch is not imported yet,
    returns what these are to be.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return os.environ.get("OMP_NUM_THREADS", ""), True, "torch.float32"
    return str(torch.get_num_threads()), torch.is_grad_enabled(), str(torch.get_default_dtype())


def _set_torch(settings: tuple[str, bool, str]) -> None:
    if "torch" not in sys.modules or settings == _torch_settings():
        return
    torch, (threads, keeps_gradients, floats) = sys.modules["torch"], settings
    if threads.isdigit() and threads != str(torch.get_num_threads()):
        torch.set_num_threads(int(threads))
    torch.set_grad_enabled(keeps_gradients)
    torch.set_default_dtype(getattr(torch, floats.removeprefix("torch.")))
