"""The groups of an environment on several ranks: how the world is divided, and what a head and its followers send.

A message carries a number, which the answers repeat: an answer to a call that the head has given up is not taken for
another one. A rank that waits sleeps, and is woken by a ring.

If a rank of a group dies, all of the group die: the others of the job see the death of a worker.
"""

from __future__ import annotations

import contextlib
import pickle
import socket
import struct
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from dppo.cluster.launcher import survives_deaths
from dppo.cluster.startup import own_cores
from dppo.comm.collectives import gather_all
from dppo.comm.leaving import die
from dppo.comm.mpi import MPI
from dppo.comm.ulfm import deaths_noticed
from dppo.comm.waiting import Backoff
from dppo.comm.wakeup import make_doorbell
from dppo.console import say
from dppo.envs.group_link import Call, Failed
from dppo.errors import RankFailure, WorkerError
from dppo.run.group_messages import CallCodec

HEAD = 0
"""The head's rank within its group."""
_CALL, _ANSWER = 1, 2
_SERIAL = struct.Struct("<q")
REVOKE_AFTER_S, GIVE_UP_AFTER_S = 0.2, 5.0
"""Seconds after an error of one rank that the others get to leave the environment's own operations of MPI: with ULFM,
until these are interrupted; without, until the group counts as stuck."""


@dataclass(frozen=True)
class Seat:
    """Where a rank of the job runs."""

    host: str
    cores: frozenset[int]


def look_around(comm: MPI.Comm) -> list[Seat]:
    """Collective over `comm`. Returns the seats of all ranks."""
    return gather_all(comm, Seat(socket.gethostname(), own_cores()))


def divide(comm: MPI.Comm, ranks_each: int, seats: Sequence[Seat]) -> tuple[MPI.Comm, EnvGroup | None]:
    """Collective over `comm`, which has 1 + W * `ranks_each` ranks. Returns the communicator of those that train, which
    are rank 0 and the heads (on followers: that of all followers), and this rank's group; rank 0 has none.
    """
    number, place = divmod(comm.rank - 1, ranks_each)
    training = comm.Split(int(comm.rank > 0 and place > 0), comm.rank)
    mine = comm.Split(number if comm.rank else MPI.UNDEFINED, comm.rank)
    if mine == MPI.COMM_NULL:
        return training, None
    first = comm.rank - place
    own = seats[first : first + ranks_each]
    return training, EnvGroup(mine, number, first, own, crowded=is_crowded(own, seats))


def is_crowded(own: Sequence[Seat], seats: Sequence[Seat]) -> bool:
    """Returns whether a node of the seats `own` has more ranks than cores, so that a rank that waits must sleep."""
    cores: dict[str, set[int]] = defaultdict(set)
    for seat in seats:
        cores[seat.host] |= seat.cores
    ranks = Counter(seat.host for seat in seats)
    return any(ranks[seat.host] > len(cores[seat.host]) for seat in own)


class WholeOrDead:
    """Calls `on_death` where an operation inside it notices that another rank of the group has died.

    A class, as a generator would take 20 µs more where caches are cold.
    """

    def __init__(self, on_death: Callable[[str], None]) -> None:
        self._on_death = on_death

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is None:
            return False
        try:
            with deaths_noticed():
                raise error
        except RankFailure as death:
            self._on_death(str(death))
        return True


class EnvGroup:
    """The ranks that are one environment, seen from one of them.

    Args:
      comm: the group's own communicator, for dppo; the head is its rank 0.
      number: the group's, from 0; it is that of the worker.
      first: the head's rank in the job.
      seats: of the group's ranks.
      crowded: whether a node of the group has more ranks than cores.

    Attributes:
      heartbeat: called with the phase while this rank, a follower, waits or works.
    """

    def __init__(self, comm: MPI.Comm, number: int, first: int, seats: Sequence[Seat], *, crowded: bool) -> None:
        self.comm, self.number, self.seats = comm, number, seats
        self.heartbeat: Callable[[str], None] = lambda phase: None
        self.first = first
        self._doorbell = make_doorbell(comm)
        self._doorbell.crowded = crowded
        self._others = [rank for rank in range(comm.size) if rank != comm.rank]
        hears_from = self._others if self.is_head else [HEAD]
        self._all_ring = all(map(self._doorbell.reaches, hears_from))
        self._backoff = Backoff(self._doorbell, all_ring=self._all_ring)
        self._whole_or_dead = WholeOrDead(self._on_death)
        self._codec = CallCodec()
        self._status = MPI.Status()
        self._serial = 0
        self._sent: list[tuple[MPI.Request, bytes]] = []
        self._opened: dict[int, MPI.Comm] = {}
        self._stuck = ""
        self._rests = False

    @property
    def is_head(self) -> bool:
        return bool(self.comm.rank == HEAD)

    @property
    def rank(self) -> int:
        """This rank's number in the job."""
        return self.first + int(self.comm.rank)

    @property
    def name(self) -> str:
        """Rank and host, for messages."""
        return self._name_of(self.comm.rank)

    def _name_of(self, rank: int) -> str:
        return f"rank {self.first + rank} on {self.seats[rank].host}"

    # -- communicators of environments --------------------

    def open(self, number: int) -> MPI.Comm:
        """Collective over the group. Returns a new communicator for environment `number`."""
        with self._whole_or_dead:
            self._opened[number] = self.comm.Dup()
        return self._opened[number]

    def is_given_up(self, number: int) -> bool:
        """Returns whether some rank has given up the environment's communicator, because of an error."""
        comm = self._opened.get(number, MPI.COMM_NULL)
        return survives_deaths() and comm != MPI.COMM_NULL and bool(comm.Is_revoked())

    def _give_up(self, number: int) -> None:
        """Interrupts all ranks that wait in the environment's communicator."""
        comm = self._opened.get(number, MPI.COMM_NULL)
        if survives_deaths() and comm != MPI.COMM_NULL and not comm.Is_revoked():
            with contextlib.suppress(MPI.Exception):
                comm.Revoke()

    # -- the head's part --------------------

    def tell(self, call: Call, number: int = 0, arguments: Any = None) -> None:
        """Tells the followers to make a call of environment `number`; never waits."""
        if self._stuck and call not in (Call.RUN, Call.LEAVE):
            raise RuntimeError(self._stuck)
        self._serial += 1
        message = self._codec.encode(self._serial, call, number, arguments)
        with self._whole_or_dead:
            self._forget_sent()
            for rank in self._others:
                self._sent.append((self.comm.Isend([message, MPI.BYTE], rank, _CALL), message))
                self._doorbell.ring(rank)

    def answers(self, number: int, *, has_failed: bool) -> list[Failed]:
        """Waits until all followers have made the call. Returns the failures.

        Args:
          has_failed: whether the head's own call has failed, so that followers may wait in vain for the head.
        """
        missing, failed = set(self._others), list[Failed]()
        backoff, since = self._backoff, time.monotonic() if has_failed else None
        backoff.reset()
        came_back = False
        try:
            while missing:
                with self._whole_or_dead:
                    answer = self._receive(MPI.ANY_SOURCE, _ANSWER)
                if answer is None:
                    backoff.pause()
                elif _SERIAL.unpack_from(answer.data)[0] == self._serial:
                    backoff.reset()
                    missing.discard(self._status.Get_source())
                    if len(answer) > _SERIAL.size:
                        failed.append(Failed(*pickle.loads(answer[_SERIAL.size :].data)))
                        since = since or time.monotonic()
                if since is not None and missing and time.monotonic() - since > self._patience_s:
                    if not survives_deaths():
                        break
                    self._give_up(number)
            came_back = not missing
        finally:  # also where a wait for a close() was interrupted
            if not came_back:
                names = ", ".join(map(self._name_of, sorted(missing)))
                self._stuck = f"{names}: still in a call of the environment after an error or a limit of time"
        return failed

    @property
    def is_stuck(self) -> bool:
        """Whether followers have not come out of a call, so that no further one is possible."""
        return bool(self._stuck)

    @property
    def _patience_s(self) -> float:
        return REVOKE_AFTER_S if survives_deaths() else GIVE_UP_AFTER_S

    def rest(self) -> None:
        """Notes that the head has no environment any more: a follower's death does not concern it from here on."""
        self._rests = True

    def wake(self) -> bool:
        """Ends the rest. Returns whether all followers are there."""
        self._rests = False
        return not self.comm.Is_revoked() and not self.comm.Get_failed().size

    def dismiss(self, outcome: object) -> None:
        """Tells the followers to follow no more, and why: an outcome of the start or of the run."""
        self.tell(Call.LEAVE, arguments=outcome)

    # -- a follower's part --------------------

    def next_call(self) -> tuple[Call, int, Any]:
        """Waits, mostly asleep, for the next call: which, of which environment, its arguments."""
        self._backoff.reset()
        while True:
            with self._whole_or_dead:
                message = self._receive(HEAD, _CALL)
            if message is not None:
                break
            self.heartbeat("exchange")
            self._backoff.pause()
        self.heartbeat("collect")
        self._serial, *told = self._codec.decode(message)
        return told[0], told[1], told[2]

    def answer(self, number: int, failed: Failed | None) -> None:
        """Tells the head how the call went.

        Raises:
          WorkerError: the call has failed here, and the head does not come out of its own, as it waits for this rank in
            an operation of the environment that nobody can interrupt.
        """
        message = _SERIAL.pack(self._serial) + (b"" if failed is None else pickle.dumps(tuple(failed)))
        with self._whole_or_dead:
            self._forget_sent()
            if failed is None:
                self._sent.append((self.comm.Isend([message, MPI.BYTE], HEAD, _ANSWER), message))
                self._doorbell.ring(HEAD)
                return
            self.end_if_broken()
            taken, since = self.comm.Issend([message, MPI.BYTE], HEAD, _ANSWER), time.monotonic()
            self._doorbell.ring(HEAD)
            while not taken.Test():
                if time.monotonic() - since > self._patience_s:
                    if not survives_deaths():
                        raise WorkerError(
                            f"{failed.who} failed in the environment of group {self.number}:\n{failed.trace}"
                        )
                    self._give_up(number)
                time.sleep(0.001)

    def wait_for_goodbye(self, limit_s: float) -> None:
        """Waits until the head leaves, so that all leave together; the head says so by a second LEAVE."""
        deadline = time.monotonic() + limit_s
        with contextlib.suppress(MPI.Exception):
            while self._receive(HEAD, _CALL) is None and time.monotonic() < deadline:
                time.sleep(0.005)

    # -- both --------------------

    def _receive(self, source: int, tag: int) -> np.ndarray | None:
        """Receives a message, [bytes] uint8, if there is one; never waits."""
        if not self.comm.Iprobe(source, tag, self._status):
            return None
        message = np.empty(self._status.Get_count(MPI.BYTE), np.uint8)
        self.comm.Recv([message, MPI.BYTE], self._status.Get_source(), tag, self._status)
        return message

    def _forget_sent(self) -> None:
        self._sent = [pair for pair in self._sent if not pair[0].Test()]

    def free(self) -> None:
        """Frees the group's communicator, at the end of a job without deaths."""
        for request, _ in self._sent:
            request.Wait()
        self.comm.Free()

    def _on_death(self, text: str) -> None:
        """Ends this rank; a head that rests only has the others end."""
        if not self._rests:
            self._die(text)
        with contextlib.suppress(MPI.Exception):
            self.comm.Revoke()

    def end_if_broken(self) -> None:
        """Ends this rank if another one of the group has died, as an error of the environment may only tell."""
        if survives_deaths() and self.comm.Get_failed().size:
            self._die("a death")

    def _die(self, why: str) -> NoReturn:
        """Ends this rank, and so its group: what waits for it is interrupted first."""
        for comm in (self.comm, *self._opened.values()):
            if comm != MPI.COMM_NULL:
                with contextlib.suppress(MPI.Exception):
                    comm.Revoke()
        dead: list[int] = []
        with contextlib.suppress(MPI.Exception):
            failed = self.comm.Get_failed()
            dead = [r for r in failed.Translate_ranks(None, self.comm.Get_group()) if r >= 0]
        if self.is_head or HEAD in dead:
            who = ", ".join(map(self._name_of, dead)) or why
            say(f"group {self.number}: {who} has died, and {self.name} with it: a group lives and dies as one")
        die()
