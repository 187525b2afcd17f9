"""Runs a module on two cores, however many there are: ranks that outnumber them are pooled.

mpirun -n R python on_two_cores.py MODULE ARGUMENTS…      as dppo.run FLAGS…, or pooled_or_not JOBS.json
"""

from __future__ import annotations

import os
import runpy
import sys

if __name__ == "__main__":
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
