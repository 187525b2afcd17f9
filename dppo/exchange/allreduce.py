"""Gradients and sums added up among the workers by MPI.

Uses mpi4py; the synchronous loop calls it at its top level.
"""

from __future__ import annotations

import time

import numpy as np
from mpi4py import MPI


class Allreduce:
    """In-place sums over `comm`: the workers that compute gradients (COMM_SELF for one)."""

    def __init__(self, comm: MPI.Comm) -> None:
        self._comm = comm
        self.is_lead = comm.rank == 0
        self.waited_s = 0.0

    def add(self, vector: np.ndarray) -> None:
        """Collective over `comm`. `vector` [n] float32 or float64 becomes the sum over ranks, the same on each to the
        bit.
        """
        since = time.monotonic()
        self._comm.Allreduce(MPI.IN_PLACE, vector, MPI.SUM)
        self.waited_s += time.monotonic() - since
