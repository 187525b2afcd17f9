"""The recorders that a run was asked to have, before it begins."""

from __future__ import annotations

import re

import pytest
from mpi4py import MPI

from dppo.errors import UsageError
from dppo.run.recorders import check_recorders
from dppo.seams import Recorder


def test_given_recorders_are_kept_in_their_order() -> None:
    given = [Recorder(), Recorder()]
    assert check_recorders(MPI.COMM_SELF, given).recorders() == given


def test_what_is_no_recorder_is_refused() -> None:
    with pytest.raises(
        UsageError, match=re.escape("recorders: 'csv' is no recorder: let its class extend dppo.seams.")
    ):
        check_recorders(MPI.COMM_SELF, [Recorder(), "csv"])
