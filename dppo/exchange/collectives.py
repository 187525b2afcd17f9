"""Decisions that all ranks take together, at start-up and at the end; pickled, because they are rare.

Uses mpi4py; run.py calls them at its top level.
"""

from __future__ import annotations

from typing import Any

from mpi4py import MPI

Comm = MPI.Comm
"""For those who hand one on and know nothing else of MPI."""


def mpi_version() -> str:
    """Of the library that was loaded."""
    return MPI.Get_library_version().split(",")[0].strip("\x00 \n")


def first_error(comm: MPI.Comm, error: str | None) -> str | None:
    """Collective over `comm`. The error of the lowest rank that has one, with its rank and host where it is not rank 0;
    else None.
    """
    if error is not None and comm.rank > 0:
        error = f"rank {comm.rank} on {MPI.Get_processor_name()}: {error}"
    return next((text for text in comm.allgather(error) if text is not None), None)


def from_rank_zero(comm: MPI.Comm, value: Any) -> Any:
    """Collective over `comm`. Rank 0's `value`, on every rank."""
    return comm.bcast(value, root=0)


def total(comm: MPI.Comm, number: int) -> int:
    """Collective over `comm`. The sum over ranks. mpi4py's allreduce of objects would make a communicator for itself,
    and a death while Open MPI makes one crashes the survivors.
    """
    return sum(comm.allgather(number))


def all_have(comm: MPI.Comm, thing: object | None) -> bool:
    """Collective over `comm`. Whether no rank has None."""
    return total(comm, int(thing is None)) == 0


def assert_in_sync(comm: MPI.Comm, fingerprint: str) -> None:
    """Collective over `comm`. Raises AssertionError, on every rank alike, if the fingerprints differ."""
    fingerprints = comm.allgather(fingerprint)
    if len(set(fingerprints)) > 1:
        raise AssertionError(f"ranks have drifted apart: {dict(enumerate(fingerprints))}")
