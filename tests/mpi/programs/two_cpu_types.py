"""dppo.run on ranks of which the last one takes its CPU for another type, as on a mixed cluster.

Each worker notes a checksum of its state after each iteration in worker_N.txt. With DRIFT in the environment the
gradient's norm is BLAS's, whose last bits depend on the type; with CHECK_EVERY, workers compare their states so often.
"""

from __future__ import annotations

import os

if os.environ["OMPI_COMM_WORLD_RANK"] == str(int(os.environ["OMPI_COMM_WORLD_SIZE"]) - 1):
    os.environ["OPENBLAS_CORETYPE"] = "Prescott"  # before NumPy is there, which has kernels of its own besides
    os.environ["NPY_DISABLE_CPU_FEATURES"] = "X86_V3 AVX2 FMA3"

import first  # noqa: F401

# isort: split
import sys
import zlib
from typing import Any

import numpy as np

from dppo.run import command
from dppo.training import state, sync_allreduce
from dppo.training.sync_allreduce import AllreduceExchange


def main() -> int:
    finish = AllreduceExchange.finish_iteration

    def finish_and_note(self: Any, totals: np.ndarray) -> None:
        finish(self, totals)
        packed = self._state.packed()
        with open(f"worker_{os.environ['OMPI_COMM_WORLD_RANK']}.txt", "a") as file:
            file.write(f"{self._state.iteration} {zlib.crc32(packed.tobytes())}\n")

    AllreduceExchange.finish_iteration = finish_and_note  # type: ignore[method-assign]
    sync_allreduce.CHECK_EVERY = int(os.environ.get("CHECK_EVERY", sync_allreduce.CHECK_EVERY))
    if os.environ.get("DRIFT"):
        state.squared_norm = lambda vector, _: float(np.dot(vector, vector))  # type: ignore[attr-defined]
    return command.main()


if __name__ == "__main__":
    sys.exit(main())
