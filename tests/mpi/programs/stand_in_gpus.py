"""Trains configurations on nodes that have as many GPUs and cores as the test wants, whatever the machine has.

    mpirun -n R python stand_in_gpus.py JOBS.json
    with JOBS.json = [{"ranks": 5, "gpus": 2, "cores": 2, "flags": ["--env", …]}, …]

"cpu:0" and "cpu:1" stand in for GPUs: to torch they are names of the CPU, to a network they are devices, which have
copies of its parameters. Before each pass the copies are compared with the parameters. The devices of all ranks, at the
end of a run, go to RUN.devices.json.

    mpirun -n R python stand_in_gpus.py GPUS FLAGS…     one run, as by dppo.run
"""

from __future__ import annotations

import first  # noqa: F401

# isort: split
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mpi4py import MPI

import dppo.models.gpus
import dppo.run.session
from dppo.models.torch_network import TorchNetwork
from dppo.run import command
from dppo.run.placement import place_network
from dppo.run.rank import Rank
from dppo.settings.flags import parse

placed: list[Any] = []


def audited(self: TorchNetwork, array: np.ndarray, enter: Any = TorchNetwork._tensor) -> torch.Tensor:
    tensor: torch.Tensor = enter(self, array)
    assert torch.equal(self._vector, self._host[0]), "a pass with parameters of long ago"
    assert not self._is_copied or self._vector.data_ptr() != self._host[0].data_ptr()
    return tensor


def note_place(me: Rank, computing: MPI.Comm, *, computes: bool) -> None:
    place_network(me, computing, computes=computes)
    placed.append(getattr(me.parts.policy.network, "_device", None))


def put_in(gpus: int) -> None:
    """Gives the node so many GPUs."""
    names = [dppo.models.gpus.GPU(f"cpu:{i}", f"stand-in {i}", "Stand-in") for i in range(gpus)]
    dppo.models.gpus.visible_gpus = lambda: tuple(names)


def main() -> None:
    TorchNetwork._tensor = audited  # type: ignore[method-assign]
    dppo.run.session.place_network = note_place  # type: ignore[attr-defined]
    if not sys.argv[1].endswith(".json"):
        put_in(int(sys.argv[1]))
        del sys.argv[1]
        command.run(time.monotonic())
    world, cores = MPI.COMM_WORLD, sorted(os.sched_getaffinity(0))
    for job in json.loads(Path(sys.argv[1]).read_text()):
        put_in(job["gpus"])
        os.sched_setaffinity(0, cores[: job["cores"]])
        comm = world.Split(0 if world.rank < job["ranks"] else MPI.UNDEFINED, world.rank)
        if comm != MPI.COMM_NULL:
            config, _ = parse(job["flags"])
            command.train(config, comm, quiet=True)
            devices = comm.gather(placed[-1])
            if devices is not None:
                Path(f"{config.run_dir}.devices.json").write_text(json.dumps(devices))
            comm.Free()
        world.Barrier()


if __name__ == "__main__":
    main()
