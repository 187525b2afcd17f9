"""The recorders that a run was asked to have: that they are there, before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dppo.comm.collectives import first_error
from dppo.comm.mpi import Comm
from dppo.errors import UsageError
from dppo.seams import Recorder


@dataclass
class Chosen:
    """The recorders of one rank, which hear nothing until the rank is the server."""

    given: Sequence[Recorder] = ()
    """Those of `dppo.train`."""

    def recorders(self) -> list[Recorder]:
        return list(self.given)


def check_recorders(comm: Comm, given: Sequence[Any]) -> Chosen:
    """Collective over `comm`. Returns this rank's recorders.

    Raises:
      UsageError: on all ranks, if one of them is no recorder.
    """
    error = None
    if wrong := [recorder for recorder in given if not isinstance(recorder, Recorder)]:
        error = f"recorders: {wrong[0]!r} is no recorder: let its class extend dppo.seams.Recorder"
    if (error := first_error(comm, error)) is not None:
        raise UsageError(error)
    return Chosen(given)
