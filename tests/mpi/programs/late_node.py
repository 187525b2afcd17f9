"""The ranks of every node but the first start MPI late. Each prints when it began to, and when it had."""

from __future__ import annotations

import os
import time

from dppo.comm import mpi

LATE_S = 4.0

time.sleep(LATE_S * (os.environ["SLURM_NODEID"] != "0"))
began = time.time()
mpi.start()
print(f"{began} {time.time()}", flush=True)
