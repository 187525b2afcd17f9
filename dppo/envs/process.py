"""What of this process the making of environments must not change: numbers, speed and messages rest on it.

Uses NumPy only; `dppo.workplace` and `dppo.evaluate` make environments inside it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator

import numpy as np


@contextlib.contextmanager
def kept_as_it_was() -> Iterator[None]:
    """Afterwards are what they were: what NumPy does about overflow, warnings that are raised as errors, torch's
    threads, the output streams, and the mode of new files. The working directory is left where it is: environments may
    read files there, and all paths of a run are absolute.
    """
    errors, streams, mask = np.geterr(), (sys.stdout, sys.stderr), os.umask(0o077)
    os.umask(mask)
    threads, filters = _torch_threads(), warnings.catch_warnings()
    filters.__enter__()
    fatal = _fatal()
    try:
        yield
    finally:
        if _fatal() != fatal:  # one that only hides warnings stays: its author does not want to see them
            filters.__exit__(None, None, None)
        np.seterr(**errors)
        sys.stdout, sys.stderr = streams
        os.umask(mask)
        _set_torch_threads(threads or os.environ.get("OMP_NUM_THREADS", ""))


def _fatal() -> list[object]:
    """The filters that make errors of warnings."""
    return [which for which in warnings.filters if which[0] == "error"]


def _torch_threads() -> str:
    """Empty where torch is not imported yet."""
    return str(sys.modules["torch"].get_num_threads()) if "torch" in sys.modules else ""


def _set_torch_threads(number: str) -> None:
    if "torch" in sys.modules and number.isdigit() and number != _torch_threads():
        sys.modules["torch"].set_num_threads(int(number))
