"""Wake-up calls among the ranks of one node, so that a rank that waits sleeps and is woken at once.

Uses mpi4py and Unix sockets; the server's loop and the workers' links wait through it, pooling.py through the sockets.
MPI's own waits spin, and where ranks outnumber cores the scheduler gives a spinning rank as much of the core as a
computing one: thirty that wait then leave one thirty-first to the one that works.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import struct
import uuid
from collections import Counter

from mpi4py import MPI


class Neighbours:
    """Who runs on this rank's node, and whether the node has a core for each of them.

    Collective over `comm`, once, at start-up.
    """

    def __init__(self, comm: MPI.Comm) -> None:
        mine = socket.gethostname(), frozenset(os.sched_getaffinity(0))
        everyone: list[tuple[str, frozenset[int]]] = comm.allgather(mine)
        self.rank, self.token = comm.rank, comm.bcast(uuid.uuid4().hex, root=0)
        self.ranks = [rank for rank, (host, _) in enumerate(everyone) if host == mine[0]]
        cores = {host: _cores(everyone, host) for host, _ in everyone}
        self.num_cores = cores[mine[0]]
        """That the ranks of this node may run on, together."""
        ranks = Counter(host for host, _ in everyone)
        self.crowded = len(self.ranks) > self.num_cores
        """More ranks than cores here: who waits must sleep."""
        self.any_crowded = any(ranks[host] > cores[host] for host in ranks)
        """So on some node; the same on all ranks."""

    def groups(self) -> list[list[int]]:
        """The ranks of this node in as many groups as there are cores, in order, equal but for one."""
        count = min(self.num_cores, len(self.ranks))
        edges = [len(self.ranks) * i // count for i in range(count + 1)]
        return [self.ranks[start:stop] for start, stop in itertools.pairwise(edges)]

    def address(self, purpose: str, rank: int) -> str:
        """Of a rank's socket, in Linux's abstract namespace: no file is left behind, however the rank ends."""
        return f"\0dppo-{self.token}-{purpose}-{rank}"


def _cores(everyone: list[tuple[str, frozenset[int]]], host: str) -> int:
    return len(frozenset().union(*(cores for name, cores in everyone if name == host)))


def bound_socket(address: str) -> socket.socket:
    """A datagram socket under an address."""
    out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    out.setblocking(True)  # whatever default a simulator has set
    out.bind(address)
    return out


def set_receive_timeout(sock: socket.socket, seconds: float) -> None:
    """The kernel's own timeout: `recv` then raises BlockingIOError. Python's takes another call into the kernel, which
    makes a wake-up several times slower.
    """
    whole = int(seconds)
    microseconds = max(1, int((seconds - whole) * 1e6)) if not whole else int((seconds - whole) * 1e6)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", whole, microseconds))


class Doorbell:
    """A rank's bell, and the way to its neighbours' bells.

    A ring says: look at MPI's queues. Nothing depends on it: a ring that is lost, or a neighbour on another node, only
    makes the wait as long as its timeout.
    """

    TICK_S = 0.015
    """A receive timeout is rounded up to the kernel's ticks, of several ms: shorter waits are left to `select`, which
    is precise, and slower to wake."""

    def __init__(self, neighbours: Neighbours) -> None:
        self.crowded = neighbours.crowded
        self._addresses = {r: neighbours.address("bell", r) for r in neighbours.ranks if r != neighbours.rank}
        self._socket = bound_socket(neighbours.address("bell", neighbours.rank))
        self._timeout_s = -1.0

    def reaches(self, rank: int) -> bool:
        """Whether that rank's messages are announced by its ring."""
        return rank in self._addresses

    def ring(self, rank: int) -> None:
        """Wakes `rank`, if it is on this node; never waits."""
        if (address := self._addresses.get(rank)) is not None:
            # its queue is full of rings, or it has left
            with contextlib.suppress(OSError):
                self._socket.sendto(b"\0", socket.MSG_DONTWAIT, address)

    def wait(self, longest_s: float) -> None:
        """Sleeps until somebody rings, or for `longest_s`."""
        with contextlib.suppress(BlockingIOError):
            if longest_s < self.TICK_S:
                select.select([self._socket], [], [], longest_s)
            else:
                if longest_s != self._timeout_s:
                    set_receive_timeout(self._socket, longest_s)
                    self._timeout_s = longest_s
                self._socket.recv(1)
            while True:  # of many rings one is enough
                self._socket.recv(1, socket.MSG_DONTWAIT)

    def has_rung(self) -> bool:
        """Whether somebody has rung since the last wait or question; never waits."""
        rung = False
        with contextlib.suppress(BlockingIOError):
            while self._socket.recv(1, socket.MSG_DONTWAIT):
                rung = True
        return rung

    def close(self) -> None:
        """Rings are lost after it."""
        self._socket.close()
