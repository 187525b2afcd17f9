"""Stand-ins for who talks in a job: a coordinator that writes down what it hears, a doorbell that notes its rings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI

from dppo.data import Report
from dppo.seams import Answer, Sealed, Tag


class Recorder:
    """A coordinator that writes down what it is told, and answers what it is given to answer."""

    done = False
    abandoned = False

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.answers: list[Answer] = []

    def _hear(self, *what: Any) -> list[Answer]:
        self.heard.append(what)
        answers, self.answers = self.answers, []
        return answers

    def on_report(self, report: Report) -> list[Answer]:
        return self._hear("report", report)

    def on_sums(self, worker: int, version: int, vector: np.ndarray) -> list[Answer]:
        return self._hear("sums", worker, version, vector.tolist())

    def on_gradient(self, worker: int, version: int, summed: np.ndarray) -> list[Answer]:
        return self._hear("gradient", worker, version, summed.tolist(), summed.dtype)

    def on_boundary(self, worker: int, message: np.ndarray) -> list[Answer]:
        return self._hear("boundary", worker, message.tolist())

    def on_fetch(self, worker: int) -> list[Answer]:
        return self._hear("fetch", worker)

    def on_failure(self, worker: int, text: str) -> list[Answer]:
        return self._hear("failure", worker, text)

    def on_signal(self) -> list[Answer]:
        return self._hear("signal")

    def on_bye(self, worker: int) -> list[Answer]:
        return self._hear("bye", worker)

    def on_sealed(self, answer: Sealed) -> list[Answer]:
        return self._hear("sealed", answer)

    def idle(self) -> list[Answer]:
        answers, self.answers = self.answers, []
        return answers


class Until(Recorder):
    """A coordinator of a run that ends when `over` says so."""

    def __init__(self, over: Callable[[], bool]) -> None:
        super().__init__()
        self._over = over

    @property
    def done(self) -> bool:  # type: ignore[override]
        return self._over()

    def idle(self) -> list[Answer]:
        return []


class Enough(Exception):
    """A wait that would go on for ever has been watched for long enough."""


class Bell:
    """A doorbell; on its ring the neighbour takes in the message that it was rung for. Waits take time `now`, and the
    last of `most` is the test's end.
    """

    def __init__(
        self, *, crowded: bool = False, reaches: bool = True, now: list[float] | None = None, most: int = 100
    ) -> None:
        self.crowded, self._reaches, self._now, self._most = crowded, reaches, now or [0.0], most
        self.taken: list[tuple[int, Tag, list[int]]] = []
        self.waits: list[float] = []

    def reaches(self, rank: int) -> bool:
        return self._reaches

    def has_rung(self) -> bool:
        return False

    def ring(self, rank: int) -> None:
        status = MPI.Status()
        assert any(MPI.COMM_SELF.Iprobe(0, MPI.ANY_TAG, status) for _ in range(10)), "rung before it was sent"
        message = np.empty(status.Get_count(MPI.BYTE), np.uint8)
        MPI.COMM_SELF.Recv([message, MPI.BYTE], 0, status.Get_tag())
        self.taken.append((rank, Tag(status.Get_tag()), message.tolist()))

    def wait(self, longest_s: float) -> None:
        if len(self.waits) == self._most:
            raise Enough
        self.waits.append(longest_s)
        self._now[0] += longest_s
