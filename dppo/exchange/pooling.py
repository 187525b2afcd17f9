"""Where ranks outnumber cores: one worker per core computes the gradients of its neighbours' samples.

Uses mpi4py, the neighbours' sockets and a piece of shared memory; the synchronous loop hands it batches. Taking turns
on a core for each small update costs more than the update: with 31 workers on 2 cores every turn begins with a cold
cache, and MPI's waits spin besides. So a worker that has collected puts its samples into shared memory and sleeps until
the first of its group has made all updates of the iteration. The average by samples is the same; only who computes it
is another.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from mpi4py import MPI

from dppo.exchange.collectives import all_have
from dppo.exchange.doorbell import Neighbours, bound_socket, set_receive_timeout
from dppo.exchange.recovery import RankFailure

_ALIGNMENT = 64
_OVER = b"!"


class Pool:
    """A group of workers on one node; its first computes.

    The first waits for every member's arrays, and answers when the iteration is over; a member writes again only after
    the answer, which is written again only after all members have written.

    Args:
      slots: [workers of the group, bytes] uint8, shared; slot 0 holds the answer.
      workers: numbers of the workers of the group, in order.
      addresses: of their sockets.
      place: which of them this one is.
    """

    LOOK_S = 0.05

    def __init__(self, slots: np.ndarray, workers: Sequence[int], addresses: Sequence[str], place: int) -> None:
        self._slots, self._workers, self._addresses, self._place = slots, workers, addresses, place
        self._socket = bound_socket(addresses[place])
        set_receive_timeout(self._socket, self.LOOK_S)
        self.computes = place == 0
        self.waited_s = 0.0

    def put(self, arrays: Sequence[np.ndarray]) -> None:
        """A member's arrays, of B rows each; the last one may have another length, always the same."""
        slot = self._slots[self._place]
        slot[:8].view(np.int64)[0] = len(arrays[0])
        for view, array in zip(_views(slot, arrays, len(arrays[0])), arrays, strict=True):
            view[...] = array
        self._wake(self._addresses[0])

    def take(
        self, like: Sequence[np.ndarray], meanwhile: Callable[[], object] = lambda: None
    ) -> list[tuple[int, list[np.ndarray]]]:
        """(worker, arrays) of every member, in order, of the types and widths of `like`; valid until `answer`."""
        for _ in self._addresses[1:]:
            self._sleep(meanwhile)
        members = zip(self._workers[1:], self._slots[1:], strict=True)
        return [(worker, _views(slot, like, int(slot[:8].view(np.int64)[0]))) for worker, slot in members]

    def answer(self, message: np.ndarray) -> None:
        """Wakes the members with uint8 `message`; an empty one says that the run has ended."""
        slot = self._slots[0]
        slot[:8].view(np.int64)[0] = len(message)
        slot[8 : 8 + len(message)] = message
        for address in self._addresses[1:]:
            self._wake(address)

    def wait(self, meanwhile: Callable[[], object] = lambda: None) -> np.ndarray:
        """The answer to what this member has put; a view that is valid until the next `put`."""
        self._sleep(meanwhile)
        slot = self._slots[0]
        return slot[8 : 8 + int(slot[:8].view(np.int64)[0])]

    def _sleep(self, meanwhile: Callable[[], object]) -> None:
        """Until a neighbour wakes this one. `meanwhile` is called first, and each `LOOK_S`: what this rank has sent
        moves only while it calls MPI, and rank 0 may wait for it.
        """
        since = time.monotonic()
        meanwhile()
        while True:
            try:
                if self._socket.recv(1) == _OVER:
                    raise RankFailure("a neighbour has given up the pool")
                break
            except BlockingIOError:
                meanwhile()
        self.waited_s += time.monotonic() - since

    def close(self) -> None:
        """The memory goes with the last view of it."""
        self._socket.close()

    def give_up(self) -> None:
        """Whoever sleeps in this group is told that nothing will come: all regroup."""
        for place, address in enumerate(self._addresses):
            if place != self._place:
                with contextlib.suppress(OSError):
                    self._socket.sendto(_OVER, socket.MSG_DONTWAIT, address)

    def _wake(self, address: str) -> None:
        # refused: it has died, and the launcher ends the job, or all regroup; who failed over it would be named in its
        # place
        with contextlib.suppress(ConnectionRefusedError):
            self._socket.sendto(b"\0", address)


def _views(slot: np.ndarray, like: Sequence[np.ndarray], rows: int) -> list[np.ndarray]:
    """Where the arrays lie in a slot: `rows` rows of each but the last, which is as long as it is."""
    views, start = [], _ALIGNMENT
    for i, array in enumerate(like):
        shape = array.shape if i == len(like) - 1 else (rows, *array.shape[1:])
        num_bytes = int(np.prod(shape)) * array.itemsize
        views.append(slot[start : start + num_bytes].view(array.dtype).reshape(shape))
        start += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
    return views


def slot_bytes(arrays: Sequence[np.ndarray], rows: int) -> int:
    """Room for `put` of arrays like these with at most so many rows."""
    return sum(rows * array[:1].nbytes + _ALIGNMENT for array in arrays[:-1]) + arrays[-1].nbytes + 2 * _ALIGNMENT


def make_pool(
    workers: MPI.Comm,
    num_bytes: int,
    numbers: Sequence[int] | None = None,
    opened: list[MPI.Comm] | None = None,
) -> tuple[Pool | None, MPI.Comm]:
    """Collective over `workers`. This worker's pool, and the communicator of those that compute.

    None, and all of `workers`, where every worker has a core to itself, or the memory for it is not to be had.

    Args:
      numbers: of the workers, where they are not their ranks.
      opened: gets the communicators that are made here, before anyone waits in them: should one die, all are revoked.
    """
    neighbours = Neighbours(workers)
    if not neighbours.any_crowded:
        return None, workers
    mine = next(group for group in neighbours.groups() if workers.rank in group)
    opened = [] if opened is None else opened
    group = workers.Split(color=mine[0], key=workers.rank)
    opened.append(group)
    slots = _shared_slots(group, num_bytes)
    if not all_have(workers, slots):
        if workers.rank == 0:
            print(
                "dppo: workers outnumber cores, and cannot pool their samples, because a node has no shared memory for"
                " them (is /dev/shm full?): training is slower, and its numbers differ by rounding",
                file=sys.stderr,
                flush=True,
            )
        return None, workers
    assert slots is not None
    place = mine.index(workers.rank)
    members = mine if numbers is None else [numbers[rank] for rank in mine]
    pool = Pool(slots, members, [neighbours.address("pool", rank) for rank in mine], place)
    computing = workers.Split(color=int(place > 0), key=workers.rank)
    opened.append(computing)
    return pool, computing


def _shared_slots(group: MPI.Comm, num_bytes: int) -> np.ndarray | None:
    """Collective over `group`. [ranks, bytes] uint8 that all of them see; None, on all, where that fails.

    A file in /dev/shm, which loses its name as soon as all have opened it: nothing is left however the job ends.
    """
    stride = -(-num_bytes // 4096) * 4096
    path, file = "", -1
    if group.rank == 0:
        try:
            file, path = tempfile.mkstemp(prefix="dppo-", dir="/dev/shm")
            os.posix_fallocate(file, 0, group.size * stride)  # else a full /dev/shm is a bus error later
        except OSError:
            if path:
                Path(path).unlink()
            path = ""
    path = group.bcast(path, root=0)
    memory: mmap.mmap | None = None
    try:
        if path:
            file = os.open(path, os.O_RDWR) if group.rank else file
            memory = mmap.mmap(file, group.size * stride)
    except OSError:
        pass
    finally:
        if file >= 0:
            os.close(file)
    complete = all_have(group, memory)
    if group.rank == 0 and path:
        Path(path).unlink(missing_ok=True)
    return np.frombuffer(memory, np.uint8).reshape(group.size, stride) if memory is not None and complete else None
