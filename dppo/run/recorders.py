"""The recorders that a run was asked to have: that they are there, before anything is written."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from dppo.comm.collectives import first_error
from dppo.comm.mpi import Comm
from dppo.config import LogConfig
from dppo.envs.reasons import reason
from dppo.errors import UsageError, missing_package
from dppo.rundir.mlflow import MLflow
from dppo.rundir.wandb import WandB
from dppo.seams import Recorder

METHODS = [name for name in vars(Recorder) if not name.startswith("_")]


class Chosen:
    """The recorders of one rank: those of --log come into being when the rank becomes the server.

    Args:
      given: those of `dppo.train`.
    """

    def __init__(self, log: LogConfig, given: Sequence[Recorder] = ()) -> None:
        self._log, self._given = log, given
        self._made: list[Recorder] | None = None

    def make(self, warn: Callable[[str], None] | None = None) -> list[Recorder]:
        """Returns all recorders, those of --log made now if they were not made before.

        Args:
          warn: shows a line on each that cannot be made; None: that is an error.

        Raises:
          ValueError: one of them cannot be made, or is no recorder.
        """
        if self._made is None:
            self._made = []
            for name in self._log.recorder:
                try:
                    self._made.append(_called(name))
                except ValueError as error:
                    if warn is None:
                        raise
                    warn(str(error))
            if self._log.wandb is not None:
                self._made.append(WandB(self._log.wandb))
            if self._log.mlflow is not None:
                self._made.append(MLflow(self._log.mlflow))
        return [*self._given, *self._made]


def check_recorders(comm: Comm, log: LogConfig, given: Sequence[Any]) -> Chosen:
    """Collective over `comm`. Returns this rank's recorders; rank 0 makes them.

    Raises:
      UsageError: on all ranks, if one of them is not there on any rank, or is no recorder.
    """
    chosen, error = Chosen(log, given), None
    try:
        for recorder in given:
            _require_recorder(recorder, "recorders")
        for name in log.recorder:
            _callable(name)
        for package, wanted, module in (("wandb", log.wandb, "wandb"), ("mlflow-skinny", log.mlflow, "mlflow")):
            if wanted is not None and find_spec(module) is None:
                raise missing_package(f"the package {package}", ImportError(f"No module named {module!r}"), module)
        if comm.rank == 0:
            chosen.make()
    except ValueError as problem:
        error = str(problem)
    if (error := first_error(comm, error)) is not None:
        raise UsageError(error)
    return chosen


def _callable(name: str) -> Callable[[], Any]:
    module_name, _, attribute = name.rpartition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise ValueError(f"log.recorder={name!r} cannot be imported: {reason(error)}") from error
    if not callable(found):
        raise ValueError(f"log.recorder={name!r} is an object of {type(found).__name__}: name its class")
    made: Callable[[], Any] = found
    return made


def _called(name: str) -> Recorder:
    make = _callable(name)
    try:
        recorder = make()
    except (Exception, SystemExit) as error:
        raise ValueError(f"log.recorder={name!r}, called without arguments, failed: {reason(error)}") from error
    return _require_recorder(recorder, f"log.recorder={name!r}")


def _require_recorder(recorder: Any, what: str) -> Recorder:
    if isinstance(recorder, type) or not all(callable(getattr(recorder, method, None)) for method in METHODS):
        raise ValueError(f"{what}: {recorder!r} is no recorder: it must be an object that extends dppo.seams.Recorder")
    made: Recorder = recorder
    return made
