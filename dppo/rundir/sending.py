"""A recorder that sends what it is told to a service, in a thread of its own: training never waits for a network."""

from __future__ import annotations

import queue
import threading
from typing import Any, NamedTuple

from dppo.rundir.recorders import flat
from dppo.seams import Recorder, RunInfo

END_S = 20.0
"""Seconds that the end of a run waits for a service at most."""
MOST_WAITING = 10_000
"""Lines that may wait for a service; one that is further behind is given up."""


class Point(NamedTuple):
    """The numbers of one line of metrics.jsonl or evaluations.jsonl."""

    iteration: int
    """The last iteration of training that was told."""
    env_steps: int
    values: dict[str, float]
    """By name: `loss`, `cases/cold/episodes`, `evaluation/return_mean`."""


class Sender(Recorder):
    """Passes everything on to `open`, `send` and `close`, which the thread calls. What they raise is raised by the next
    method that is told something.
    """

    def __init__(self) -> None:
        self._waiting = queue.Queue[tuple[str, Any]](MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name=type(self).__name__, daemon=True)
        self._problem: Exception | None = None
        self._iteration = 0

    def open(self, run: RunInfo) -> None:
        """Begins, or goes on with, the service's run."""
        raise NotImplementedError

    def send(self, points: list[Point]) -> None:
        """Sends one line or several."""
        raise NotImplementedError

    def close(self, summary: dict[str, Any]) -> None:
        """Sends the summary, and ends the service's run."""
        raise NotImplementedError

    # -- what the run tells --------------------

    def start(self, run: RunInfo) -> None:
        self._thread.start()
        self._put("open", run)

    def iteration(self, line: dict[str, Any]) -> None:
        self._iteration = line["iteration"]
        self._put("send", self._point(line, ""))

    def evaluation(self, line: dict[str, Any]) -> None:
        self._put("send", self._point(line, "evaluation/"))

    def end(self, summary: dict[str, Any]) -> None:
        if self._thread.ident is None:
            return
        self._put("close", summary)
        self._thread.join(END_S)
        if self._thread.is_alive():
            raise TimeoutError(f"not everything was sent within {END_S:g} s")
        self._raise_problem()

    def _point(self, line: dict[str, Any], where: str) -> Point:
        values = {
            name: float(value)
            for name, value in flat(line, where).items()
            if isinstance(value, int | float) and name.removeprefix(where) not in ("iteration", "env_steps")
        }
        return Point(self._iteration, line["env_steps"], values)

    def _put(self, what: str, told: Any) -> None:
        self._raise_problem()
        try:
            self._waiting.put_nowait((what, told))
        except queue.Full:
            raise TimeoutError(f"{MOST_WAITING:,} lines wait to be sent") from None

    def _raise_problem(self) -> None:
        if self._problem is not None:
            raise self._problem

    # -- the thread --------------------

    def _work(self) -> None:
        try:
            what = ""
            while what != "close":
                what, told = self._waiting.get()
                points: list[Point] = []
                while what == "send":
                    points.append(told)
                    if self._waiting.empty():
                        break
                    what, told = self._waiting.get()
                if points:
                    self.send(points)
                if what == "open":
                    self.open(told)
                elif what == "close":
                    self.close(told)
        except (Exception, SystemExit) as error:  # of a library that is not ours
            self._problem = error if isinstance(error, Exception) else RuntimeError(f"SystemExit: {error}")


def settings_of(run: RunInfo) -> dict[str, Any]:
    """Returns every setting as a flat table: {"seed": 0, "ppo.clip": 0.2}."""
    return {name.replace("/", "."): value for name, value in flat(run.config).items()}
