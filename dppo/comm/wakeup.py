"""Wake-up calls among the ranks of one node, so that a rank that waits sleeps and is woken at once.

MPI's own waits spin, and where ranks outnumber cores the scheduler gives a spinning rank as much of the core as a
computing one: thirty that wait then leave one thirty-first to the one that works.
"""

from __future__ import annotations

import itertools
import socket
import time
from collections import Counter

from dppo.comm.collectives import gather_all
from dppo.comm.mpi import MPI
from dppo.comm.sharing import Counters, share
from dppo.startup import own_cores


class Neighbours:
    """Who runs on this rank's node, and whether the node has a core for each of them.

    Collective over `comm`, once, at start-up.
    """

    def __init__(self, comm: MPI.Comm) -> None:
        mine = socket.gethostname(), own_cores()
        everyone = gather_all(comm, mine)
        self.rank = comm.rank
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


def _cores(everyone: list[tuple[str, frozenset[int]]], host: str) -> int:
    return len(frozenset().union(*(cores for name, cores in everyone if name == host)))


class Doorbell:
    """A rank's bell, and the way to its neighbours' bells.

    A ring says: look at MPI's queues. Nothing depends on it: a neighbour on another node, or a node without shared
    memory, only makes the wait as long as its timeout.

    Args:
      bells: a counter for each of the neighbours, in their order; None: nobody can ring.
    """

    def __init__(self, neighbours: Neighbours, bells: Counters | None) -> None:
        self.crowded = neighbours.crowded
        self._bells = bells
        self._mine = neighbours.ranks.index(neighbours.rank)
        self._others = {rank: i for i, rank in enumerate(neighbours.ranks) if i != self._mine and bells is not None}
        self._seen = 0

    def reaches(self, rank: int) -> bool:
        """Whether that rank's messages are announced by its ring."""
        return rank in self._others

    def ring(self, rank: int) -> None:
        """Wakes `rank`, if it is on this node; never waits."""
        if self._bells is not None and (place := self._others.get(rank)) is not None:
            self._bells.count_up(place)

    def wait(self, longest_s: float) -> None:
        """Sleeps until somebody rings, or for `longest_s`."""
        if not self._others:  # nobody can ring
            time.sleep(longest_s)
        elif self._bells is not None and not self.has_rung():
            self._bells.sleep(self._mine, self._seen, longest_s)
            self._seen = self._bells[self._mine]

    def has_rung(self) -> bool:
        """Whether somebody has rung since the last wait or question; never waits."""
        before = self._seen
        self._seen = before if self._bells is None else self._bells[self._mine]
        return self._seen != before


def make_doorbell(comm: MPI.Comm) -> Doorbell:
    """Collective over `comm`."""
    neighbours = Neighbours(comm)
    memory = share(comm, neighbours.ranks, 4 * len(neighbours.ranks))
    return Doorbell(neighbours, None if memory is None else Counters(memory))
