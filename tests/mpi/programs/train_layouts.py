"""Trains several configurations, each on the first so many ranks: one start of Python for many small runs.

SIGUSR1 ends the run that is under way; the next one begins.

mpirun -n 5 python train_layouts.py JOBS.json      with JOBS.json = [{"ranks": 2, "flags": ["--env", …]}, …]
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from mpi4py import MPI

from dppo import train
from dppo.settings.flags import parse


def main() -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # one that comes when its run has left must not end the next
    world = MPI.COMM_WORLD
    for job in json.loads(Path(sys.argv[1]).read_text()):
        comm = world.Split(0 if world.rank < job["ranks"] else MPI.UNDEFINED, world.rank)
        if comm != MPI.COMM_NULL:
            config, _ = parse(job["flags"])
            train(config, comm, quiet=True)
            comm.Free()
        world.Barrier()


if __name__ == "__main__":
    main()
