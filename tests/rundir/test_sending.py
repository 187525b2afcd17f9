"""A service hears everything in order, and never holds the run up."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dppo.rundir import sending
from dppo.rundir.recorders import Recorders
from dppo.rundir.sending import Point, Sender, settings_of
from dppo.seams import RunInfo

RUN = RunInfo(Path("runs/x"), "1" * 32, {"seed": 1, "ppo": {"clip": 0.2}, "env_kwargs": {"size": 5}}, 4, False, 0)


class Service(Sender):
    """Notes what it is sent. `gate` holds it up; `fails` names a method that raises."""

    def __init__(self, fails: str = "") -> None:
        super().__init__()
        self.heard: list[Any] = []
        self.gate = threading.Event()
        self.gate.set()
        self.fails = fails

    def _note(self, what: str, told: Any) -> None:
        self.gate.wait(10)
        if what == self.fails:
            raise ConnectionError("no route")
        self.heard.append((what, told))

    def open(self, run: RunInfo) -> None:
        self._note("open", run)

    def send(self, points: list[Point]) -> None:
        self._note("send", points)

    def close(self, summary: dict[str, Any]) -> None:
        self._note("close", summary)


def line(iteration: int) -> dict[str, Any]:
    return {"iteration": iteration, "env_steps": 64 * iteration, "loss": 0.5, "lr": None, "cases": {"a": {"n": 1}}}


def test_everything_is_sent_in_order_and_what_waited_is_sent_together() -> None:
    service = Service()
    service.gate.clear()
    service.start(RUN)
    service.iteration(line(1))
    service.evaluation({"env_steps": 64, "return_mean": 3.0, "best": True})
    service.gate.set()
    service.end({"exit": "finished"})
    assert [what for what, _ in service.heard] == ["open", "send", "close"]
    assert service.heard[1][1] == [
        Point(1, 64, {"loss": 0.5, "cases/a/n": 1.0}),
        Point(1, 64, {"evaluation/return_mean": 3.0, "evaluation/best": 1.0}),
    ]
    assert service.heard[2][1] == {"exit": "finished"}


def test_a_service_that_hangs_holds_nothing_up_and_the_end_waits_for_a_bounded_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sending, "END_S", 0.1)
    said: list[str] = []
    service, recorders, since = Service(), Recorders(said.append), time.monotonic()
    recorders.add(service)
    service.gate.clear()
    recorders.start(RUN)
    for number in range(1, 1000):
        recorders.iteration(line(number))
    recorders.end({"exit": "finished"})
    assert time.monotonic() - since < 2
    assert len(said) == 1 and "Service is left out" in said[0] and "not everything was sent within 0.1 s" in said[0]
    service.gate.set()


def test_a_service_that_falls_behind_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "MOST_WAITING", 3)
    service = Service()
    service.gate.clear()
    service.start(RUN)
    with pytest.raises(TimeoutError, match="3 lines wait to be sent"):
        for number in range(1, 10):
            service.iteration(line(number))
    service.gate.set()


@pytest.mark.parametrize("fails", ["open", "send", "close"])
def test_what_the_thread_raises_is_raised_to_the_run(fails: str) -> None:
    said: list[str] = []
    recorders, service = Recorders(said.append), Service(fails)
    recorders.add(service)
    recorders.start(RUN)
    recorders.iteration(line(1))
    recorders.end({"exit": "finished"})
    recorders.end({"exit": "finished"})
    assert len(said) == 1 and "ConnectionError: no route" in said[0]


def test_an_end_without_a_start_does_nothing() -> None:
    Service().end({"exit": "failed"})


def test_settings_are_a_flat_table() -> None:
    assert settings_of(RUN) == {"seed": 1, "ppo.clip": 0.2, "env_kwargs.size": 5}
