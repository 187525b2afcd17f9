"""Sums of gradients and statistics over the workers, by MPI."""

from __future__ import annotations

import time

import numpy as np

from dppo.cluster.timeline import Timeline
from dppo.comm.mpi import MPI


class Allreduce:
    """Sums over `comm`, the workers that compute gradients (COMM_SELF for one).

    Args:
      survives: MPI writes into memory of its own: a collective that has failed may leave messages on their way, which
        nobody must read as gradients later.
    """

    def __init__(self, comm: MPI.Comm, *, survives: bool = False) -> None:
        self._comm, self._survives = comm, survives
        self._sums: dict[tuple[int, np.dtype], np.ndarray] = {}
        self._mine, self._most = np.empty(2, np.int64), np.empty(2, np.int64)
        self.is_lead, self.num_ranks = comm.rank == 0, comm.size
        self.waited_s = 0.0
        self.timeline: Timeline | None = None
        """Notes what this rank does; None: nobody asks."""

    def add(self, vector: np.ndarray) -> None:
        """Collective over `comm`. Makes `vector` [n] float32 or float64 the sum over ranks, equal to the bit on all."""
        since = time.monotonic()
        if self._survives:
            key = len(vector), vector.dtype
            if key not in self._sums:
                self._sums[key] = np.empty_like(vector)
            sums = self._sums[key]
            self._comm.Allreduce(vector, sums, MPI.SUM)
            vector[:] = sums
        else:
            self._comm.Allreduce(MPI.IN_PLACE, vector, MPI.SUM)
        now = time.monotonic()
        self.waited_s += now - since
        if self.timeline is not None:
            self.timeline.part("exchange", since, now)

    def agree(self, fingerprint: int) -> bool:
        """Collective over `comm`. Returns whether all ranks have the same fingerprint; the same on all ranks."""
        since = time.monotonic()
        self._mine[:] = fingerprint, -fingerprint
        self._comm.Allreduce(self._mine, self._most, MPI.MAX)
        self.waited_s += time.monotonic() - since
        return bool(self._most[0] == -self._most[1])

    def take_over(self, message: np.ndarray) -> None:
        """Collective over `comm`. Overwrites `message` [n] uint8 with the lead's."""
        self._comm.Bcast([message, MPI.BYTE], root=0)
