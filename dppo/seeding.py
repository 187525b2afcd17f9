"""Independent random streams: one per environment by its global number, one per worker for shuffling.

A stream is a pure function of (seed, purpose, number, block). So only its position has to be saved, and no two streams
ever share a draw, not even after a resume.
"""

from __future__ import annotations

import random
import sys
from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """The first word of a stream's spawn key: streams of different purposes never meet."""

    INIT = 0
    EPISODES = 1
    ACTIONS = 2
    SHUFFLE = 3
    EVALUATION = 4
    GLOBAL = 5


def generator(seed: int, purpose: Purpose, *key: int) -> np.random.Generator:
    """Makes a fresh generator of the stream `key`, spawned from `seed`."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(int(purpose), *key))))


def evaluation_seed(seed: int) -> int:
    """Returns the seed of the episodes by which a run of `seed` is evaluated while it trains, in [0, 2^63). It is none
    that a person would choose: `dppo.evaluate --seed` plays other episodes than those that have chosen the best
    checkpoint.
    """
    return int(generator(seed, Purpose.EVALUATION, 0).integers(2**63))


def seed_global_generators(seed: int, *key: int) -> None:
    """Seeds the global generators of Python, NumPy and (where it is imported) torch from the stream `key`. dppo does
    not draw from them, but environments may. One that has seeded them when it was made would give all workers the same
    numbers.
    """
    words = np.random.SeedSequence(seed, spawn_key=(int(Purpose.GLOBAL), *key)).generate_state(4)
    number = int.from_bytes(words.tobytes(), "little")
    random.seed(number)
    np.random.seed(words)  # noqa: NPY002 (others may draw from it)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(number % 2**63)


def draw_noise(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draws float32 numbers of `shape`: `normal` (standard), `uniform` in [0, 1), or `gumbel` (standard)."""
    if kind == "normal":
        return rng.standard_normal(shape, np.float32)
    if kind == "uniform":
        return rng.random(shape, np.float32)
    assert kind == "gumbel", kind
    exponential = rng.standard_exponential(shape, np.float32)
    # in one draw of eight million it is 0, which means anything below the generator's step of 2^-23
    np.maximum(exponential, np.float32(2.0**-24), out=exponential)
    return np.negative(np.log(exponential, out=exponential), out=exponential)


def draw_rows(rng: np.random.Generator, kinds: tuple[tuple[str, int], ...], count: int) -> np.ndarray:
    """Draws rows of noise, [count, size] float32. `kinds`: (kind, how many numbers) of what lies side by side in a row.
    All numbers of the first kind are drawn, then all of the next.
    """
    drawn = [draw_noise(rng, kind, (count, size)) for kind, size in kinds]
    return drawn[0] if len(drawn) == 1 else np.concatenate(drawn, axis=1)


class EpisodeSeeds:
    """The seeds of a worker's episodes: episode e of global environment g always has the same seed.

    Args:
      agents: number of environments side by side that are agents of one simulator, and share the seeds of the first.
    """

    BLOCK = 64

    def __init__(
        self, seed: int, first_env: int, num_envs: int, purpose: Purpose = Purpose.EPISODES, agents: int = 1
    ) -> None:
        self._seed, self._first_env, self._purpose, self._agents = seed, first_env, purpose, agents
        self.episodes = np.full(num_envs, -1, np.int64)  # number of each environment's current episode
        self._blocks: list[tuple[int, np.ndarray]] = [(-1, np.empty(0))] * num_envs

    def of(self, index: int, episode: int) -> int:
        """Returns the seed of an episode of local environment `index`, in [0, 2^31)."""
        block, within = divmod(episode, self.BLOCK)
        index -= index % self._agents
        if self._blocks[index][0] != block:
            rng = generator(self._seed, self._purpose, self._first_env + index, block)
            self._blocks[index] = (block, rng.integers(2**31, size=self.BLOCK))
        return int(self._blocks[index][1][within])

    def next(self, index: int) -> int:
        """Moves local environment `index` to its next episode and returns the seed of that episode."""
        self.episodes[index] += 1
        return self.of(index, int(self.episodes[index]))

    def current(self) -> list[int]:
        """Returns the seeds of the current episodes, one per environment."""
        return [self.of(i, int(e)) for i, e in enumerate(self.episodes)]


class ActionNoise:
    """The randomness of action sampling: row r of global environment g sees the same numbers under any layout.

    Blocks of many rows are drawn at once, so that a stream per environment costs nothing per step. Where rows are long,
    a block has fewer, so that it takes no more than 256 kB of memory.
    """

    BLOCK = 1024

    def __init__(self, seed: int, first_env: int, num_envs: int, kinds: tuple[tuple[str, int], ...]) -> None:
        self._seed, self._first_env, self._num_envs, self._kinds = seed, first_env, num_envs, kinds
        self._size = sum(size for _, size in kinds)
        self._rows_per_block = max(1, min(self.BLOCK, 65_536 // max(1, self._size)))
        self._block = -1
        self._values = np.empty((0, num_envs, self._size), np.float32)

    def _fill(self, block: int) -> None:
        if block == self._block:
            return
        values = np.empty((self._num_envs, self._rows_per_block, self._size), np.float32)
        for i in range(self._num_envs):
            rng = generator(self._seed, Purpose.ACTIONS, self._first_env + i, block)
            values[i] = draw_rows(rng, self._kinds, self._rows_per_block)
        self._block, self._values = block, np.ascontiguousarray(values.swapaxes(0, 1))

    def rows(self, first: int, count: int) -> np.ndarray:
        """Returns rows [first, first + count) of all environments: [count, N, size] float32."""
        out = np.empty((count, self._num_envs, self._size), np.float32)
        done = 0
        while done < count:
            block, within = divmod(first + done, self._rows_per_block)
            self._fill(block)
            take = min(count - done, self._rows_per_block - within)
            out[done : done + take] = self._values[within : within + take]
            done += take
        return out
