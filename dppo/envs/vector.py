"""Steps N environments as one, begins their next episodes, and hands out the true last observation of each.

There are four forms behind one interface, because speed and promises differ:

| form                       | made by `vectorization=`  | a seed per episode, replay | independent of N | restarts |
|----------------------------|---------------------------|----------------------------|------------------|----------|
| `CartPoleVector`           | `auto`, CartPole-v0, -v1  | yes                        | yes              | no need  |
| `EnvList`                  | `sync`; `auto` otherwise  | yes                        | yes              | yes      |
| `AgentList`                | as `EnvList`, where the   | yes                        | yes              | yes      |
|                            | agents share a simulator  |                            |                  |          |
| `NativeVector`             | `native`                  | no                         | no               | no       |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dppo.envs.agents import AgentList
from dppo.envs.cases import Case
from dppo.envs.env_list import EnvList
from dppo.envs.given import Given
from dppo.envs.groups import find_maker
from dppo.envs.native import NativeVector
from dppo.envs.restarts import close_quietly
from dppo.envs.simulators import agents_of
from dppo.seams import Closable, EpisodeSeed, VectorEnv


def make_vector_env(
    env_id: str,
    num_envs: int,
    episode_seed: EpisodeSeed,
    vectorization: str = "auto",
    first_env: int = 0,
    *,
    kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[str] = (),
    cases: Sequence[Case] = (),
    max_restarts: int = 0,
    close_broken: Callable[[Closable], None] = close_quietly,
    given: Given | None = None,
    rounds_up: bool = False,
) -> VectorEnv:
    """Makes `num_envs` environments of one kind.

    Args:
        env_id: as for `gymnasium.make`, version included; `package.module:Id-v0` imports the module first, and
            `package.module:callable` names a class or function that returns an environment.
        num_envs: N, at least 1; where the agents of a simulator are the environments, a multiple of their number.
        episode_seed: gives the seed of the next episode of a local environment.
        vectorization: `sync` one after another in this process; `native` the environment's own vector form;
            `auto` a fast form that still keeps every promise of `sync`, where there is one, else `sync`.
        first_env: global number of the first environment.
        kwargs: arguments of the environment's constructor.
        wrappers: `package.module:callable` of each wrapper around an environment, innermost first.
        cases: further arguments, over `kwargs`, dealt to the environments in turn.
        max_restarts: an environment that fails is made anew up to this many times in a row; 0: its error ends the run.
        close_broken: closes an environment before it is made anew.
        given: what a constructor is given that takes it; a native vector form is given nothing.
        rounds_up: N need be no multiple of the agents' number; as many more are made as complete the last simulator.

    Raises:
        ValueError: the id, its module, a package that it needs or its vector form is missing, its constructor or a
            wrapper fails, a vector form cannot be restarted, or the environment observes what is not made of Box,
            Discrete, MultiDiscrete and MultiBinary.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs={num_envs} must be at least 1")
    if vectorization not in ("auto", "sync", "native"):
        raise ValueError(f"vectorization={vectorization!r} must be one of 'auto', 'sync', 'native'")
    maker = find_maker(env_id, kwargs or {}, wrappers, given, cases)
    if vectorization == "native":
        if max_restarts:
            raise ValueError(
                "on_env_error='restart' makes single environments anew, which vectorization='native' does not have: use"
                " vectorization='sync' or 'auto'"
            )
        return NativeVector(maker, num_envs, episode_seed, first_env)
    if vectorization == "auto" and not cases and (given is None or given.group is None):
        from dppo.envs import cartpole

        if cartpole.is_plain_cartpole(maker.spec):
            return cartpole.CartPoleVector(maker.spec, num_envs, episode_seed)
    first = maker.make(first_env)
    if agents := agents_of(first):
        first = maker.deal_to_simulators(first, first_env, len(agents))
        arguments = episode_seed, first_env, max_restarts, close_broken
        return AgentList(maker, first, num_envs, *arguments, rounds_up=rounds_up)
    return EnvList(maker, num_envs, episode_seed, first_env, max_restarts, close_broken, [first])
