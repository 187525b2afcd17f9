"""Collectives of Python objects, and decisions that ranks take together; pickled, because they are rare.

If a peer dies, a collective may succeed on a survivor without bringing it a message. mpi4py's collectives of objects
then read what an older message has left in memory. Here each object has a checksum, and memory is cleared before.
"""

from __future__ import annotations

import itertools
import pickle
import struct
import zlib
from typing import Any, TypeVar

import numpy as np

from dppo.comm.mpi import MPI

T = TypeVar("T")
UNREADABLE = pickle.UnpicklingError
"""The error of the functions below if a message has not come, because of a death."""
_CHECKSUM = struct.Struct("<I")


def gather_all(comm: MPI.Comm, value: T) -> list[T]:
    """Collective over `comm`. Returns the values of all ranks, in the order of the ranks.

    Raises:
      UNREADABLE: not all values have come.
    """
    message = _packed(value)
    sizes = np.full(comm.size, -1, np.int64)
    comm.Allgather(np.array([len(message)], np.int64), sizes)
    edges = _edges(sizes)
    received = np.zeros(edges[-1], np.uint8)
    comm.Allgatherv([message, MPI.BYTE], [received, (sizes, edges[:-1]), MPI.BYTE])
    return [_unpacked(received[start:end]) for start, end in itertools.pairwise(edges)]


def gather_at_zero(comm: MPI.Comm, value: T) -> list[T]:
    """Collective over `comm`. Returns on rank 0 the values of all ranks, in order; on other ranks []. Raises
    UNREADABLE as `gather_all` does.
    """
    message = _packed(value)
    sizes = np.full(comm.size, -1, np.int64)
    comm.Gather(np.array([len(message)], np.int64), sizes if comm.rank == 0 else None, root=0)
    if comm.rank != 0:
        comm.Gatherv([message, MPI.BYTE], None, root=0)
        return []
    edges = _edges(sizes)
    received = np.zeros(edges[-1], np.uint8)
    comm.Gatherv([message, MPI.BYTE], [received, (sizes, edges[:-1]), MPI.BYTE], root=0)
    return [_unpacked(received[start:end]) for start, end in itertools.pairwise(edges)]


def from_rank(comm: MPI.Comm, root: int, value: T) -> T:
    """Collective over `comm`. Returns the `value` of rank `root`, on every rank. Raises as `gather_all`."""
    message = _packed(value) if comm.rank == root else None
    size = np.array([-1 if message is None else len(message)], np.int64)
    comm.Bcast(size, root=root)
    if message is None:
        message = np.zeros(_edges(size)[-1], np.uint8)
    comm.Bcast([message, MPI.BYTE], root=root)
    return value if comm.rank == root else _unpacked(message)


def from_rank_zero(comm: MPI.Comm, value: Any) -> Any:
    """Collective over `comm`. Returns rank 0's `value`, on every rank. Raises as `gather_all`."""
    return from_rank(comm, 0, value)


def _packed(value: object) -> np.ndarray:
    text = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    return np.frombuffer(_CHECKSUM.pack(zlib.crc32(text)) + text, np.uint8)


def _unpacked(message: np.ndarray) -> Any:
    whole = message.tobytes()
    text = whole[_CHECKSUM.size :]
    if not text or whole[: _CHECKSUM.size] != _CHECKSUM.pack(zlib.crc32(text)):
        raise UNREADABLE("a message has not come")
    return pickle.loads(text)


def _edges(sizes: np.ndarray) -> list[int]:
    """Returns where each message begins, and where the last one ends."""
    if (sizes <= 0).any():
        raise UNREADABLE("the size of a message has not come")
    return [0, *itertools.accumulate(sizes.tolist())]


def mpi_version() -> str:
    """Returns the version of the MPI library that was loaded."""
    return MPI.Get_library_version().split(",")[0].strip("\x00 \n")


def first_error(comm: MPI.Comm, error: str | None, rank: int | None = None) -> str | None:
    """Collective over `comm`. Returns the error of the lowest rank that has one, with rank and host if it is not rank
    0; None if no rank has one.

    Args:
      rank: this rank's number in the job; None: that in `comm`.
    """
    if error is not None and comm.rank > 0:
        error = f"rank {comm.rank if rank is None else rank} on {MPI.Get_processor_name()}: {error}"
    return next((text for text in gather_all(comm, error) if text is not None), None)


def total(comm: MPI.Comm, number: int) -> int:
    """Collective over `comm`. Returns the sum over ranks. mpi4py's allreduce of objects would make a communicator of
    its own, and a death while Open MPI makes one crashes the survivors.
    """
    return sum(gather_all(comm, number))


def all_have(comm: MPI.Comm, thing: object | None) -> bool:
    """Collective over `comm`. Returns whether `thing` is None on no rank."""
    return total(comm, int(thing is None)) == 0


def assert_in_sync(comm: MPI.Comm, fingerprint: str) -> None:
    """Collective over `comm`. Raises AssertionError, on every rank, if the fingerprints differ."""
    fingerprints = gather_all(comm, fingerprint)
    if len(set(fingerprints)) > 1:
        raise AssertionError(f"ranks have drifted apart: {dict(enumerate(fingerprints))}")
