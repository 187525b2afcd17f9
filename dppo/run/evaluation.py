"""An evaluation on the ranks of one environment: the head plays the episodes, the followers follow."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from dppo.comm.leaving import end_job
from dppo.comm.mpi import Comm
from dppo.config import Config
from dppo.console import say
from dppo.envs.group_link import HeadLink
from dppo.envs.groups import Follower
from dppo.envs.maker import EnvMaker
from dppo.errors import EXIT_FAILED, EXIT_USAGE, UsageError, WorkerError
from dppo.run.env_group import EnvGroup, is_crowded, look_around
from dppo.run.env_groups import refuse_to_span
from dppo.training.build import CLOSE_S, close_environments


def evaluate_in_group(config: Config, run_dir: str, comm: Comm, evaluate: Callable[[HeadLink], int]) -> int:
    """Collective over `comm`. Has the head evaluate, and the others follow. Returns the head's exit code, on all ranks.

    Raises:
      UsageError: these are not the ranks of one environment.
    """
    if comm.size != config.own_env_ranks:
        if comm.rank > 0:  # rank 0 says it for all
            return EXIT_USAGE
        raise UsageError(
            f"each environment of this run has {config.own_env_ranks} ranks (--env-ranks), and this job {comm.size}:"
            f" start it by mpirun -n {config.own_env_ranks} python -m dppo.evaluate {run_dir}"
        )
    seats = look_around(comm)
    if not config.env_ranks_span_nodes:
        refuse_to_span([range(comm.size)], seats)
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
