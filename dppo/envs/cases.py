"""Cases: arguments that differ between the environments of a run, dealt to the environments in turn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium

from dppo.envs.simulators import agents_of

Case = dict[str, Any]
"""A `name`, and `env_kwargs`, which are merged over those of all environments."""


def case_of(cases: Sequence[Case], env: int, agents: int = 1) -> Case:
    """Returns the case of an environment by its global number. The `agents` of a simulator have the same."""
    return cases[env // agents % len(cases)]


def names_of(cases: Sequence[Case], first_env: int, num_envs: int, agents: int = 1) -> tuple[str, ...]:
    """Returns the names of the cases of N environments; () where there are no cases."""
    envs = range(first_env, first_env + num_envs) if cases else ()
    return tuple(case_of(cases, env, agents)["name"] for env in envs)


@contextlib.contextmanager
def errors_of(case: Case) -> Iterator[None]:
    """Names the case in the errors of making its environments."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"case {case['name']}: {error}") from error


class Shared(NamedTuple):
    """What all cases must share, as an environment of one case has it."""

    name: str
    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    agents: tuple[str, ...]

    @classmethod
    def of(cls, name: str, env: gymnasium.Env[Any, Any]) -> Shared:
        return cls(name, env.observation_space, env.action_space, agents_of(env))

    def require_same(self, other: Shared) -> None:
        """Raises ValueError, with the repair, where the other case differs."""
        verbs = "observes", "takes", "has the agents"
        for verb, mine, theirs in zip(verbs, self[1:], other[1:], strict=True):
            if mine != theirs:
                raise ValueError(
                    f"the cases {self.name} and {other.name} cannot share a policy: {self.name} {verb} {mine}, and"
                    f" {other.name} {verb} {theirs}: let the environment have the same spaces in all cases, for example"
                    " by padding"
                )
