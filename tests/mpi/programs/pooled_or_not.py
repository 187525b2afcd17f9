"""Trains several configurations, each on the first so many ranks, with workers pooled or each computing by itself.

    mpirun -n R python on_two_cores.py pooled_or_not JOBS.json
    with JOBS.json = [{"ranks": 6, "pooled": true, "flags": ["--env", …]}, …]

That workers were pooled, or were not, is checked.
"""

from __future__ import annotations

import first  # noqa: F401

# isort: split
import json
import sys
from pathlib import Path

from mpi4py import MPI

import dppo.run.session
from dppo.comm.learner_groups import Pool, make_pool
from dppo.run import command
from dppo.settings.flags import parse

Made = tuple[Pool | None, MPI.Comm]


def main() -> None:
    world = MPI.COMM_WORLD
    for job in json.loads(Path(sys.argv[1]).read_text()):
        made: list[bool] = []

        def make(
            workers: MPI.Comm,
            num_bytes: int,
            numbers: list[int],
            opened: list[MPI.Comm],
            gpus: list[str],
            pooled: bool = job["pooled"],
            made: list[bool] = made,
        ) -> Made:
            pool, computing = make_pool(workers, num_bytes, numbers, opened, gpus) if pooled else (None, workers)
            made.append(pool is not None)
            return pool, computing

        dppo.run.session.make_pool = make  # type: ignore[attr-defined]
        comm = world.Split(0 if world.rank < job["ranks"] else MPI.UNDEFINED, world.rank)
        if comm != MPI.COMM_NULL:
            config, _ = parse(job["flags"])
            command.train(config, comm, quiet=True)
            assert made == [job["pooled"] and comm.rank > 0]
            comm.Free()
        world.Barrier()


if __name__ == "__main__":
    main()
