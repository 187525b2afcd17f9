"""Workers make pools, with a call that fails on one of them, and pass two rounds through those that they have.

    mpirun -n 5 python on_two_cores.py pools_that_fail OUT.json

OUT.json: {case: what each rank got}. A rank got the number of ranks that compute; files of its own that still have a
name; and where it has a pool, of each round: [(worker, first number of its samples)] if it computes, else the answer.
"""

from __future__ import annotations

import contextlib
import errno
import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from mpi4py import MPI

from dppo.comm.learner_groups import Pool, make_pool

CASES = {
    "nothing": ("", 0),
    "no file": ("tempfile.mkstemp", 2),
    "no file for the first": ("tempfile.mkstemp", 0),
    "no room": ("os.posix_fallocate", 2),
    "not opened": ("os.open", 4),
    "not mapped": ("mmap.mmap", 1),
    "not mapped where it was made": ("mmap.mmap", 2),
}
"""Which call fails, and on which rank."""


def failing(name: str) -> contextlib.AbstractContextManager[Any]:
    """The call `name` fails as on a full disk."""
    return patch(name, side_effect=OSError(errno.ENOSPC, "simulated")) if name else contextlib.nullcontext()


def rounds(pool: Pool, rank: int) -> list[Any]:
    """Two, of r + 1 samples of worker r; the answer is the round's number, as often as its sender's number."""
    out: list[Any] = []
    for number in (1, 2):
        samples: list[np.ndarray] = [np.full((rank + 1, 3), 10 * number + rank, np.float32), np.zeros(2)]
        if pool.computes:
            out.append([(worker, float(taken[0][-1, -1])) for worker, taken in pool.take(samples)])
            pool.answer(np.full(rank, number, np.uint8))
        else:
            pool.put(samples)
            out.append(pool.wait().tolist())
    return out


def main() -> None:
    comm, results = MPI.COMM_WORLD, {}
    made: list[Path] = []
    mkstemp = tempfile.mkstemp

    def noted(*args: Any, **kwargs: Any) -> tuple[int, str]:
        file, path = mkstemp(*args, **kwargs)
        made.append(Path(path))
        return file, path

    tempfile.mkstemp = noted  # type: ignore[assignment]
    for case, (call, where) in CASES.items():
        with failing(call if comm.rank == where else ""):
            pool, computing = make_pool(comm, 1000)
        left = [str(path) for path in made if path.exists()]
        got = {"computing": computing.size, "left": left, "rounds": rounds(pool, comm.rank) if pool else None}
        results[case] = comm.gather(got)
        for path in made:
            path.unlink(missing_ok=True)
    if comm.rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
