"""Speaks with simulators as workers do, without training: couple.py FOLDER G. Rank 0 prints what they have answered.

Each worker plays one episode of the heat problem with its simulator, saves its state on the way, and plays the rest
again from there. A third worker's simulator, of the same program as the first's, begins with the first one's state.
With G = 1, the Python form of the problem is played on 1, 2 and all ranks of this program.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dppo.cluster import startup
from dppo.comm import mpi
from dppo.comm.mpi import MPI
from dppo.config import Config
from dppo.envs import Solver
from dppo.run import solvers

HEAT = Path(__file__).parents[3] / "examples" / "heat" / "heat.py"
SEED, STEPS, SAVED = 7, 60, 25


def actions() -> np.ndarray:
    return np.random.default_rng(3).uniform(-1.2, 1.2, (STEPS, 4)).astype(np.float32)


def steps(env: Any, first: int) -> list[list[float]]:
    """The rest of an episode from step `first` on: observation, reward and whether it was the last, of each step."""
    rows = []
    for action in actions()[first:]:
        observation, reward, terminated, truncated, _ = env.step(action)
        assert not terminated
        rows.append([*observation.tolist(), reward, float(truncated)])
    return rows


def episode(env: Any) -> list[list[float]]:
    return [env.reset(seed=SEED)[0].tolist(), *steps(env, 0)]


def play(env: Any, folder: Path) -> dict[str, Any]:
    whole = episode(env)
    env.reset(seed=SEED)
    for action in actions()[:SAVED]:
        env.step(action)
    env.save_state(folder)
    steps(env, SAVED)
    env.load_state(folder)
    return {"whole": whole, "again": steps(env, SAVED)}


def main(folder: Path, env_ranks: int) -> None:
    startup.prepare()
    mpi.start()
    world = MPI.COMM_WORLD
    found = solvers.part(world)
    own = found.own
    found.meet(own, MPI.COMM_SELF, Config(env="dppo.envs:Solver", env_ranks=env_ranks, num_envs=1))
    played = play(Solver(), folder / f"state_{own.rank}") if own.rank in (1, 2) else {}
    own.Barrier()
    if own.rank == 3:
        env = Solver()
        env.load_state(folder / "state_1")
        played = {"again": steps(env, SAVED)}
    if env_ranks == 1:
        spec = importlib.util.spec_from_file_location("heat", HEAT)
        assert spec is not None and spec.loader is not None
        heat = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(heat)
        for ranks in (1, 2, own.size):
            comm = own.Split(int(own.rank < ranks))
            if own.rank < ranks:
                played[f"python on {ranks}"] = episode(heat.Heat(comm))
            if own.rank == 0 and ranks == 1:
                played["python alone"] = episode(heat.Heat())
    all_played = own.gather(played)
    if own.rank == 0:
        print(json.dumps(all_played))
    sys.stdout.flush()
    found.let_go()
    MPI.Finalize()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
