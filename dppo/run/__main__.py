"""python -m dppo.run. Only in this module does the order of imports matter.

Guards fork before there are threads, and NumPy, torch and MPI read the environment when they are imported.
"""

from __future__ import annotations

import signal
import sys
import time

from dppo.errors import NoMPIError


def main() -> None:
    """Runs a rank from its start to its end."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the signal can be noted: no traceback from within an import
    started = time.monotonic()
    from dppo.cluster import guard, launcher, startup

    startup.prepare()
    # beside a simulator, which waits for dppo, the run answers
    if not {"-h", "--help", "--version"}.isdisjoint(sys.argv) and (launcher.num_programs() or 1) == 1:
        from dppo.settings.flags import answer

        raise SystemExit(answer(sys.argv[1:], is_first=launcher.is_first()))
    startup.note_early_signals(guard.leave_at_once)
    guard.stand()
    startup.let_children_start_afresh()
    try:
        from dppo.run import command
    except NoMPIError as error:
        raise SystemExit(startup.say_no_mpi(error)) from None
    command.run(started)


if __name__ == "__main__":
    main()
