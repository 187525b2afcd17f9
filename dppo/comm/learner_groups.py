"""Pools: where ranks outnumber cores, or GPUs, one worker per core, or GPU, computes the gradients of its neighbours'
samples.

Taking turns on a core for each small update costs more than the update: with 31 workers on 2 cores, every turn begins
with a cold cache, and MPI's waits spin. So a worker that has collected puts its samples into shared memory and sleeps
until the first worker of its pool has made all updates of the iteration. The average by samples is the same; only
another worker computes it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Sequence

import numpy as np

from dppo.comm.mpi import MPI
from dppo.comm.sharing import PAGE, Counters, share
from dppo.comm.wakeup import Neighbours
from dppo.errors import RankFailure

_ALIGNMENT = 64


class Pool:
    """Workers of one node that share a learner; the first of them computes.

    The first worker waits for the arrays of all others, and answers when the iteration is over. The others write again
    only after the answer; the first worker overwrites the answer only after all others have written.

    Args:
      slots: [workers of the pool, bytes] uint8, shared; slot 0 holds the answer.
      counters: shared: puts of each worker, answers of the first one, and whether the pool is given up.
      workers: numbers of the workers of the pool, in order.
      place: index of this worker among `workers`.
    """

    LOOK_S = 0.05

    def __init__(self, slots: np.ndarray, counters: Counters, workers: Sequence[int], place: int) -> None:
        self._slots, self._counters, self._workers, self._place = slots, counters, workers, place
        self._given_up, self._round = len(workers), 0
        self.computes = place == 0
        self.waited_s = 0.0

    def put(self, arrays: Sequence[np.ndarray]) -> None:
        """Writes the arrays of a worker that does not compute, B rows each. The last array may have another length,
        which is always the same.
        """
        slot = self._slots[self._place]
        slot[:8].view(np.int64)[0] = len(arrays[0])
        for view, array in zip(_views(slot, arrays, len(arrays[0])), arrays, strict=True):
            view[...] = array
        self._counters.count_up(self._place)

    def take(
        self, like: Sequence[np.ndarray], meanwhile: Callable[[], object] = lambda: None
    ) -> list[tuple[int, list[np.ndarray]]]:
        """Waits for the other workers. Returns (worker, arrays) of each, in order, with types and widths as in `like`;
        valid until `answer`.
        """
        self._round += 1
        self._wait_for(range(1, len(self._workers)), meanwhile)
        members = zip(self._workers[1:], self._slots[1:], strict=True)
        return [(worker, _views(slot, like, int(slot[:8].view(np.int64)[0]))) for worker, slot in members]

    def answer(self, message: np.ndarray) -> None:
        """Wakes the other workers with uint8 `message`; an empty one says that the run has ended."""
        slot = self._slots[0]
        slot[:8].view(np.int64)[0] = len(message)
        slot[8 : 8 + len(message)] = message
        self._counters.count_up(0)

    def wait(self, meanwhile: Callable[[], object] = lambda: None) -> np.ndarray:
        """Waits for the answer to this worker's `put`. Returns a view that is valid until the next `put`."""
        self._round += 1
        self._wait_for((0,), meanwhile)
        slot = self._slots[0]
        return slot[8 : 8 + int(slot[:8].view(np.int64)[0])]

    def _wait_for(self, places: Sequence[int], meanwhile: Callable[[], object]) -> None:
        """Waits until all workers of `places` have counted this round. Calls `meanwhile` first, and each `LOOK_S`: a
        message of this rank moves only while the rank calls MPI, and rank 0 may wait for it.
        """
        since = time.monotonic()
        meanwhile()
        for place in places:
            while not self._counters.comes_to(place, self._round, self.LOOK_S):
                # a worker that has counted may give the pool up and leave: its earlier count remains valid
                if self._counters[self._given_up] and not self._counters.is_at(place, self._round):
                    raise RankFailure("a neighbour has given up the pool")
                meanwhile()
        self.waited_s += time.monotonic() - since

    def give_up(self) -> None:
        """Tells the workers that sleep in this pool that nothing will come, so that all regroup."""
        self._counters.count_up(self._given_up)
        for place in range(self._given_up):
            self._counters.wake(place)


def _views(slot: np.ndarray, like: Sequence[np.ndarray], rows: int) -> list[np.ndarray]:
    """Returns views of the arrays in a slot: `rows` rows of each but the last, whose length is that in `like`."""
    views, start = [], _ALIGNMENT
    for i, array in enumerate(like):
        shape = array.shape if i == len(like) - 1 else (rows, *array.shape[1:])
        num_bytes = int(np.prod(shape)) * array.itemsize
        views.append(slot[start : start + num_bytes].view(array.dtype).reshape(shape))
        start += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
    return views


def slot_bytes(arrays: Sequence[np.ndarray], rows: int) -> int:
    """Returns the bytes that `put` needs for arrays like these with at most `rows` rows."""
    return sum(rows * array[:1].nbytes + _ALIGNMENT for array in arrays[:-1]) + arrays[-1].nbytes + 2 * _ALIGNMENT


def make_pool(
    workers: MPI.Comm,
    num_bytes: int,
    numbers: Sequence[int] | None = None,
    opened: list[MPI.Comm] | None = None,
    gpus: Collection[str] = (),
) -> tuple[Pool | None, MPI.Comm]:
    """Collective over `workers`. Returns this worker's pool, and the communicator of the workers that compute.

    Returns None and `workers` if every worker has a core, and a GPU where there are some, to itself, or if there is no
    shared memory for the pools.

    Args:
      numbers: the workers' numbers, if they are not their ranks.
      gpus: the GPUs that this worker may use, by their names on the node.
      opened: gets the communicators that are made here, before a worker waits in them; after a death, all are revoked.
    """
    neighbours = Neighbours(workers, gpus)
    if not neighbours.any_crowded:
        return None, workers
    mine = next(group for group in neighbours.groups() if workers.rank in group)
    stride = -(-num_bytes // PAGE) * PAGE
    room_for_counters = -(-4 * (len(mine) + 1) // PAGE) * PAGE
    memory = share(workers, mine, room_for_counters + len(mine) * stride)
    if memory is None:
        if workers.rank == 0:
            print(
                "dppo: workers outnumber cores or GPUs, and cannot pool their samples, because a node has no shared"
                " memory for them (is /dev/shm full?): training is slower, and its numbers differ by rounding",
                file=sys.stderr,
                flush=True,
            )
        return None, workers
    place = mine.index(workers.rank)
    members = mine if numbers is None else [numbers[rank] for rank in mine]
    slots = memory[room_for_counters:].reshape(len(mine), stride)
    pool = Pool(slots, Counters(memory[:room_for_counters]), members, place)
    computing = workers.Split(color=int(place > 0), key=workers.rank)
    if opened is not None:
        opened.append(computing)
    return pool, computing
