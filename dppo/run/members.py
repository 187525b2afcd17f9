"""Who takes part in a run: its members, their roles, and which replacement gets which worker and rank."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dppo.comm.collectives import gather_all
from dppo.comm.mpi import Comm
from dppo.comm.ulfm import sort

MAX_RESPAWNS = 3
"""The largest number of replacements of one worker: a worker that dies again and again does not die by accident."""


@dataclass(frozen=True)
class Member:
    """A rank, by what stays the same when others die."""

    rank: int
    """The number at the start of the run; a replacement has the number of a dead rank."""
    host: str
    pid: int
    worker: int | None
    """The worker's number; None: the server."""

    @property
    def is_worker(self) -> bool:
        return self.worker is not None

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}"


def first_members(comm: Comm, rank: int | None = None) -> list[Member]:
    """Collective over `comm`. Returns the members at the start of the run, in the order of their ranks.

    Args:
      rank: this rank's number in the job; None: that in `comm`.
    """
    worker = 0 if comm.size == 1 else comm.rank - 1 if comm.rank else None
    return gather_all(comm, Member(comm.rank if rank is None else rank, socket.gethostname(), os.getpid(), worker))


def assign_roles(members: list[Member]) -> list[Member]:
    """Makes the lowest rank the server; a rank that is left alone is a worker, too."""
    first, *rest = members
    if rest:
        return [replace(first, worker=None), *rest]
    return [first if first.is_worker else replace(first, worker=0)]


def reorder(grown: Comm, mine: Member) -> tuple[Comm, list[Member]]:
    """Collective over `grown`. Puts its ranks in the order of their workers, the server first."""
    return sort(grown, 0 if mine.worker is None else 1 + mine.worker, mine)


def to_replace(members: Sequence[Member], num_ranks: int, respawns: Mapping[int, int]) -> tuple[list[int], list[int]]:
    """Returns the missing workers to replace, and the missing workers that have died too often. The worker of a rank
    that is left alone counts as missing: this rank becomes a pure server again once it has a worker.

    Args:
      members: the ranks that are left, the server first.
      num_ranks: the number of ranks at the start of the run.
      respawns: times that each worker was replaced.
    """
    present = {member.worker for member in members} if len(members) > 1 else set()
    missing = [w for w in range(num_ranks - 1) if w not in present]
    wanted = [w for w in missing if respawns.get(w, 0) < MAX_RESPAWNS]
    return wanted, [w for w in missing if w not in wanted]


def free_ranks(
    workers: Sequence[int], members: Sequence[Member], num_ranks: int, ranks_each: int = 1
) -> list[tuple[int, int]]:
    """Returns (worker, rank) of each replacement: the rank that the worker had at the start if it is free, else the
    rank of a server that has died. Ranks of workers that stay dead are used last. A worker that is the head of a group
    of `ranks_each` ranks gets those that the group had at the start or, if one of these is the server, the first ones
    behind those of the start that no other group has.
    """
    taken, given = {member.rank for member in members}, dict[int, int]()
    if ranks_each > 1:
        for worker in workers:
            heads = (1 + ranks_each * place for place in itertools.chain([worker], itertools.count(num_ranks - 1)))
            given[worker] = next(head for head in heads if head not in taken)
            taken.add(given[worker])
        return list(given.items())
    free = set(range(num_ranks)) - taken
    given = {worker: worker + 1 for worker in workers if worker + 1 in free}
    rest = sorted(free - set(given.values()))
    given |= dict(zip((w for w in workers if w not in given), rest, strict=False))
    return [(worker, given[worker]) for worker in workers]
