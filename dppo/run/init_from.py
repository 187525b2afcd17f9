"""Begins a new run with the parameters and moments of another one (fine-tuning)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dppo.comm.collectives import first_error
from dppo.comm.mpi import Comm
from dppo.errors import UsageError
from dppo.run.preflight import Plan
from dppo.rundir.checkpoint import newest_valid, read_checkpoint
from dppo.rundir.contents import check_state
from dppo.rundir.evaluations import BEST, find_checkpoint
from dppo.training.state import TrainingState


def init_from(planned: Plan, state: TrainingState, comm: Comm) -> str | None:
    """Collective over `comm`. Gives rank 0's state the parameters and moments of the run that `--init-from` names; the
    other ranks get rank 0's state before they train. Returns a line for the log, on rank 0, where there is one to tell.

    Raises:
      UsageError: on all ranks, if no checkpoint is there, or it does not fit.
    """
    source, line, error = planned.config.init_from, None, None
    if source is not None and planned.saved is None and comm.rank == 0:
        try:
            line = take_over(state, _read(Path(source)), source, partial=planned.config.init_from_partial)
        except ValueError as problem:
            error = str(problem)
    error = first_error(comm, error)
    if error is not None:
        raise UsageError(error)
    return line


def _read(source: Path) -> dict[str, Any]:
    """Returns the learner's state of a checkpoint, of a run's best one, or of its newest valid one."""
    if source.name.startswith("step_"):
        try:
            saved = read_checkpoint(source)
            check_state(saved.state)
        except ValueError as error:
            raise UsageError(f"--init-from {source}: {error}") from error
        return saved.state
    if source.name == BEST and source.is_file():
        return find_checkpoint(source.parent.parent, BEST, lambda checkpoint: check_state(checkpoint.state))[0].state
    found, skipped = newest_valid(source, lambda checkpoint: check_state(checkpoint.state))
    if found is None:
        why = "; ".join(skipped) or "there is none: name a run directory, or RUN/checkpoints/step_…"
        raise UsageError(f"--init-from {source} has no valid checkpoint: {why}")
    return found.state


def take_over(state: TrainingState, saved: dict[str, Any], source: str, *, partial: bool) -> str:
    """Takes over a saved state's parameters, constants and moments, but neither its optimiser nor its counters.
    Returns a line for the log.

    Args:
      partial: whether what does not fit stays as it is; else it is an error.

    Raises:
      UsageError: something does not fit, or nothing does.
    """
    there = {name: tuple(shape) for name, shape in saved["shapes"].items()}
    here = state.flat.shapes
    fitting = [name for name in here if there.get(name) == here[name]]
    odd = [_misfit(name, there.get(name), here.get(name)) for name in {**here, **there} if name not in fitting]
    constants, own_constants = saved.get("constants", {}), state.flat.constants
    kinds_there, kinds_here = ({n: (a.shape, str(a.dtype)) for n, a in c.items()} for c in (constants, own_constants))
    for name in {**kinds_here, **kinds_there}:
        if kinds_there.get(name) != kinds_here.get(name):
            odd.append("the buffer " + _misfit(name, kinds_there.get(name), kinds_here.get(name)))
    moments, own = saved["moments"], state.moments
    are_fitting = len(moments) == own.num_sums
    if not are_fitting:
        sizes = [(number - own.rewards.num_sums - 1) // 2 for number in (len(moments), own.num_sums)]
        odd.append(f"the moments are of {sizes[0]} observed numbers there and of {sizes[1]} here")
    if odd and not partial:
        raise UsageError(
            f"--init-from {source} does not fit to this run: {'; '.join(odd)}; --init-from-partial takes over what fits"
        )
    if not fitting:
        raise UsageError(f"--init-from {source} has no parameter that fits to this run: {'; '.join(odd)}")
    starts = dict(zip(there, np.cumsum([0, *(int(np.prod(shape)) for shape in there.values())]), strict=False))
    for name in fitting:
        size = state.flat.parameters[name].size
        state.flat.parameters[name][...] = saved["parameters"][starts[name] :][:size].reshape(here[name])
    for name, array in own_constants.items():
        if kinds_there.get(name) == kinds_here[name]:
            array[...] = constants[name]
    state.flat.touch()
    if are_fitting:
        own.unpack(moments)
    else:  # those of the returns are last, and scale what the critic has learnt
        own.rewards.unpack(moments[-own.rewards.num_sums :])
    if not np.isfinite(state.flat.vector).all():
        raise UsageError(f"--init-from {source} has parameters that are not finite")
    left = f", but not: {'; '.join(odd)}" if odd else ""
    return f"begins with {len(fitting)} of {len(here)} parameter arrays and the moments of {source}{left}"


def _misfit(name: str, there: object, here: object) -> str:
    if there is None or here is None:
        return f"{name} is only {'here' if there is None else 'there'}"
    return f"{name} is {there} there and {here} here"
