"""Finds how far the clocks of hosts are apart, by the quickest of a few messages there and back."""

from __future__ import annotations

import socket
import time

import numpy as np

from dppo.comm.collectives import gather_all
from dppo.comm.mpi import MPI

ROUND_TRIPS = 8
_PING, _PONG = 101, 102


def clock_offset(comm: MPI.Comm, known: float | None) -> float:
    """Collective over `comm`. Returns what added to time.monotonic() on this host gives the job's time: seconds since
    1970 by the clock of the first rank 0.

    The ranks of a host share a clock. Between hosts the error is at most half of the quickest of `ROUND_TRIPS` round
    trips to rank 0.

    Args:
      known: what this rank has found before; None: nothing.
    """
    told = gather_all(comm, (socket.gethostname(), known))
    hosts = [host for host, _ in told]
    here = hosts[comm.rank]
    known = next((offset for host, offset in told if offset is not None and host == here), None)
    if known is None and comm.rank == 0:
        known = time.time() - time.monotonic()
    found = known or 0.0
    for leader in sorted({hosts.index(host) for host in hosts} - {0}):  # in turn: a server that is busy answers late
        if comm.rank == 0:
            _answer(comm, leader, found)
        elif comm.rank == leader:
            measured = _measure(comm)
            found = measured if known is None else known
    return gather_all(comm, found)[hosts.index(here)]


def _answer(comm: MPI.Comm, leader: int, offset: float) -> None:
    ping, pong = np.empty(1), np.empty(1)
    for _ in range(ROUND_TRIPS):
        comm.Recv(ping, leader, _PING)
        pong[0] = time.monotonic() + offset
        comm.Send(pong, leader, _PONG)


def _measure(comm: MPI.Comm) -> float:
    ping, pong = np.zeros(1), np.empty(1)
    found = []
    for _ in range(ROUND_TRIPS):
        sent = time.monotonic()
        comm.Send(ping, 0, _PING)
        comm.Recv(pong, 0, _PONG)
        came = time.monotonic()
        found.append((came - sent, float(pong[0]) - (sent + came) / 2))
    return min(found)[1]
