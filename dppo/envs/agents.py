"""Steps simulators of many agents that share one policy: the agents are the environments of the batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

import gymnasium
import numpy as np

from dppo.envs.curriculum import BEFORE_RESET
from dppo.envs.env_list import EnvList, new_row
from dppo.envs.maker import EnvMaker
from dppo.envs.masks import MaskLayout, Masks, refuse_late
from dppo.envs.restarts import close_quietly
from dppo.envs.returned import copied
from dppo.envs.simulators import agents_of
from dppo.seams import NO_ENVS, Closable, EpisodeSeed, Step


class AgentList(EnvList):
    """Simulators of A agents, stepped one after another in this process: environment s A + a is agent a of simulator s.

    The agents of a simulator begin their episodes together, by one seed. An agent that ends earlier than others waits:
    its rows are not valid, and its observation stays the last one. When all have ended, the simulator is reset.

    Args:
      first: a simulator that was made already.
      num_envs: the number of agents of all simulators, a multiple of A.
      rounds_up: any number will do; as many more are made as complete the last simulator.
    """

    def __init__(
        self, maker: EnvMaker, first: gymnasium.Env[Any, Any], num_envs: int, episode_seed: EpisodeSeed,
        first_env: int = 0, max_restarts: int = 0, close_broken: Callable[[Closable], None] = close_quietly,
        *, rounds_up: bool = False,
    ) -> None:  # fmt: skip
        self.agents = agents_of(first)
        count = len(self.agents)
        num_simulators = -(-num_envs // count)
        if num_envs % count and not rounds_up:
            first.close()
            raise ValueError(
                f"num_envs={num_envs} counts agents here, and must be a multiple of the {count} agents of one"
                f" simulator of {maker.env_id}: {num_simulators * count} are {num_simulators} simulator(s) per worker"
            )
        super().__init__(maker, num_simulators, episode_seed, first_env, max_restarts, close_broken, made=[first])
        self.num_envs = num_simulators * count
        self.description = self._remaker.description = (
            f"{num_simulators} x {maker.spec.id} of {count} agents that share the policy{maker.note}"
        )
        self._rows = [new_row(self.num_envs, self._shape, self._dtype) for _ in range(2)]
        layout = MaskLayout(self.action_space)
        self._masks = Masks(layout, self.observation_space, self.num_envs) if layout.size else None
        self._has_ended = np.zeros(self.num_envs, bool)  # agents that wait for the others of their simulator
        self._next_seeds = [0] * num_simulators

    def begin_episode(self, index: int) -> np.ndarray:
        simulator = index // len(self.agents)
        rows = self._rows_of(simulator)
        seed, *_ = [self._episode_seed(row) for row in range(rows.start, rows.stop)]
        observations = self._begin_by(simulator, seed)
        self._rows[0][0][rows] = observations
        return observations

    def reset(self) -> np.ndarray:
        self._start()
        for index in range(0, self.num_envs, len(self.agents)):
            self.begin_episode(index)
        return copied(self._rows[0][0])

    def step(self, actions: np.ndarray) -> Step:
        self._rows.reverse()
        observations, rewards, terminations, truncations = self._rows[0]
        valid = ~self._has_ended
        final_envs: list[np.ndarray] = []
        final_observations: list[np.ndarray] = []
        failed: list[int] = []
        if self._masks is not None:
            self._masks.turn()
        failure: Exception | None = None
        clock = self.clock
        began, reset_s, times_each = perf_counter(), clock.reset_s, clock.times_each
        clock.mark = began
        for simulator in range(len(self._envs)):
            rows = self._rows_of(simulator)
            try:
                self._advance(simulator, actions[rows], self._rows[1][0][rows])
            except Exception as error:
                failure = error
            if failure is not None:
                self._restart(simulator, failure)
                failure = None
                failed.append(simulator)
                observations[rows] = self._rows[1][0][rows]
                rewards[rows], terminations[rows], truncations[rows] = 0.0, False, valid[rows]
            if times_each:
                clock.end_step(simulator)
            ended = rows.start + (terminations[rows] | truncations[rows]).nonzero()[0]
            if not len(ended):
                continue
            final_envs.append(ended)
            final_observations.append(copied(observations[ended]))
            self._has_ended[ended] = True
            for index in ended.tolist():
                self._next_seeds[simulator] = self._episode_seed(index)
            if self._has_ended[rows].all():
                observations[rows] = self._begin_by(simulator, self._next_seeds[simulator])
        clock.end_row(began, reset_s)
        if self._restarts.total:
            self._restarts.forgive(failed)
        self._may_come_late = False
        marks = None if valid.all() else valid
        if not final_envs:
            return Step(observations, rewards, terminations, truncations, NO_ENVS, self._no_observations, marks)
        finals = np.concatenate(final_envs), np.concatenate(final_observations)
        return Step(observations, rewards, terminations, truncations, *finals, marks)

    def replay(
        self,
        seeds: Sequence[int],
        actions: Sequence[np.ndarray],
        deadline: float = math.inf,
        rewards: list[np.ndarray] | None = None,
    ) -> tuple[np.ndarray, list[int]]:
        self._start()
        failed: list[int] = []
        for simulator in range(len(self._envs)):
            rows = self._rows_of(simulator)
            history = actions[rows]
            earned = np.zeros((len(self.agents), max(map(len, history))))
            failure = None
            is_there = False
            try:
                if len({len(one) for one in history}) == 1:
                    joint = np.stack(history, axis=1)
                    is_there = self._replay(simulator, seeds[rows.start], joint, deadline, earned)
            except Exception as error:
                failure = error
            if failure is not None:
                self._restart(simulator, failure)
            if not is_there:
                failed += range(rows.start, rows.stop)
            if rewards is not None:
                rewards += [mine[: len(one)] for mine, one in zip(earned, history, strict=True)]
        return copied(self._rows[0][0]), failed

    def _replay(self, index: int, seed: int, history: np.ndarray, deadline: float, earned: np.ndarray) -> bool:
        """Brings one simulator to the end of `history` [L, A, *act]. Returns whether it is there, its episode under
        way. Writes the rewards to `earned` [A, L].
        """
        observations, rewards, terminations, truncations = self._rows[0]
        rows, curriculum = self._rows_of(index), self.curriculum
        plan = {} if curriculum is None else curriculum.take_plan(rows.start)
        if curriculum is not None and BEFORE_RESET in plan:
            curriculum.tell_one(index, plan[BEFORE_RESET])
        observations[rows] = self._begin(index, seed)
        for t, actions in enumerate(history):
            if curriculum is not None and t in plan:
                curriculum.tell_one(index, plan[t])
            self._advance(index, actions, observations[rows])
            earned[:, t] = rewards[rows]
            self._has_ended[rows] |= terminations[rows] | truncations[rows]
            if self._has_ended[rows].all() or time.monotonic() > deadline:
                return False
        return True

    def _advance(self, simulator: int, actions: np.ndarray, before: np.ndarray) -> None:
        """Steps a simulator, and writes what its agents have to the newest row; those that wait keep the observations
        that they had `before` [A, *obs].
        """
        rows = self._rows_of(simulator)
        plays = ~self._has_ended[rows]
        joint: Any = self._envs[simulator].step(actions)
        new, earned, terminated, truncated, infos = joint
        observations, rewards, terminations, truncations = (column[rows] for column in self._rows[0])
        observations[...] = before
        observations[plays] = new[plays]
        rewards[...] = np.where(plays, earned, 0.0)
        terminations[...], truncations[...] = plays & terminated, plays & truncated
        self._read_masks(rows, plays & ~(terminations | truncations), observations, infos, "step")
        if self._may_come_late:
            for info in infos.values():
                refuse_late(info)

    def _read_masks(
        self, rows: slice, plays: np.ndarray, observations: np.ndarray, infos: Mapping[str, Any], call: str
    ) -> None:
        """Reads the masks of the agents of a simulator that `plays` [A] names. All is legal for those that wait."""
        if self._masks is None:
            return
        for agent, name in enumerate(self.agents):
            if plays[agent]:
                self._masks.read(rows.start + agent, None, observations[agent], infos.get(name, {}), call)
            else:
                self._masks.permit(rows.start + agent)

    def _begin(self, index: int, seed: int) -> np.ndarray:
        """Resets a simulator. Returns its agents' first observations [A, *obs]."""
        rows, simulator = self._rows_of(index), self._envs[index]
        if agents_of(simulator) != self.agents:
            raise ValueError(
                f"a simulator has the agents {list(agents_of(simulator))}, and another one {list(self.agents)}: the"
                " agents of all must be the same"
            )
        began = perf_counter()
        observations, infos = simulator.reset(seed=int(seed))
        self.clock.end_reset(perf_counter() - began)
        self._has_ended[rows] = False
        masks, info = self._masks, infos.get(self.agents[0], {})
        if masks is not None and not (masks.is_found or masks.find(None, info)):
            self._masks, self._may_come_late = None, True
        self._read_masks(rows, np.ones(len(self.agents), bool), observations, infos, "reset")
        return observations

    def _rows_of(self, simulator: int) -> slice:
        """Returns the environments that are the agents of a simulator."""
        return slice(simulator * len(self.agents), (simulator + 1) * len(self.agents))
