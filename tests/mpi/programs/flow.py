"""Plays the Kuramoto-Sivashinsky example on 1, 2 and all ranks: flow.py FOLDER. Rank 0 prints what each has seen."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from kuramoto_sivashinsky import KuramotoSivashinsky
from mpi4py import MPI

STEPS, SAVED = 20, 8


def play(comm: MPI.Intracomm, folder: Path) -> dict[str, list[list[float]]]:
    """The first steps of an episode, and the rest of them again from a state that was saved."""
    env = KuramotoSivashinsky(comm)
    actions = np.random.default_rng(3).uniform(-1.2, 1.2, (STEPS, 4)).astype(np.float32)

    def steps(first: int) -> list[list[float]]:
        return [[*observation.tolist(), reward] for observation, reward, *_ in map(env.step, actions[first:])]

    env.reset(seed=7)
    whole = steps(0)
    env.reset(seed=7)
    for action in actions[:SAVED]:
        env.step(action)
    env.save_state(folder)
    steps(SAVED)
    comm.Barrier()
    env.load_state(folder)
    return {"whole": whole, "again": steps(SAVED)}


def main(folder: Path) -> None:
    world, played = MPI.COMM_WORLD, {}
    for ranks in (1, 2, world.size):
        comm = world.Split(int(world.rank < ranks))
        if world.rank < ranks:
            played[ranks] = play(comm, folder / str(ranks))
    if world.rank == 0:
        print(json.dumps(played))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
