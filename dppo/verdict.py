"""python -m dppo.verdict: after a job's end, whether its run is done, or the job should be started again.

For batch scripts, which cannot trust the launcher's code (mpirun says 0 when it has lost a node). Uses the run
directory's files; no MPI, and no torch. What it has found at each end is in RUN/starts.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dppo.allocation import this_allocation
from dppo.storage.files import replace_atomically
from dppo.storage.metrics import read_json

DONE, FAILED, USAGE, AGAIN = 0, 1, 2, 75
"""Exit codes, the same as of dppo.run."""


FIRST = "step_000000000"


@dataclass(frozen=True)
class Verdict:
    """What should become of the job."""

    code: int
    text: str
    fruitless: int
    """Starts of this job in a row that brought no new checkpoint, the one that has just ended included."""


def judge(
    summary: dict[str, Any], checkpoint: str | None, before: dict[str, Any], job_id: str | None, starts: int
) -> Verdict:
    """The verdict on the start that has just ended.

    Args:
      summary: of the run; {} where it has none.
      checkpoint: the newest one's name.
      before: what was found at the end of the start before; {} for the first.
      job_id: whoever submits a job anew is not held to what happened to the last one.
      starts: so many in a row without a new checkpoint are enough.
    """
    exit_, where = summary.get("exit"), f"newest checkpoint: {checkpoint or 'none'}"
    attempt = summary.get("attempt")
    is_new = attempt is not None and attempt != before.get("attempt")  # else this start did not come so far
    progressed = checkpoint not in (before.get("checkpoint"), None, FIRST)
    fruitless = 0 if progressed else 1 + (before.get("fruitless", 0) if before.get("job_id") == job_id else 0)
    if exit_ in ("finished", "target"):
        return Verdict(DONE, f"done ({exit_}) after {summary.get('env_steps', 0):,} steps", 0)
    how = "was cut short"
    if is_new and exit_ == "preempted":
        how = "was preempted"
    elif is_new and exit_ == "failed":
        how = f"{'stalled' if summary.get('stalled') else 'failed'}: {last_line(summary.get('error'))}"
        if not summary.get("stalled"):
            return Verdict(FAILED, f"{how}; {where}: not started again", fruitless)
    if fruitless >= starts:
        text = f"{how}; {where}, and no start of {fruitless} has brought a new one: not started again"
        return Verdict(FAILED, text, fruitless)
    return Verdict(AGAIN, f"{how}; {where}: start it again", fruitless)


def last_line(error: str | None) -> str:
    """Of a text with a traceback: the exception itself."""
    return (error or "").strip().rpartition("\n")[2] or "no reason was given"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dppo.verdict",
        description="Says whether the run of a job that has ended is done (code 0), has failed (1), or should be"
        " started again (75).",
    )
    parser.add_argument("run_dir", type=Path, help="the run directory")
    parser.add_argument(
        "--starts", type=int, default=3, help="so many in a row without a new checkpoint are enough (default: 3)"
    )
    args = parser.parse_args(argv)
    run_dir: Path = args.run_dir
    if args.starts < 1:
        parser.error(f"--starts {args.starts} must be at least 1")
    if run_dir.exists() and not run_dir.is_dir():
        print(f"dppo: {run_dir} is a file: give a run directory", file=sys.stderr)
        return USAGE
    summary, checkpoint = read_json(run_dir / "summary.json"), _newest_checkpoint(run_dir)
    history, allocation = run_dir / "starts.jsonl", this_allocation()
    ends = _lines(history)
    verdict = judge(summary, checkpoint, ends[-1] if ends else {}, allocation.job_id, args.starts)
    end = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "job_id": allocation.job_id,
        "restart_count": allocation.restarts,
        "attempt": summary.get("attempt"),
        "exit": summary.get("exit"),
        "checkpoint": checkpoint,
        "fruitless": verdict.fruitless,
        "verdict": verdict.code,
    }
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        replace_atomically(history, "".join(json.dumps(line) + "\n" for line in [*ends, end]).encode())
    except OSError as error:  # without a count it might be started again for ever
        print(f"dppo: {history} cannot be written ({error}): {run_dir} is not started again", file=sys.stderr)
        return verdict.code if verdict.code != AGAIN else FAILED
    print(f"dppo: {run_dir}: {verdict.text}", file=sys.stderr if verdict.code == FAILED else sys.stdout, flush=True)
    return verdict.code


def _newest_checkpoint(run_dir: Path) -> str | None:
    try:
        return (run_dir / "checkpoints" / "latest").read_text().strip() or None
    except OSError:
        return None


def _lines(path: Path) -> list[dict[str, Any]]:
    """Of a JSON lines file; what cannot be read is left out."""
    found: list[dict[str, Any]] = []
    try:
        text = path.read_text()
    except OSError:
        return found
    for line in text.splitlines():
        try:
            found.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
