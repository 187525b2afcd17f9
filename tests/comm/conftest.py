"""Fixtures of who talks with whom."""

from __future__ import annotations

import time

import pytest

from dppo.comm.link import LocalLink
from tests.conversation import Recorder


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def link(recorder: Recorder) -> LocalLink:
    return LocalLink(recorder, lambda: False)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which only the test and its bell move."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now
