"""dppo.run with a simulator that has little time to begin."""

import runpy

from dppo.cluster import startup

startup.prepare()
from dppo.run import solvers  # noqa: E402

solvers.BEGIN_S = 3.0
runpy.run_module("dppo.run", run_name="__main__")
