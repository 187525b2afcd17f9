"""python -m dppo.verdict: says after a job's end whether its run is done, or the job should be started again.

Batch scripts use it, because they cannot trust the launcher's code (mpirun says 0 when it has lost a node). Every start
has a line in RUN/starts.jsonl: `--begin` writes it, the verdict completes it. Where a start was killed before its
verdict, the next start's `--begin` gives that verdict.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dppo.cluster.slurm import in_queue, this_allocation
from dppo.errors import EXIT_AGAIN, EXIT_FAILED, EXIT_FINISHED, EXIT_USAGE, RefusedFileError, UsageError
from dppo.files import check_run_files, number_in, parse_json, plain, read_lines, read_regular, replace_atomically
from dppo.rundir import paths
from dppo.rundir.summary import ENDED, FAILED, PREEMPTED, read_summary
from dppo.settings.commands import Parser, at_least, integer, require, within

FIRST = paths.checkpoint_name(0)


@dataclass(frozen=True)
class Verdict:
    """The decision about a job: this command's exit code, and the reason in words."""

    code: int
    text: str
    fruitless: int
    """The number of this job's starts in a row without a new checkpoint, including the one that has just ended."""


@dataclass(frozen=True)
class Found:
    """The facts that a run directory holds."""

    summary: dict[str, Any]
    """The run's summary; {} where it has none."""
    written: int | None
    """The time when the summary was written, in nanoseconds; it tells whether a start came so far as to write it."""
    checkpoint: str | None
    """The newest checkpoint's name."""


def judge(found: Found, before: dict[str, Any], job_id: str | None, starts: int, code: int | None = None) -> Verdict:
    """Returns the verdict on the start that has just ended.

    Args:
      found: the run directory at the end of the start.
      before: the start's own line of `starts.jsonl` or, without `--begin`, the line before, which has a verdict.
      job_id: the job of the start; fruitless starts of another job do not count.
      starts: the number of starts in a row without a new checkpoint that are enough.
      code: the launcher's exit code; it counts only for what cannot be seen in the run directory.
    """
    exit_, where = found.summary.get("exit"), f"newest checkpoint: {found.checkpoint or 'none'}"
    is_new = found.written is not None and found.written != before.get("written")
    progressed = found.checkpoint not in (before.get("checkpoint"), None, FIRST)
    fruitless = 0 if progressed else 1 + (number_in(before, "fruitless") if before.get("job_id") == job_id else 0)
    if exit_ in ENDED and (is_new or not code):  # a start that has nothing to do writes nothing
        return Verdict(EXIT_FINISHED, f"done ({exit_}) after {number_in(found.summary, 'env_steps'):,} steps", 0)
    if code == EXIT_USAGE and not is_new:
        return Verdict(EXIT_USAGE, f"wrong use, as said above; {where}: not started again", fruitless)
    how = "was cut short"
    if (is_new and exit_ == PREEMPTED) or (code == EXIT_AGAIN and not is_new):  # the latter: before the run had begun
        how = "was preempted"
    elif is_new and exit_ == FAILED:
        how = f"{'stalled' if found.summary.get('stalled') else 'failed'}: {last_line(found.summary.get('error'))}"
        if not found.summary.get("stalled"):
            return Verdict(EXIT_FAILED, f"{how}; {where}: not started again", fruitless)
    if fruitless >= starts:
        text = f"{how}; {where}, and no start of {fruitless} has brought a new one: not started again"
        return Verdict(EXIT_FAILED, text, fruitless)
    return Verdict(EXIT_AGAIN, f"{how}; {where}: start it again", fruitless)


def last_line(error: object) -> str:
    """Returns the last line of an error: of a text with a traceback, the exception itself."""
    return str(error or "").strip().rpartition("\n")[2] or "no reason was given"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = Parser(
        prog="python -m dppo.verdict",
        description="Says whether the run of a job that has ended is done (code 0), has failed (1), was wrong use (2),"
        " or should be started again (75).",
    )
    parser.add_argument("run_dir", type=Path, help="the run directory")
    parser.add_argument(
        "--starts",
        type=integer,
        default=3,
        help="so many in a row without a new checkpoint are enough (default: 3)",
    )
    parser.add_argument("--code", type=integer, help="that the launcher has ended with")
    parser.add_argument(
        "--begin", action="store_true", help="before a start: code 0, or 1 where the starts before it were enough"
    )
    try:
        args = parser.parse_args(argv)
        require("--starts", args.starts, at_least(1, 1e6))
        require("--code", args.code or 0, within(-255, 255))
    except UsageError as error:
        print(f"dppo: {error}", file=sys.stderr)
        raise SystemExit(EXIT_USAGE) from error
    run_dir: Path = args.run_dir
    if run_dir.exists() and not run_dir.is_dir():
        print(f"dppo: {plain(run_dir)} is a file: give a run directory", file=sys.stderr)
        return EXIT_USAGE
    try:
        check_run_files(run_dir, (paths.SUMMARY, paths.STARTS, paths.LATEST))
        lines = _lines(run_dir / paths.STARTS)
        if (other := _other(lines)) is not None:
            print(f"dppo: {plain(run_dir)}: {other}", file=sys.stderr)
            return EXIT_USAGE
        verdict = _begin(run_dir, lines, args.starts) if args.begin else _end(run_dir, lines, args.starts, args.code)
        if verdict is not None and verdict.code == EXIT_USAGE:
            lines.pop()  # wrong use leaves nothing behind
        run_dir.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        replace_atomically(run_dir / paths.STARTS, text.encode())
        if not lines:
            (run_dir / paths.STARTS).unlink()
            with contextlib.suppress(OSError):  # something else is in it
                run_dir.rmdir()
    except RefusedFileError as error:
        print(f"dppo: {plain(error)}: not started again", file=sys.stderr)
        return EXIT_USAGE
    except OSError as error:  # without a count the job might be started again forever
        print(
            f"dppo: {plain(run_dir)}/{paths.STARTS} cannot be kept ({plain(error)}): not started again", file=sys.stderr
        )
        return EXIT_FAILED
    if verdict is None:
        return 0
    file = sys.stderr if verdict.code in (EXIT_FAILED, EXIT_USAGE) else sys.stdout
    print(f"dppo: {plain(run_dir)}: {plain(verdict.text)}", file=file, flush=True)
    return verdict.code


def _other(lines: list[dict[str, Any]]) -> str | None:
    """Describes another start that has the run directory now; None where there is none."""
    last, here = lines[-1] if lines else {}, this_allocation()
    if "verdict" in last or here.job_id is None or not last.get("job_id"):
        return None
    if last["job_id"] != here.job_id:
        taken = in_queue(str(last["job_id"]))
        text = f"job {last['job_id']} has it, and is still in the queue: wait for its end, or scancel it first"
        return text if taken else None
    if number_in(last, "restart_count") > here.restarts:
        return "Slurm has started this job again elsewhere: this start leaves the run to that one"
    return None


def _begin(run_dir: Path, lines: list[dict[str, Any]], starts: int) -> Verdict | None:
    """Adds the line of a start. Returns a verdict instead where there should be no start."""
    allocation, found = this_allocation(), look(run_dir)
    before = lines[-1] if lines and lines[-1].get("job_id") == allocation.job_id else {}
    if before and "verdict" not in before:  # killed with its batch script
        verdict = judge(found, before, allocation.job_id, starts, EXIT_FAILED)
        before |= _ended(found, verdict)
        if verdict.code == EXIT_FAILED:
            return verdict
    lines.append({
        "time": _now(), "job_id": allocation.job_id, "restart_count": allocation.restarts, "written": found.written,
        "checkpoint": found.checkpoint, "fruitless": number_in(before, "fruitless"),
    })  # fmt: skip
    return None


def _end(run_dir: Path, lines: list[dict[str, Any]], starts: int, code: int | None) -> Verdict:
    """Completes the line of this start, or adds one. Returns the verdict."""
    allocation, found = this_allocation(), look(run_dir)
    before = lines[-1] if lines else {}
    verdict = judge(found, before, allocation.job_id, starts, code)
    if not before or "verdict" in before:
        lines.append({"time": _now(), "job_id": allocation.job_id, "restart_count": allocation.restarts})
    lines[-1] |= _ended(found, verdict)
    return verdict


def _ended(found: Found, verdict: Verdict) -> dict[str, Any]:
    return {
        "ended": _now(),
        "attempt": found.summary.get("attempt"),
        "exit": found.summary.get("exit"),
        "written": found.written,
        "checkpoint": found.checkpoint,
        "fruitless": verdict.fruitless,
        "verdict": verdict.code,
    }


def look(run_dir: Path) -> Found:
    """Reads a run directory, which may be empty, or missing."""
    path = run_dir / paths.SUMMARY
    return Found(read_summary(run_dir), path.stat().st_mtime_ns if path.exists() else None, _newest_checkpoint(run_dir))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _newest_checkpoint(run_dir: Path) -> str | None:
    with contextlib.suppress(OSError):
        return read_regular(run_dir / paths.LATEST, run_dir).decode(errors="replace").strip() or None
    return None


def _lines(path: Path) -> list[dict[str, Any]]:
    """Reads a JSON lines file; leaves out what is not understood. Raises OSError where it exists and cannot be read."""
    found: list[dict[str, Any]] = []
    with contextlib.suppress(FileNotFoundError):
        for line in read_lines(path, path.parent):
            with contextlib.suppress(ValueError):
                value = parse_json(line)
                if isinstance(value, dict):
                    found.append(value)
    return found


if __name__ == "__main__":
    sys.exit(main())
