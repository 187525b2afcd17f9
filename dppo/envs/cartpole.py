"""Steps N cart-poles in NumPy, bit-equal to N single `CartPole-v1` environments and several times as fast.

Gymnasium's own vector form is not used. It draws all start states from one stream, so that an episode depends
on the number of others and cannot be replayed. And three quarters of its step of 8 poles go into checks and
temporary arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import seeding

from dppo.seams import NO_ENVS, EpisodeSeed, Step


def is_plain_cartpole(spec: EnvSpec) -> bool:
    """Returns whether `spec` is Gymnasium's own CartPole, unchanged: then this module may replace it."""
    return (
        spec.id in ("CartPole-v0", "CartPole-v1")
        and spec.entry_point == "gymnasium.envs.classic_control.cartpole:CartPoleEnv"
        and spec.max_episode_steps is not None
        and not spec.kwargs
        and not spec.additional_wrappers
    )


class CartPoleVector:
    """N cart-poles. Each of their episodes begins with a seed of its own.

    Actions are not checked: they must be 0 or 1, as those of a categorical policy are.
    """

    replayable = True
    curriculum = None
    mask_size, masks = 0, None
    restarts = 0
    agents: tuple[str, ...] = ()

    def __init__(self, spec: EnvSpec, num_envs: int, episode_seed: EpisodeSeed) -> None:
        assert spec.max_episode_steps is not None
        self._episode_seed = episode_seed
        self._max_episode_steps = spec.max_episode_steps
        self.num_envs = num_envs
        self.description = f"{num_envs} x {spec.id}, stepped together in NumPy, a seed per episode"
        self._physics = _Physics(num_envs)
        self.observation_space = self._physics.single.observation_space
        self.action_space = self._physics.single.action_space
        self._now = 0  # rows stepped so far
        self._time_limits = np.zeros(num_envs, np.int64)  # the row at which each episode is truncated
        self._next_time_limit = 0  # never later than the first of the time limits, and compared in their place
        self._buffers = [np.empty((num_envs, 4), np.float32) for _ in range(2)]
        # Shared by the many rows in which no episode ends.
        self._rewards = np.ones(num_envs, np.float32)
        self._no_ends = np.zeros(num_envs, bool)
        self._no_observations = np.empty((0, 4), np.float32)
        for shared in (self._rewards, self._no_ends, self._no_observations):
            shared.setflags(write=False)

    def reset(self) -> np.ndarray:
        for index in range(self.num_envs):
            self._begin(index, self._episode_seed(index))
        self._next_time_limit = self._now + self._max_episode_steps
        return self._observe()

    def begin_episode(self, index: int) -> np.ndarray:
        return self._begin(index, self._episode_seed(index)).astype(np.float32)

    def step(self, actions: np.ndarray) -> Step:
        any_fell = self._physics.advance(actions)
        self._now += 1
        observations = self._observe()
        if not any_fell and self._now < self._next_time_limit:
            return Step(observations, self._rewards, self._no_ends, self._no_ends, NO_ENVS, self._no_observations)
        terminations = self._physics.fallen()
        truncations = self._time_limits == self._now
        final_envs = (terminations | truncations).nonzero()[0]
        final_observations = observations[final_envs]
        for index in final_envs.tolist():
            observations[index] = self._begin(index, self._episode_seed(index))
        self._next_time_limit = int(self._time_limits.min())
        return Step(observations, self._rewards, terminations, truncations, final_envs, final_observations)

    def replay(
        self,
        seeds: Sequence[int],
        actions: Sequence[np.ndarray],
        deadline: float = math.inf,
        rewards: list[np.ndarray] | None = None,
    ) -> tuple[np.ndarray, list[int]]:
        # The deadline is not looked at: at most 500 rows of all environments at once take milliseconds. All histories
        # end in the last row; each pole is put into its start state in the row where its own history begins.
        failed = {index for index, history in enumerate(actions) if len(history) >= self._max_episode_steps}
        lengths = [0 if index in failed else len(history) for index, history in enumerate(actions)]
        longest = max(lengths)
        rows = np.zeros((longest, self.num_envs), np.int64)
        begins: dict[int, list[int]] = {}
        for index, length in enumerate(lengths):
            begins.setdefault(longest - length, []).append(index)
            rows[longest - length :, index] = actions[index][:length]
        begun = np.zeros(self.num_envs, bool)
        self._physics.clear()
        for row in range(longest + 1):
            for index in begins.get(row, ()):
                self._begin(index, seeds[index])
                begun[index] = True
            if row < longest:
                if self._physics.advance(rows[row]):
                    failed.update((self._physics.fallen() & begun).nonzero()[0].tolist())
                self._now += 1
        self._next_time_limit = int(self._time_limits.min())
        if rewards is not None:
            rewards += [np.ones(len(history)) for history in actions]
        return self._observe(), sorted(failed)

    def close(self) -> None:
        pass

    def _begin(self, index: int, seed: int) -> np.ndarray:
        """Begins an episode as CartPoleEnv.reset does. Returns its first observation [4], in float64."""
        generator, _ = seeding.np_random(int(seed))
        start = generator.uniform(-0.05, 0.05, 4)
        self._physics.set_state(index, start)
        self._time_limits[index] = self._now + self._max_episode_steps
        return start

    def _observe(self) -> np.ndarray:
        observations = self._buffers[self._now & 1]
        self._physics.write_observations(observations)
        return observations


class _Physics:
    """The equations of CartPoleEnv.step for N poles, with its operations in its order, so that all bits are equal.

    A NumPy call on a few numbers costs 0.3 µs whatever it computes, so the step needs few calls: rows that undergo
    the same operation lie next to each other, and results go into existing memory.
    """

    def __init__(self, num_envs: int) -> None:
        self.single = single = CartPoleEnv()
        if single.kinematics_integrator != "euler":
            raise RuntimeError(f"Gymnasium's CartPole now integrates by {single.kinematics_integrator!r}, not 'euler'")

        self._forces = np.array([-single.force_mag, single.force_mag])
        self._gravity = np.array(single.gravity)
        self._total_mass = np.array(single.total_mass)
        self._tau = np.array(single.tau)
        # CartPoleEnv multiplies its denominator, 4/3 - masspole * cos² / total_mass, by length = 0.5. Halving
        # is exact in binary, so both constants are halved here: a call less, and no bit changes. The constant
        # of cos² becomes masspole * length, which is polemass_length.
        assert single.length == 0.5
        self._half_4_3 = np.array(4.0 / 3.0 * single.length)
        self._polemass_length = np.array(single.polemass_length)
        # Spread over the poles, because to broadcast a column costs as much as another call.
        limits = np.array([[single.x_threshold], [single.theta_threshold_radians]])
        self._limits = np.repeat(limits, num_envs, axis=1)

        # x, theta, their velocities, their accelerations: Euler's step adds tau * rows 2..5 to rows 0..3.
        self._motion = motion = np.zeros((6, num_envs))
        self._state, self._derivative, self._positions = motion[:4], motion[2:], motion[:2]
        self._theta, self._theta_acc, self._x_acc = motion[1], motion[5], motion[4]
        # The cosine borrows the row of x's acceleration, which is computed last, to be squared together with
        # theta's velocity in the row before.
        self._cos, self._to_square = motion[4], motion[3:5]
        # CartPole observes x, its velocity, theta, its velocity: as [N, cart or pole, position or velocity].
        self._as_observed = self._state.reshape(2, 2, num_envs).transpose(2, 1, 0)

        self._sin, self._work = np.empty(num_envs), np.empty(num_envs)
        self._squares = np.empty((2, num_envs))
        self._temp, self._denominator = self._squares
        self._change = np.empty((4, num_envs))
        self._distances, self._outside = np.empty((2, num_envs)), np.zeros((2, num_envs), bool)

    def advance(self, actions: np.ndarray) -> bool:
        """Moves every pole by one step under `actions` [N], each 0 or 1. Returns whether any has fallen."""
        add, subtract, multiply, divide = np.add, np.subtract, np.multiply, np.divide
        cos, sin, work, theta_acc = self._cos, self._sin, self._work, self._theta_acc
        squares, temp, denominator = self._squares, self._temp, self._denominator
        np.sin(self._theta, sin)
        np.cos(self._theta, cos)
        # temp = (force + polemass_length * theta_dot² * sin) / total_mass
        # denominator = length * masspole * cos² / total_mass, for now
        np.square(self._to_square, squares)
        multiply(squares, self._polemass_length, squares)
        multiply(temp, sin, temp)
        add(temp, self._forces[actions], temp)
        divide(squares, self._total_mass, squares)
        # theta_acc = (gravity * sin - cos * temp) / (length * 4/3 - denominator)
        multiply(sin, self._gravity, sin)
        multiply(cos, temp, work)
        subtract(sin, work, sin)
        subtract(self._half_4_3, denominator, denominator)
        divide(sin, denominator, theta_acc)
        # x_acc = temp - polemass_length * theta_acc * cos / total_mass
        multiply(theta_acc, self._polemass_length, work)
        multiply(work, cos, work)
        divide(work, self._total_mass, work)
        subtract(temp, work, self._x_acc)
        multiply(self._derivative, self._tau, self._change)
        add(self._state, self._change, self._state)
        np.absolute(self._positions, self._distances)
        np.greater(self._distances, self._limits, self._outside)
        return 1 in self._outside.tobytes()  # a tenth of the time of .any()

    def fallen(self) -> np.ndarray:
        """Returns the poles that were out of bounds after the last `advance`, [N] bool."""
        fallen: np.ndarray = self._outside[0] | self._outside[1]
        return fallen

    def set_state(self, index: int, state: np.ndarray) -> None:
        """Puts one pole into `state` [4], in the order of the observation."""
        self._as_observed[index] = state.reshape(2, 2)

    def write_observations(self, out: np.ndarray) -> None:
        """Rounds the states to float32 into `out` [N, 4]."""
        np.copyto(out.reshape(-1, 2, 2), self._as_observed, casting="same_kind")

    def clear(self) -> None:
        """Puts every pole upright and still."""
        self._motion.fill(0.0)
