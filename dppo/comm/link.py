"""A worker's end of the conversation with rank 0.

A single rank is worker and server: `LocalLink` calls the coordinator in the same process; nothing else differs.
"""

from __future__ import annotations

import pickle
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from dppo.cluster.timeline import Timeline
from dppo.comm.mpi import MPI
from dppo.comm.server import dispatch
from dppo.comm.waiting import Backoff
from dppo.comm.wakeup import Doorbell
from dppo.data import Report, Rollout
from dppo.seams import Coordinator, Dump, Standby, Tag

NOTHING = np.empty(0, np.uint8)

SERVER = 0
"""Rank of the server."""
POLL_S, CROWDED_POLL_S = 0.002, 0.02
"""Seconds between two looks of a worker for rank 0's messages while it collects."""


class Link:
    """A worker's end of the conversation with rank 0. It sorts what comes in: replies, verdicts, the order to stop.

    Args:
      asked_to_leave: returns whether this process got a signal to save and leave; the link then tells rank 0.
      heartbeat: called with the phase at every row and every update.
      standby: keeps reports, boundaries, and mirrors that rank 0 sends; None if deaths cannot be survived.
      dump: writes trajectories; None if none are written.
    """

    def __init__(
        self,
        asked_to_leave: Callable[[], bool],
        heartbeat: Callable[[str], None] = lambda phase: None,
        standby: Standby | None = None,
        dump: Dump | None = None,
    ) -> None:
        self.stopped = False
        self._standby, self._dump = standby, dump
        self.hurried_in = -1
        """The iteration in which enough workers have finished their rollouts, so that the others may stop."""
        self.may_be_hurried = False
        self._broken: MPI.Exception | None = None
        self.heartbeat = heartbeat
        self.waited_s = 0.0
        self.timeline: Timeline | None = None
        """Notes what this rank does; None: nobody asks."""
        self._asked_to_leave, self._signalled = asked_to_leave, False
        self._replies: deque[np.ndarray] = deque()
        self._verdicts = 0
        self._poll_s, self._next_poll = POLL_S, 0.0

    def _send(self, tag: Tag, message: np.ndarray) -> None:
        """Starts sending uint8 `message`, which the caller does not write again before the next answer."""
        raise NotImplementedError

    def _poll(self) -> bool:
        """Receives one message if there is one; never waits."""
        raise NotImplementedError

    def _take_all(self) -> None:
        """Receives all messages that are there; never waits."""
        while self._poll():
            pass

    def _look(self) -> None:
        """Receives all messages that are there, if a reply may be among them; never waits."""
        self._take_all()

    def _has_rung(self) -> bool:
        """Returns whether rank 0 has announced a message by its ring; False if it cannot ring."""
        return False

    def _take(self, tag: Tag, message: np.ndarray) -> None:
        if tag == Tag.STOP:
            self.stopped = True
        elif tag == Tag.CONTINUE:
            self._verdicts += 1
        elif tag == Tag.HURRY:
            self.hurried_in = int(message.view(np.int64)[0])
        elif tag == Tag.SEAL:
            if self._dump is not None:
                self._dump.seal(int(message.view(np.int64)[0]))
        elif tag == Tag.MIRROR:
            if self._standby is not None:
                self._standby.keep_mirror(message)
        else:
            assert tag == Tag.REPLY, tag
            self._replies.append(message)

    def _backoff(self) -> Backoff:
        return Backoff(None, longest_s=0.002)

    def _wait_for(self, there: Callable[[], object], name: str = "wait") -> None:
        self.heartbeat("exchange")
        since = time.monotonic()
        backoff = self._backoff()
        while not there() and not self.stopped:
            if not self._poll():
                backoff.pause()
        now = time.monotonic()
        self.waited_s += now - since
        if self.timeline is not None:
            self.timeline.part(name, since, now)

    def report(self, report: Report, rollout: Rollout) -> None:
        """Tells rank 0 of a rollout, and has the dump write it, if there is one; nobody waits.

        Raises:
          MPI.Exception: a death has cut the rollout short. Rank 0 was not told of it, and it can be continued.
        """
        if self._broken is not None:
            raise self._broken
        if self._standby is not None:
            self._standby.add_report(report)
        if self._dump is not None:
            self._dump.add(rollout)
        self._send(Tag.REPORT, np.frombuffer(pickle.dumps(report, protocol=5), np.uint8))

    @property
    def keeps_boundaries(self) -> bool:
        """Whether this rank keeps boundaries, to which it may have to step back."""
        return self._standby is not None

    def keep_boundary(self, iteration: int, state: np.ndarray, head_bytes: int) -> None:
        """Keeps the packed `state` after `iteration` iterations, if deaths can be survived (allreduce)."""
        if self._standby is not None:
            self._standby.pass_boundary(iteration, state, head_bytes)

    def keep_totals(self, totals: np.ndarray) -> None:
        """Keeps the statistics of the iteration under way, if deaths can be survived (p2p)."""
        if self._standby is not None:
            self._standby.totals = totals

    def boundary(self, message: np.ndarray) -> None:
        """Sends rank 0 the state at an iteration's end (allreduce, the lead); nobody waits."""
        self._send(Tag.BOUNDARY, message)

    def sums(self, version: int, vector: np.ndarray) -> None:
        """Sends float64 sums, which the server adds up."""
        self._send(Tag.SUMS, np.concatenate(([float(version)], vector)).view(np.uint8))

    def gradient(self, version: int, summed: np.ndarray) -> None:
        """Sends `summed` [P + sums] float32: the flat gradient of parameters `version`, with its metric sums."""
        message = np.empty(summed.nbytes + 8, np.uint8)
        message[:-8] = summed.view(np.uint8)
        message[-8:] = np.array([version], np.int64).view(np.uint8)
        self._send(Tag.GRADIENT, message)

    def fetch(self) -> None:
        """Asks for the server's present state, which comes as a reply."""
        self._send(Tag.FETCH, NOTHING)

    def reply(self, *, wait: bool) -> np.ndarray | None:
        """Returns the server's next reply; None if there is none yet (wait=False) or the run has ended."""
        if wait:
            self._wait_for(lambda: self._replies, "exchange")
        else:
            self._look()
        return self._replies.popleft() if self._replies else None

    def verdict(self) -> bool:
        """Waits for rank 0's verdict on the last boundary. Returns True if the run ends there."""
        self._wait_for(lambda: self._verdicts)
        self._verdicts -= not self.stopped
        return self.stopped

    def stop_requested(self) -> bool:
        """Returns whether rank 0 has ended the run. It looks only now and then: where ranks outnumber cores, each look
        at MPI's queues gives the core away.
        """
        self.heartbeat("update")
        now = time.monotonic()
        if now >= self._next_poll:
            self._next_poll = now + self._poll_s
            self._pass_on()
            self._take_all()
        return self.stopped

    def ends_here(self) -> bool:
        """Returns whether the run has ended within an iteration that this rank may leave; asked between updates."""
        return False

    def interrupted(self) -> bool:
        """Returns whether a rollout ends before its next row: by the run's end, or by a death. `report` raises the
        error of a death later, so that no environment is lost between two rows.
        """
        self.heartbeat("collect")
        now = time.monotonic()
        rung = self.may_be_hurried and self._has_rung()
        if rung or now >= self._next_poll:
            self._next_poll = now + self._poll_s
            try:
                self._pass_on()
                if rung:
                    self._poll()  # this Iprobe moves what the next one sees
                self._take_all()
            except MPI.Exception as error:
                self._broken = error
        return self.stopped or self._broken is not None

    def keep_moving(self) -> None:
        """Moves the messages of a worker that waits long for its neighbours, and shows that it is not stalled."""
        self.heartbeat("exchange")
        self._pass_on()
        self._take_all()

    def _pass_on(self) -> None:
        """Tells rank 0 what has happened in this process: a signal, segments that are on disk."""
        for answer in self._dump.answers() if self._dump is not None else ():
            self._send(Tag.SEALED, np.frombuffer(pickle.dumps(answer, protocol=5), np.uint8))
        if self._asked_to_leave() and not self._signalled:
            self._signalled = True
            self._send(Tag.SIGNAL, NOTHING)

    def failure(self, text: str) -> None:
        """Tells rank 0 that this worker cannot continue."""
        self._send(Tag.FAILURE, np.frombuffer(text.encode(), np.uint8))

    def closed(self) -> None:
        """Tells rank 0 that this worker, which has failed, has closed its environments."""
        self._send(Tag.BYE, NOTHING)

    def bye(self) -> None:
        """Says goodbye, once rank 0's order to stop has come. Everything sent before has arrived when this returns."""
        self._wait_for(lambda: False)
        if self._dump is not None:
            self.heartbeat("checkpoint")
            self._dump.wait()
            self._pass_on()
        self._send(Tag.BYE, NOTHING)


class MPILink(Link):
    """A link to rank 0 in another process."""

    def __init__(
        self,
        comm: MPI.Comm,
        asked_to_leave: Callable[[], bool],
        heartbeat: Callable[[str], None] = lambda phase: None,
        doorbell: Doorbell | None = None,
        standby: Standby | None = None,
        dump: Dump | None = None,
    ) -> None:
        super().__init__(asked_to_leave, heartbeat, standby, dump)
        self._comm, self._doorbell = comm, doorbell
        if doorbell is not None and doorbell.crowded:
            self._poll_s = CROWDED_POLL_S
        self._status = MPI.Status()
        self._sent: list[tuple[MPI.Request, np.ndarray]] = []

    def _send(self, tag: Tag, message: np.ndarray) -> None:
        self._sent = [(r, m) for r, m in self._sent if not r.Test()]
        self._sent.append((self._comm.Isend([message, MPI.BYTE], SERVER, int(tag)), message))
        if self._doorbell is not None:
            self._doorbell.ring(SERVER)

    def _backoff(self) -> Backoff:
        rings = self._doorbell is not None and self._doorbell.reaches(SERVER)
        return Backoff(self._doorbell, all_ring=rings, longest_s=0.002)

    def _look(self) -> None:
        # a look at MPI's queues that finds nothing gives the core away, whose cache is cold when the rank gets it back
        if self._doorbell is not None and self._doorbell.crowded and self._doorbell.reaches(SERVER):
            if not self._doorbell.has_rung():
                return
            self._poll()  # this Iprobe moves what the next one sees
        super()._look()

    def _has_rung(self) -> bool:
        return self._doorbell is not None and self._doorbell.has_rung()

    def _poll(self) -> bool:
        if not self._comm.Iprobe(SERVER, MPI.ANY_TAG, self._status):
            return False
        message = np.empty(self._status.Get_count(MPI.BYTE), np.uint8)
        self._comm.Recv([message, MPI.BYTE], SERVER, self._status.Get_tag())
        self._take(Tag(self._status.Get_tag()), message)
        return True

    def bye(self) -> None:
        super().bye()
        for request, _ in self._sent:
            request.Wait()


class LocalLink(Link):
    """A link to a coordinator in this process, for the single rank that is server and worker at once."""

    def __init__(
        self,
        coordinator: Coordinator,
        asked_to_leave: Callable[[], bool],
        heartbeat: Callable[[str], None] = lambda phase: None,
        dump: Dump | None = None,
    ) -> None:
        super().__init__(asked_to_leave, heartbeat, dump=dump)
        self._coordinator = coordinator

    def _send(self, tag: Tag, message: np.ndarray) -> None:
        for answer in dispatch(self._coordinator, 0, tag, message.copy()):
            self._take(answer.tag, answer.message)

    def ends_here(self) -> bool:
        return self.stop_requested()

    def _poll(self) -> bool:
        answers = self._coordinator.idle()
        for answer in answers:
            self._take(answer.tag, answer.message)
        return bool(answers)
