"""python -m dppo.requeue: has Slurm start this batch job, or task of an array, again: soon, on what nodes there are.

The scripts in jobs/ need it. Slurm alone would wait for `AuthInfo=cred_expire`, two minutes by default, and for as many
nodes as before, because it remembers how many tasks there were.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from dppo.cluster.slurm import JOB_ID, tasks_of_one_node, this_allocation
from dppo.errors import EXIT_AGAIN, EXIT_FAILED, EXIT_USAGE, UsageError
from dppo.settings.commands import Parser

SOON = "now+10"
"""The start to ask for. Not at once: a node refuses a job that starts in the same second in which it ended there."""
PATIENCE_S, BETWEEN_S, ASK_S = 80.0, 10.0, 30.0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = Parser(
        prog="python -m dppo.requeue",
        description="Has Slurm start this batch job again, soon, and on what nodes there are; code 75.",
    )
    parser.add_argument(
        "--is-requeued", action="store_true", help="Slurm does already: only see to it that it is soon, if it is true"
    )
    try:
        args = parser.parse_args(argv)
    except UsageError as error:
        print(f"dppo: {error}", file=sys.stderr)
        return EXIT_USAGE
    job_id = this_allocation().job_id
    reason = f"{JOB_ID} is not set" if job_id is None else "there is no scontrol on this machine"
    if job_id is None or shutil.which("scontrol") is None:
        print(f"dppo: this is no batch job of Slurm's: {reason}", file=sys.stderr)
        return EXIT_USAGE
    told: list[int] = []  # Slurm sends SIGTERM to a job that is being requeued, or that its user cancels
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGUSR1, signal.SIGTERM))  # dppo.job holds both until here
    if not args.is_requeued and not _requeue(job_id, told):
        return EXIT_FAILED
    for change in changes(os.environ):
        _scontrol("update", f"JobId={job_id}", change)
    return EXIT_AGAIN


def changes(environ: Mapping[str, str]) -> list[str]:
    """Returns the changes to make to the job, for scontrol update."""
    tasks = tasks_of_one_node(environ)
    return [f"StartTime={SOON}", *([] if tasks is None else [f"NumTasks={tasks}"])]


def _requeue(job_id: str, told: list[int]) -> bool:
    """Asks Slurm, whose controller may be away for some minutes, to requeue the job. Does not ask again once Slurm ends
    the job: a job that was cancelled would come back. Returns False where it has given up.
    """
    give_up = time.monotonic() + PATIENCE_S
    while not told:
        if (error := _scontrol("requeue", job_id)) is None or told:
            return True
        print(f"dppo: job {job_id} could not be requeued: {error}", file=sys.stderr, flush=True)
        if time.monotonic() > give_up:
            print("dppo: submit it again with RUN_DIR=… of this run, and it goes on", file=sys.stderr)
            return False
        again = time.monotonic() + BETWEEN_S
        while not told and time.monotonic() < again:
            time.sleep(0.1)
    return True


def _scontrol(*words: str) -> str | None:
    """Runs scontrol. Returns what has gone wrong, or None."""
    try:
        ended = subprocess.run(
            ["scontrol", *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=ASK_S, check=False,
            preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),  # Slurm sends it to scontrol as well
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return None if ended.returncode == 0 else ended.stderr.strip() or f"scontrol ended with {ended.returncode}"


if __name__ == "__main__":
    raise SystemExit(main())
