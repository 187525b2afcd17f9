"""The parameter server: the messages to rank 0, and its answers.

Two parts:

- `ParameterServer`: pure. It gathers version-tagged vectors until a quorum is there, and says whom to answer.
- `serve`: rank 0's loop. It polls for messages, hands them to a `Coordinator` and sends the coordinator's answers;
  between messages it sleeps.
"""

from __future__ import annotations

import pickle
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dppo.cluster.timeline import Timeline
from dppo.comm.mpi import MPI
from dppo.comm.waiting import Backoff
from dppo.comm.wakeup import Doorbell
from dppo.seams import Answer, Coordinator, Tag


class Round(NamedTuple):
    """The effect of a vector that has reached the server."""

    total: np.ndarray | None
    """The sum over the quorum, in rank order, if this vector completed the quorum."""
    answer: Sequence[int]
    """Workers that wait for the outcome of this round or, if `total` is None, one that came too late."""
    weight: float = 1.0
    """Weight of the step that is made from `total`: the least among the quorum."""


class ParameterServer:
    """Gathers vectors tagged with the version they were computed from. A full quorum closes a round: version + 1.

    Quorum W is fully synchronous, W - D drops stragglers (Heess et al. 2017), 1 is A3C; Zhang et al. 2016 call the
    family n-softsync. A vector whose weight is 0 is too late: it is counted, but never added to another round.

    Args:
      weight: staleness -> weight of the step; 0 drops. Synchronous: 1 for 0, else 0.
    """

    def __init__(self, num_workers: int, quorum: int, weight: Callable[[int], float]) -> None:
        assert 1 <= quorum <= num_workers
        self.version = 0
        self.late = 0
        self.staleness: Counter[int] = Counter()
        self._quorum, self._weight = quorum, weight
        self._arrived: dict[int, np.ndarray] = {}
        self._least_weight = 1.0

    def handle(self, worker: int, version: int, vector: np.ndarray, *, is_gradient: bool) -> Round:
        """Takes in a vector, which is kept, not copied."""
        staleness = self.version - version
        if is_gradient:
            self.staleness[staleness] += 1
        weight = self._weight(staleness)
        if weight == 0.0:
            self.late += 1
            return Round(None, (worker,))
        assert worker not in self._arrived, f"worker {worker} sent twice in round {self.version}"
        self._arrived[worker] = vector
        self._least_weight = min(self._least_weight, weight)
        if len(self._arrived) < self._quorum:
            return Round(None, ())
        order = sorted(self._arrived)
        total = self._arrived[order[0]]
        for w in order[1:]:
            total += self._arrived[w]
        least, self._least_weight = self._least_weight, 1.0
        self._arrived = {}
        self.version += 1
        return Round(total, order, least)


SERVED_S = 0.1
"""Seconds of rank 0 that are one span of the timeline, and one iteration of its own."""


def serve(
    comm: MPI.Comm,
    coordinator: Coordinator,
    first_worker_rank: int,
    doorbell: Doorbell | None = None,
    heartbeat: Callable[[str], None] = lambda phase: None,
    timeline: Timeline | None = None,
) -> None:
    """Runs rank 0's loop until the run has ended. Not collective: it only answers. Calls `heartbeat` in every pass.
    Tells the timeline, if there is one, of each message, and of the waiting for it.
    """
    status = MPI.Status()
    all_ring = doorbell is not None and all(doorbell.reaches(r) for r in range(first_worker_rank, comm.size))
    backoff = Backoff(doorbell, all_ring=all_ring)
    sent: list[tuple[MPI.Request, np.ndarray]] = []
    since = idle_since = time.monotonic()
    while not coordinator.done:
        heartbeat("serve")
        if comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG, status):
            message = np.empty(status.Get_count(MPI.BYTE), np.uint8)
            comm.Recv([message, MPI.BYTE], status.Get_source(), status.Get_tag())
            worker = status.Get_source() - first_worker_rank
            came = time.monotonic() if timeline is not None else 0.0
            answers = dispatch(coordinator, worker, Tag(status.Get_tag()), message)
            backoff.reset()
            if timeline is not None:
                now = time.monotonic()
                timeline.part("wait", idle_since, came)
                timeline.part("exchange", came, now)
                idle_since = now
                if now - since > SERVED_S:
                    timeline.whole("serve", since, now)
                    timeline.iteration(since, now)
                    since = now
        else:
            answers = coordinator.idle()
            sent = _unfinished(sent)
            if not answers:
                backoff.pause()
        for answer in answers:
            rank = answer.worker + first_worker_rank
            sent.append((comm.Isend([answer.message, MPI.BYTE], rank, int(answer.tag)), answer.message))
            if doorbell is not None:
                doorbell.ring(rank)
        if len(sent) > comm.size:  # the loop is never idle; more than one message on its way to each worker is rare
            sent = _unfinished(sent)
    for request, _ in [] if coordinator.abandoned else sent:  # a worker that is stuck receives nothing more
        request.Wait()


def _unfinished(sent: list[tuple[MPI.Request, np.ndarray]]) -> list[tuple[MPI.Request, np.ndarray]]:
    """Returns the messages that are still on their way. One call tests all, because each call that finds nothing gives
    the core away.
    """
    done = MPI.Request.Testsome([request for request, _ in sent]) if sent else None
    return [pair for i, pair in enumerate(sent) if i not in done] if done else sent


def dispatch(coordinator: Coordinator, worker: int, tag: Tag, message: np.ndarray) -> list[Answer]:
    """Calls the coordinator's method for a message. Returns the answers."""
    if tag == Tag.REPORT:
        return coordinator.on_report(pickle.loads(message.tobytes()))
    if tag == Tag.SUMS:
        vector = message.view(np.float64)
        return coordinator.on_sums(worker, int(vector[0]), vector[1:])
    if tag == Tag.GRADIENT:
        version = int(message[-8:].view(np.int64)[0])
        return coordinator.on_gradient(worker, version, message[:-8].view(np.float32))
    if tag == Tag.BOUNDARY:
        return coordinator.on_boundary(worker, message)
    if tag == Tag.FETCH:
        return coordinator.on_fetch(worker)
    if tag == Tag.FAILURE:
        return coordinator.on_failure(worker, message.tobytes().decode(errors="replace"))
    if tag == Tag.SIGNAL:
        return coordinator.on_signal()
    if tag == Tag.SEALED:
        return coordinator.on_sealed(pickle.loads(message.tobytes()))
    assert tag == Tag.BYE, tag
    return coordinator.on_bye(worker)
