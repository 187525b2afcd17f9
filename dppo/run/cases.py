"""Cases of a run: that all ranks' cases can share a policy, and which environments have which case."""

from __future__ import annotations

from collections import defaultdict

from dppo.comm.collectives import gather_all
from dppo.comm.mpi import Comm
from dppo.config import Config
from dppo.envs.cases import Shared, names_of
from dppo.errors import UsageError
from dppo.run.env_groups import shortened, spans
from dppo.training.build import Parts

LONGEST = 60
"""The most characters of a list of numbers in the first lines."""


def agree_on_cases(config: Config, comm: Comm, parts: Parts) -> list[str]:
    """Collective over `comm`, the ranks that train. Returns lines on which environments have which case.

    Raises:
      UsageError: on all ranks: the spaces of two cases differ, or a case has no environment.
    """
    if not config.cases:
        return []
    mine = None
    if (envs := parts.envs) is not None:
        first_env = (parts.worker or 0) * config.num_envs
        name, *_ = names_of(config.cases, first_env, 1, max(1, len(envs.agents)))
        mine = Shared(name, envs.observation_space, envs.action_space, envs.agents)
    first, *others = [shared for shared in gather_all(comm, mine) if shared is not None]
    try:
        for shared in others:
            first.require_same(shared)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return dealt(config, 1 + len(others), max(1, len(first.agents)))


def dealt(config: Config, workers: int, agents: int) -> list[str]:
    """Returns a line on each case: its environments, and its groups. Raises UsageError where a case has none."""
    envs: dict[str, list[int]] = defaultdict(list)
    for env, name in enumerate(names_of(config.cases, 0, workers * config.num_envs, agents)):
        envs[name].append(env)
    if missing := [case["name"] for case in config.cases if case["name"] not in envs]:
        raise UsageError(
            f"{len(config.cases)} cases are dealt to {workers * config.num_envs // agents} simulator(s) of {agents}"
            f" agents, and {', '.join(missing)} would have none: use num_envs="
            f"{-(-len(config.cases) // workers) * agents}, or more ranks"
        )
    lines = []
    for name, numbers in envs.items():
        groups = list(dict.fromkeys(env // config.num_envs for env in numbers))
        where = f" of {_listed('group', groups)}" if config.own_env_ranks > 1 else ""
        lines.append(f"case {name}: {_listed('environment', numbers)}{where}")
    return shortened(lines, "cases")


def _listed(what: str, numbers: list[int]) -> str:
    text = spans(numbers)
    if len(text) > LONGEST:
        text = f"{text[:LONGEST].rpartition(',')[0]},… ({len(numbers)} of them)"
    return f"{what}{'s' if len(numbers) > 1 else ''} {text}"
