"""Wake-up calls among the ranks of one node, so that a rank that waits sleeps and is woken at once.

MPI's own waits spin. Where ranks outnumber cores, the scheduler gives a spinning rank as much of a core as a computing
rank: thirty ranks that wait leave one thirty-first of the core to the rank that works.
"""

from __future__ import annotations

import itertools
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Collection

from dppo.cluster.startup import own_cores
from dppo.comm.collectives import gather_all
from dppo.comm.mpi import MPI
from dppo.comm.sharing import Counters, share


class Neighbours:
    """The ranks on this rank's node, and whether the node has a core, and a GPU, for each of them.

    Collective over `comm`, once, at start-up.

    Args:
      gpus: the GPUs that this rank may use, by their names on the node; where a node has none, they do not count.
    """

    def __init__(self, comm: MPI.Comm, gpus: Collection[str] = ()) -> None:
        mine = socket.gethostname(), own_cores(), frozenset(gpus)
        everyone = gather_all(comm, mine)
        self.rank = comm.rank
        self.ranks = [rank for rank, (host, *_) in enumerate(everyone) if host == mine[0]]
        cores: dict[str, set[int]] = defaultdict(set)
        cards: dict[str, set[str]] = defaultdict(set)
        for host, its_cores, its_gpus in everyone:
            cores[host] |= its_cores
            cards[host] |= its_gpus
        self.num_cores = len(cores[mine[0]])
        """Number of cores that the ranks of this node together may run on."""
        learners = {host: min(len(cores[host]), len(cards[host]) or len(everyone)) for host in cores}
        self.num_learners = min(learners[mine[0]], len(self.ranks))
        """The most ranks of this node that each have a core and, if the node has any, a GPU."""
        ranks = Counter(host for host, *_ in everyone)
        self.crowded = len(self.ranks) > self.num_cores
        """Whether this node has more ranks than cores, so that a rank that waits must sleep."""
        self.any_crowded = any(ranks[host] > learners[host] for host in ranks)
        """Whether any node has more ranks than cores, or than GPUs; the same on all ranks."""

    def groups(self) -> list[list[int]]:
        """Returns the ranks of this node, in order, in `num_learners` groups whose sizes differ by at most one."""
        count = self.num_learners
        edges = [len(self.ranks) * i // count for i in range(count + 1)]
        return [self.ranks[start:stop] for start, stop in itertools.pairwise(edges)]


class Doorbell:
    """A rank's bell, and the way to its neighbours' bells.

    A ring says: look at MPI's queues. No result depends on rings: without them (another node, or a node without shared
    memory) a wait only takes as long as its timeout.

    Args:
      bells: a counter for each neighbour, in the order of `neighbours.ranks`; None: no rank can ring.
    """

    def __init__(self, neighbours: Neighbours, bells: Counters | None) -> None:
        self.crowded = neighbours.crowded
        self._bells = bells
        self._mine = neighbours.ranks.index(neighbours.rank)
        self._others = {rank: i for i, rank in enumerate(neighbours.ranks) if i != self._mine and bells is not None}
        self._seen = 0

    def reaches(self, rank: int) -> bool:
        """Returns whether that rank announces its messages by a ring."""
        return rank in self._others

    def ring(self, rank: int) -> None:
        """Wakes `rank` if it is on this node; never waits."""
        if self._bells is not None and (place := self._others.get(rank)) is not None:
            self._bells.count_up(place)

    def wait(self, longest_s: float) -> None:
        """Sleeps until a neighbour rings, or for `longest_s`."""
        if not self._others:  # no rank can ring
            time.sleep(longest_s)
        elif self._bells is not None and not self.has_rung():
            self._bells.sleep(self._mine, self._seen, longest_s)
            self._seen = self._bells[self._mine]

    def has_rung(self) -> bool:
        """Returns whether a neighbour has rung since the last call of this or of `wait`; never waits."""
        before = self._seen
        self._seen = before if self._bells is None else self._bells[self._mine]
        return self._seen != before


def make_doorbell(comm: MPI.Comm) -> Doorbell:
    """Collective over `comm`. Makes this rank's doorbell."""
    neighbours = Neighbours(comm)
    memory = share(comm, neighbours.ranks, 4 * len(neighbours.ranks))
    return Doorbell(neighbours, None if memory is None else Counters(memory))
