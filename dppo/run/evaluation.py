"""An evaluation on the ranks of one environment: the head plays the episodes and the followers follow, or one rank of
dppo plays them with a simulator beside it.
"""

from __future__ import annotations

import shlex
import traceback
from collections.abc import Callable
from dataclasses import replace

from dppo.comm.leaving import end_job
from dppo.comm.mpi import Comm
from dppo.config import SOLVER, Config
from dppo.console import say
from dppo.envs.group_link import HeadLink
from dppo.envs.groups import Follower
from dppo.envs.maker import EnvMaker
from dppo.errors import EXIT_FAILED, EXIT_USAGE, UsageError, WorkerError
from dppo.run.env_group import EnvGroup, is_crowded, look_around
from dppo.run.solvers import Simulators
from dppo.training.build import CLOSE_S, close_environments


def how_to_evaluate(config: Config, run_dir: object, python: str = "python") -> str:
    """Returns the command that evaluates a run."""
    program, ranks = f"{python} -m dppo.evaluate {shlex.quote(str(run_dir))}", config.env_ranks
    if config.env == SOLVER:
        return f"mpirun -n 1 {program} : -n {ranks} ./simulator"
    return program if ranks == 1 else f"mpirun -n {ranks} {program}"


def evaluate_on_ranks(
    config: Config, run_dir: object, programs: Simulators, evaluate: Callable[[HeadLink | None], int]
) -> int:
    """Collective over all ranks of all programs. Plays the episodes of a run whose environment has several ranks, or is
    a simulator beside dppo. Returns the exit code, on all ranks of dppo.

    Args:
      evaluate: plays the episodes, given the other ranks of the environment that are dppo's. Returns the exit code.

    Raises:
      UsageError: these are not the ranks of one environment, or the simulator does not declare itself.
    """
    own = programs.own
    if config.env == SOLVER and own.size == 1 and programs.size == config.env_ranks:
        programs.meet(own, own, replace(config, env_ranks_span_nodes=True))
        return evaluate(None)
    if config.env == SOLVER:
        wrong = (
            f"the environment of this run is a simulator on {config.env_ranks} rank(s), and this job has {own.size} of"
            f" dppo and {programs.size} of a simulator: start it by {how_to_evaluate(config, run_dir)}"
        )
    elif programs.size:
        wrong = (
            f"the environment of this run, {config.env}, uses no other program, but this mpirun has started one: start"
            f" the evaluation by {how_to_evaluate(config, run_dir)}"
        )
    else:
        return evaluate_in_group(config, run_dir, own, evaluate)
    if own.rank > 0:  # rank 0 says it for all
        return EXIT_USAGE
    raise UsageError(wrong)


def evaluate_in_group(config: Config, run_dir: object, comm: Comm, evaluate: Callable[[HeadLink], int]) -> int:
    """Collective over `comm`. Has the head evaluate, and the others follow. Returns the head's exit code, on all ranks.

    Raises:
      UsageError: these are not the ranks of one environment.
    """
    if comm.size != config.own_env_ranks:
        if comm.rank > 0:  # rank 0 says it for all
            return EXIT_USAGE
        raise UsageError(
            f"each environment of this run has {config.own_env_ranks} ranks (--env-ranks), and this job {comm.size}:"
            f" start it by {how_to_evaluate(config, run_dir)}"
        )
    seats = look_around(comm)
    group = EnvGroup(comm.Dup(), 0, 0, seats, crowded=is_crowded(seats, seats))
    try:
        code = _lead(group, evaluate) if group.is_head else _follow(group, config)
    except BaseException as error:  # the others would wait for this rank for ever
        say(error.failure.text if isinstance(error, WorkerError) else f"{group.name} failed:\n{traceback.format_exc()}")
        end_job(comm, EXIT_FAILED)
    group.free()
    return code


def _lead(group: EnvGroup, evaluate: Callable[[HeadLink], int]) -> int:
    code = evaluate(group)
    group.dismiss(code)
    return code


def _follow(group: EnvGroup, config: Config) -> int:
    def find_maker() -> EnvMaker:
        return EnvMaker(config.env, config.env_kwargs, config.wrappers)

    code: int = Follower(find_maker, group, lambda env: close_environments(env, CLOSE_S)).follow()
    return code
