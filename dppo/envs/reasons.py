"""Says in one line why a user's environment failed: the error, and the line of the user's code that raised it."""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Iterator
from pathlib import Path

import gymnasium

_NOT_THE_USERS = (
    *(f"{Path(file).parent}{os.sep}" for file in (Path(__file__).parent, gymnasium.__file__, importlib.__file__)),
    "<frozen importlib",
)  # the separator, because gymnasium_robotics is not gymnasium


def reason(error: BaseException) -> str:
    """Describes an error as `TypeError: bad operand (my_sim.py:12)`; of errors that cause each other, the first."""
    chain = list(_causes(error))
    for cause in reversed(chain):
        frames = [f for f in traceback.extract_tb(cause.__traceback__) if not f.filename.startswith(_NOT_THE_USERS)]
        if frames:  # the deepest frame of the user's own, rather than of a library that it calls
            own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
            text = _text(cause) if str(cause) else f"{_text(cause)}: {frames[-1].line}".removesuffix(": ")
            return f"{text} ({own[-1].filename}:{own[-1].lineno})"
    return _text(error)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields the error, then each error that the one before was raised from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ if error.__cause__ is not None or error.__suppress_context__ else error.__context__
