"""Simulators of many agents that share one policy, in the form of one environment that steps all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from dppo.envs.actions import make_splitter
from dppo.envs.checks import REPAIR, five, numbers, show, truths
from dppo.envs.leaves import to_value
from dppo.envs.masks import KEY
from dppo.envs.returned import Returned

Joint = tuple[np.ndarray, Any, Any, Any, dict[str, Any]]
"""Observations [A, *obs], rewards [A] float64, terminations and truncations [A] bool, infos by the agents' names."""


class Simulator(gymnasium.Env[Any, Any]):
    """A simulator of A agents. Everything that dppo asks of the user's object is asked in `reset`, `step` and `close`.

    What `step` returns of an agent that has ended before is arbitrary.

    Attributes:
      made: the user's object; on the head of a group, what calls it on all ranks.
      names: the agents' names, in their order.
      observation_space, action_space: those of one agent.
    """

    names: tuple[str, ...]

    def __init__(self, made: Any) -> None:
        self.made = made

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins the episodes of all agents. Returns their observations [A, *obs], and infos by their names."""
        raise NotImplementedError

    def step(self, action: np.ndarray) -> Joint:
        """Takes the actions [A, *act] of all agents."""
        raise NotImplementedError

    def close(self) -> None:
        self.made.close()


def is_simulator(made: Any) -> bool:
    """Returns whether an object is a vector of agents, or an environment of PettingZoo. These are recognised by their
    methods, so that PettingZoo need not be installed.
    """
    methods = ("observation_space", "action_space", "reset", "step")
    has_methods = all(callable(getattr(made, name, None)) for name in methods)
    return not isinstance(made, type) and (isinstance(made, gymnasium.vector.VectorEnv) or has_methods)


def agents_of(env: gymnasium.Env[Any, Any]) -> tuple[str, ...]:
    """Returns the names of a simulator's agents, whatever is around it; () for an environment of one agent."""
    return env.unwrapped.names if isinstance(env.unwrapped, Simulator) else ()


def why_not_by_id(made: Any, entry_point: Any) -> str:
    """Says how to name a simulator of agents whose id `gymnasium.make` refuses."""
    name = entry_point
    if not isinstance(entry_point, str):
        name = f"{entry_point.__module__}:{getattr(entry_point, '__qualname__', type(entry_point).__name__)}"
    return (
        f"its entry point returned {type(made).__name__}, a simulator of agents, and an id stands for a single"
        f" environment: name the entry point itself (--env {name}), or a function of yours that returns the simulator"
    )


def as_simulator(made: Any) -> Simulator:
    """Returns a vector of agents, or an environment of PettingZoo, as a simulator. Raises ValueError, with the repair,
    where that is not possible.
    """
    if isinstance(made, gymnasium.vector.VectorEnv):
        return _OfVector(made)
    if hasattr(made, "agent_iter"):
        raise ValueError(
            f"{type(made).__name__} is an AECEnv of PettingZoo, whose agents take turns: name its parallel_env, or a"
            " function that returns pettingzoo.utils.aec_to_parallel(env)"
        )
    return _OfParallel(made)


class _OfVector(Simulator):
    """A `gymnasium.vector.VectorEnv` whose environments are the agents of one simulator."""

    def __init__(self, made: gymnasium.vector.VectorEnv[Any, Any, Any]) -> None:
        super().__init__(made)
        said = made.metadata.get("autoreset_mode", "not there")
        if said not in (AutoresetMode.DISABLED, AutoresetMode.DISABLED.value):
            raise ValueError(
                f"{type(made).__name__} is a vector of environments: return a single one (dppo makes as many as"
                " --num-envs says), or register the vector as vector_entry_point and use --vectorization native. If"
                f" they are the agents of one simulator, metadata['autoreset_mode'], which is {said!s:.80}, must be"
                " gymnasium.vector.AutoresetMode.DISABLED: agents are reset together, by reset(seed=…)"
            )
        self._agents = _vector_agents(made)
        self.names = _names(self._agents)
        if len(self.names) != made.num_envs:
            raise ValueError(f"it has {made.num_envs} agents (num_envs) and {len(self.names)} names (possible_agents)")
        if not self.names:
            raise ValueError("it has no agents: its num_envs is 0")
        self.observation_space, self.action_space = made.single_observation_space, made.single_action_space
        self._returned = Returned(self.observation_space, range(made.num_envs))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        result = self.made.reset(seed=seed)
        _require_same(self._agents, _vector_agents(self.made))
        observations, infos = self._returned.by_reset(result)
        return observations, self._infos(infos)

    def step(self, action: np.ndarray) -> Joint:
        sent = to_value(self.action_space, action.copy())  # it may write to its actions
        observations, rewards, terminations, truncations, infos = five(self.made.step(sent))
        count = len(self.names)
        return (
            self._returned.observation(observations), numbers("rewards", rewards, count).astype(np.float64),
            truths("terminations", terminations, count), truths("truncations", truncations, count), self._infos(infos),
        )  # fmt: skip

    def _infos(self, infos: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the masks of the agents, whose infos have Gymnasium's form: `_key` says whose info has `key`."""
        if KEY not in infos:
            return {}
        there = infos.get(f"_{KEY}", np.ones(len(self.names), bool))
        return {name: {KEY: infos[KEY][i]} for i, name in enumerate(self.names) if there[i]}


class _OfParallel(Simulator):
    """A PettingZoo `ParallelEnv`."""

    def __init__(self, made: Any) -> None:
        super().__init__(made)
        self.names = _names(_possible_agents(made))
        if not self.names:
            raise ValueError("it has no agents: its possible_agents is empty")
        self._agents = tuple(_possible_agents(made))
        self.observation_space = self._shared("observes", made.observation_space)
        self.action_space = self._shared("takes", made.action_space)
        self._returned = Returned(self.observation_space)
        self._split = make_splitter(self.action_space)
        self._has_ended = np.ones(len(self.names), bool)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        result = self.made.reset(seed=seed)
        is_pair = isinstance(result, tuple | list) and len(result) == 2
        if not (is_pair and all(isinstance(part, Mapping) for part in result)):
            raise ValueError(f"reset() returned {show(result)}; expected dicts of observations and of infos: {REPAIR}")
        observations, infos = result
        agents = self._agents
        _require_same(agents, _possible_agents(self.made))
        if missing := [agent for agent in agents if agent not in observations]:
            raise ValueError(
                f"reset() returned no observation of {missing}: {REPAIR}, so that every one of possible_agents is there"
                " when an episode begins; agents may end early"
            )
        rows = self._room()
        for i, agent in enumerate(agents):
            with _errors_of(agent):
                rows[i] = self._returned.observation(observations[agent])
        self._has_ended[:] = False
        return rows, {name: infos.get(agent) or {} for name, agent in zip(self.names, agents, strict=True)}

    def step(self, action: np.ndarray) -> Joint:
        made, values = self.made, self._split(action)
        present = set(made.agents)
        result = five(made.step({a: values[i] for i, a in enumerate(self._agents) if a in present}))
        if not all(isinstance(part, Mapping) for part in result):
            raise ValueError(f"step() returned {show(result)}; expected five dicts by agents: {REPAIR}")
        observations, *others = result
        present = set(made.agents)
        if strangers := present.difference(self._agents):
            raise ValueError(
                f"the agents {sorted(map(str, strangers))} have come (they are in agents), and are not in"
                f" possible_agents: {REPAIR}, so that none comes late; agents may end early"
            )
        rows, count = self._room(), len(self.names)
        rewards, ends = np.zeros(count), np.zeros((2, count), bool)
        infos: dict[str, Any] = {}
        for i in (~self._has_ended).nonzero()[0].tolist():
            agent = self._agents[i]
            if any(agent not in part for part in (observations, *others[:3])):
                raise ValueError(
                    f"step() returned nothing of the agent {agent!r}, which has not ended: {REPAIR}, so that the last"
                    " step of an agent says that it is terminated or truncated"
                )
            one = (observations[agent], *(part[agent] for part in others[:3]), others[3].get(agent) or {})
            with _errors_of(agent):
                rows[i], rewards[i], ends[0, i], ends[1, i], infos[self.names[i]] = self._returned.by_step(one)
            if agent not in present and not ends[:, i].any():
                if present:
                    raise ValueError(
                        f"the agent {agent!r} has left (it is not in agents any more), and is neither terminated nor"
                        f" truncated: {REPAIR}"
                    )
                ends[1, i] = True  # the simulator says that the episode is over
        self._has_ended |= ends.any(axis=0)
        return rows, rewards, ends[0], ends[1], infos

    def _room(self) -> np.ndarray:
        return np.zeros((len(self.names), *self._returned.shape), self._returned.dtype)

    def _shared(self, verb: str, space_of: Any) -> gymnasium.Space[Any]:
        """Returns the space of all agents."""
        first, *others = self._agents
        space: gymnasium.Space[Any] = space_of(first)
        for agent in others:
            if (other := space_of(agent)) != space:
                raise ValueError(
                    f"its agents cannot share a policy, because their spaces differ: {agent!r} {verb} {other}, and"
                    f" {first!r} {verb} {space}: give them the same, or pad them (--wrappers"
                    " supersuit:pad_observations_v0 supersuit:pad_action_space_v0; pip install supersuit)"
                )
        return space


@contextlib.contextmanager
def _errors_of(agent: Any) -> Iterator[None]:
    """Names the agent in the errors of what it has returned."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"agent {agent!r}: {error}") from error


def _possible_agents(made: Any) -> Sequence[Any]:
    """Returns the agents that a ParallelEnv may have. Raises ValueError where it does not say so."""
    given = getattr(made, "possible_agents", None)
    if not isinstance(given, list | tuple):
        raise ValueError(
            f"{type(made).__name__} does not list all its agents in possible_agents, as a ParallelEnv of PettingZoo"
            f" does: {REPAIR}"
        )
    return given


def _vector_agents(made: gymnasium.vector.VectorEnv[Any, Any, Any]) -> tuple[Any, ...]:
    """Returns the names of a vector's agents; their numbers where they have none."""
    given = getattr(made, "possible_agents", None)
    return tuple(range(made.num_envs) if given is None else given)


def _require_same(before: Sequence[Any], now: Sequence[Any]) -> None:
    """Raises ValueError if a reset has changed the agents."""
    if list(now) != list(before):
        raise ValueError(
            f"its possible_agents were {list(before)} and are {list(now)} after a reset(): {REPAIR}, so that they stay"
            " the same; agents may end early"
        )


def _names(agents: Sequence[Any]) -> tuple[str, ...]:
    """Returns the agents' names as texts; numbers become agent_0, agent_1, …"""
    names = tuple(f"agent_{agent}" if isinstance(agent, int | np.integer) else str(agent) for agent in agents)
    if len(set(names)) != len(names):
        raise ValueError(f"it has agents of the same name: {list(names)}")
    return names
