"""Gradients and sums added up among the workers, by MPI or, where ranks outnumber cores, in the memory of the node.

Uses mpi4py and the neighbours' sockets; the synchronous loop calls it at its top level.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from mpi4py import MPI

from dppo.exchange.doorbell import Neighbours, bound_socket, set_receive_timeout


class Sum(Protocol):
    """Sums over the workers. Every method is collective over them."""

    is_lead: bool
    """Of all workers the first."""
    holds_sum: bool
    """After `gather`: true of all workers, or of the first of each node, which then works for the others of it."""
    waited_s: float

    def add(self, vector: np.ndarray) -> None:
        """`vector` [n] float32 or float64 becomes the sum over the workers, the same on each to the bit."""

    def gather(self, vector: np.ndarray) -> None:
        """As `add`, for those who hold the sum only; `share` must follow."""

    def share(self, *arrays: np.ndarray) -> None:
        """Those who hold the sum hand their arrays to the others of their node, in place."""


class Allreduce:
    """By MPI, over `comm`, the workers' communicator (COMM_SELF for one worker): all get the sum."""

    def __init__(self, comm: MPI.Comm) -> None:
        self._comm = comm
        self.is_lead, self.holds_sum = comm.rank == 0, True
        self.waited_s = 0.0

    def add(self, vector: np.ndarray) -> None:
        since = time.monotonic()
        self._comm.Allreduce(MPI.IN_PLACE, vector, MPI.SUM)
        self.waited_s += time.monotonic() - since

    def gather(self, vector: np.ndarray) -> None:
        self.add(vector)

    def share(self, *arrays: np.ndarray) -> None:
        pass


class NodeSum:
    """Through memory that the workers of a node share; the first workers of all nodes meet by MPI.

    Every worker copies its vector into a slot of its own and tells the first worker of its node, which adds the slots
    up in the order of ranks, and tells the others. Whoever waits sleeps in the kernel; it is woken once for each sum,
    the first worker once for each neighbour. A slot is written again only after the answer, which is given after it was
    read; the answer is written again only after all have copied it, because only then they send their next.

    Args:
      leads: the first workers of all nodes; used on these only.
      slots: [ranks on this node, bytes] uint8, shared.
      alive: called now and then while waiting, so that a rank whose partner is gone hears of it.
    """

    ALIVE_S = 0.5

    def __init__(
        self, comm: MPI.Comm, neighbours: Neighbours, leads: MPI.Comm, slots: np.ndarray, alive: Callable[[], None]
    ) -> None:
        self._leads, self._slots, self._alive = leads, slots, alive
        self._place = neighbours.ranks.index(comm.rank)
        self._addresses = [neighbours.address("sum", rank) for rank in neighbours.ranks]
        self._socket = bound_socket(self._addresses[self._place])
        set_receive_timeout(self._socket, self.ALIVE_S)
        self.is_lead, self.holds_sum = comm.rank == 0, self._place == 0
        self.waited_s = 0.0

    def add(self, vector: np.ndarray) -> None:
        self.gather(vector)
        self.share(vector)

    def gather(self, vector: np.ndarray) -> None:
        since = time.monotonic()
        slots = self._slots[:, : vector.nbytes].view(vector.dtype)
        if self._place:
            slots[self._place] = vector
            self._socket.sendto(b"\0", self._addresses[0])
        else:
            for _ in self._addresses[1:]:
                self._hear()
            for slot in slots[1:]:
                vector += slot
            if self._leads.size > 1:
                self._leads.Allreduce(MPI.IN_PLACE, vector, MPI.SUM)
        self.waited_s += time.monotonic() - since

    def share(self, *arrays: np.ndarray) -> None:
        since = time.monotonic()
        if self._place:
            self._hear()
        start = 0
        for array in arrays:
            shared = self._slots[0, start : start + array.nbytes].view(array.dtype)
            start += array.nbytes
            if self._place:
                array[...] = shared
            else:
                shared[...] = array
        if self._place == 0:
            for address in self._addresses[1:]:
                self._socket.sendto(b"\0", address)
        self.waited_s += time.monotonic() - since

    def _hear(self) -> None:
        while True:
            try:
                self._socket.recv(1)
                return
            except BlockingIOError:
                self._alive()


def make_sum(comm: MPI.Comm, num_bytes: int, alive: Callable[[], None] = lambda: None) -> Sum:
    """Collective over `comm`, the workers. Sums of vectors of up to `num_bytes`, by whichever way suits the nodes."""
    neighbours = Neighbours(comm)
    if not neighbours.any_crowded:
        return Allreduce(comm)
    node = comm.Split(color=neighbours.ranks[0], key=comm.rank)
    slots = _shared_slots(node, num_bytes)
    leads = comm.Split(color=int(node.rank > 0), key=comm.rank)
    everywhere = comm.allreduce(slots is not None, MPI.LAND)
    if slots is None or not everywhere:
        return Allreduce(comm)
    return NodeSum(comm, neighbours, leads, slots, alive)


def _shared_slots(node: MPI.Comm, num_bytes: int) -> np.ndarray | None:
    """Collective over `node`. [ranks, bytes] uint8 that all ranks of a node see; None, on all, where that fails.

    A file in /dev/shm, which loses its name as soon as all have opened it: nothing is left however the job ends.
    """
    stride = -(-num_bytes // 4096) * 4096
    path, file = "", -1
    if node.rank == 0:
        try:
            file, path = tempfile.mkstemp(prefix="dppo-", dir="/dev/shm")
            os.posix_fallocate(file, 0, node.size * stride)  # else a full /dev/shm is a bus error later
        except OSError:
            path = ""
    path = node.bcast(path, root=0)
    memory: mmap.mmap | None = None
    try:
        if path:
            file = os.open(path, os.O_RDWR) if node.rank else file
            memory = mmap.mmap(file, node.size * stride)
    except OSError:
        pass
    finally:
        if file >= 0:
            os.close(file)
    complete = node.allreduce(memory is not None, MPI.LAND)
    if node.rank == 0 and path:
        Path(path).unlink(missing_ok=True)
    return np.frombuffer(memory, np.uint8).reshape(node.size, stride) if memory is not None and complete else None
