"""Checks whether a dump of trajectories is sound: `validate` lists all violations and does not stop at the first.

validate_segment.py checks each segment alone; this file checks segments against each other and against checkpoints.
"""

from __future__ import annotations

import operator
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dppo.errors import OldFormError, UsageError
from dppo.files import parse_json, read_regular
from dppo.rundir import paths
from dppo.rundir.checkpoint import checkpoint_folders, numbers_by_rank, read_checkpoint, read_manifest
from dppo.trajectories.catalogue import SURPRISES, gaps
from dppo.trajectories.format import checksum_problem, rank_folders, segment_files, segment_path
from dppo.trajectories.unsealed import unsealed
from dppo.trajectories.validate_episodes import Ends, Findings, Inspected, Violation
from dppo.trajectories.validate_segment import inspect

__all__ = ["Violation", "validate"]

REMOVAL_S = 2.0
"""Most seconds to wait until a checkpoint that lacks a file vanishes: the run may just be removing it."""


@dataclass(slots=True)
class _Run:
    """The findings so far, and values that all segments share, from the first segment that has them."""

    run_dir: Path
    violations: list[Violation] = field(default_factory=list)
    run_id: Any = None
    shapes: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    is_enabled: bool = False
    """Whether the settings in a segment say that trajectories are written."""
    every: int = 1

    def findings(self, path: Path) -> Findings:
        return Findings(str(path.relative_to(self.run_dir)), self.violations)


@dataclass(frozen=True, slots=True)
class _Claim:
    """A checkpoint's claims about the dump."""

    folder: Path
    named: dict[int, int] = field(default_factory=dict)
    """rank -> number of its next segment."""
    rows: dict[int, int] = field(default_factory=dict)
    """rank -> number of rows that the checkpoint has seen."""
    missing: dict[int, int] = field(default_factory=dict)
    """rank -> number of rows after its last named segment that no segment holds."""
    problem: str | None = None
    is_going: bool = False
    """Whether a file of the checkpoint is missing, perhaps because the run is removing it."""


def validate(run_dir: str | Path) -> list[Violation]:
    """Lists all violations of docs/trajectories.md in the dump of a run; a sound dump has none. Raises UsageError where
    there is no dump at all.
    """
    run_dir = Path(run_dir)
    # before the segments: a run that writes meanwhile makes segments visible before a checkpoint names them
    claims = list(_claims(run_dir))
    folders = rank_folders(run_dir)
    if not folders and not any(claim.named for claim in claims) and unsealed(run_dir) is None:
        raise UsageError(
            f"{run_dir} has no trajectories: no trajectories/rank_*; a run writes them with --trajectories.enabled"
        )
    run = _Run(run_dir)
    spans = {rank: _check_rank(run, rank, folder) for rank, folder in folders.items()}
    _check_checkpoints(run, claims, spans)
    return run.violations


def _check_rank(run: _Run, rank: int, folder: Path) -> dict[int, tuple[int, int]]:
    """Checks all segments of a folder. Returns {number: (first row, end row)}; (-1, -1) where the rows are unknown."""
    files = segment_files(folder)
    if gaps(files):  # a list made while a run sealed two segments may lack the first
        files = segment_files(folder)
    spans: dict[int, tuple[int, int]] = {}
    before = Inspected()
    for first, last in gaps(files):
        more = "" if first == last else f", and so are all up to {segment_path(folder, last).name}"
        what = f"is missing{more}: segments are numbered without a gap up to {max(files)}"
        run.findings(segment_path(folder, first)).add(None, None, what)
    for number, path in files.items():
        findings = run.findings(path)
        if number - 1 not in spans:
            before = Inspected()
        try:
            found = _inspected(path, findings, before.ends)
        except FileNotFoundError:
            continue  # a resume has just set it aside
        for name, expected in (("rank", rank), ("segment", number)):
            if (value := found.attrs.get(name, expected)) != expected:
                findings.add(None, None, f"its attribute {name} is {value}, its path says {expected}")
        _check_against_run(findings, found, run)
        spans[number] = -1, -1
        if len(found.rows):
            spans[number] = int(found.rows[0]), int(found.rows[-1]) + 1
            _check_order(findings, found, before, number)
        before = found
    return spans


def _inspected(path: Path, findings: Findings, before: Ends | None) -> Inspected:
    """Checks everything in one segment, the file first. Raises FileNotFoundError where it is gone."""
    if not path.is_file() and os.path.lexists(path):
        findings.add(None, None, "is no file")
        return Inspected()
    try:
        problem = checksum_problem(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        findings.add(None, None, f"is not read: {error}")
        return Inspected()
    if problem is not None:
        findings.add(None, None, problem)
    return inspect(path, findings, before)


def _check_against_run(findings: Findings, found: Inspected, run: _Run) -> None:
    run.is_enabled |= found.is_enabled
    run.every = max(run.every, found.attrs.get("every", 1))
    if (run_id := found.attrs.get("run_id")) is not None:
        run.run_id = run.run_id or run_id
        if run_id != run.run_id:
            findings.add(None, None, f"its run_id is {run_id}, that of the segments before it is {run.run_id}")
    for name, shape in found.shapes.items():
        expected = run.shapes.setdefault(name, shape)
        if shape != expected:
            (dtype, axes), (usual, usual_axes) = shape, expected
            findings.add(name, None, f"holds {dtype} {axes} a step, other segments hold {usual} {usual_axes}")


def _check_order(findings: Findings, found: Inspected, before: Inspected, number: int) -> None:
    """Checks rows, attempts, environments and versions of a segment against the segment before it."""
    if number and not len(before.rows):
        return  # nothing is known of the segment before
    skipped, first = found.attrs.get("skipped_rows"), int(found.rows[0])
    end = int(before.rows[-1]) + 1 if number else 0
    if skipped is not None and first != end + skipped:
        what = f"begins at row {first}; the segment before ends before row {end} and skipped_rows is {skipped}"
        findings.add("steps/row", 0, what)
    for name, is_wrong in (("attempt", operator.lt), ("first_env", operator.ne)):
        old, new = before.attrs.get(name), found.attrs.get(name)
        if old is not None and new is not None and is_wrong(new, old):
            findings.add(None, None, f"its {name} is {new}, that of the segment before is {old}")
    if None not in (before.num_envs, found.num_envs) and before.num_envs != found.num_envs:
        findings.add(None, None, f"has {found.num_envs} environments, the segment before has {before.num_envs}")
    old, new = before.versions, found.versions
    if len(old) and len(new) and new[0] < old[-1]:
        findings.add("steps/policy_version", 0, f"begins with version {new[0]}, the segment before ends with {old[-1]}")


# -- checkpoints --------------------


def _claims(run_dir: Path) -> Iterator[_Claim]:
    """Yields each checkpoint's claims, newest first. Skips a checkpoint that vanishes while it is read."""
    for folder in checkpoint_folders(run_dir):
        claim = _claim(folder)
        if claim.problem is not None:  # another checkpoint may just have taken its place
            claim = _claim(folder)
        if claim.problem is None or folder.exists():
            yield claim


def _claim(folder: Path) -> _Claim:
    named, what = dict[int, int](), "cannot be read"
    try:
        try:
            manifest = read_manifest(folder)
        except OldFormError:  # nothing else of the old form is read; this was JSON even then
            manifest = parse_json(read_regular(folder / paths.MANIFEST, folder.parent.parent))
            return _Claim(folder, numbers_by_rank(manifest, "next_segments"))
        named, missing = numbers_by_rank(manifest, "next_segments"), numbers_by_rank(manifest, "missing_rows")
        what = "the checkpoint is damaged"
        rows = {rank: row for rank, (row, _) in read_checkpoint(folder).ranks.items()}
        if read_manifest(folder) != manifest:
            raise ValueError("its manifest changed while it was read")
    except SURPRISES as error:
        return _Claim(folder, named, problem=f"{what}: {error}", is_going=_is_missing(error))
    return _Claim(folder, named, rows, missing)


def _is_missing(error: BaseException | None) -> bool:
    """Returns whether the error, or one of its causes, is a missing file."""
    while error is not None and not isinstance(error, FileNotFoundError):
        error = error.__cause__
    return error is not None


def _is_removed(folder: Path) -> bool:
    """Returns whether a checkpoint that lacked a file is gone as a whole within REMOVAL_S."""
    deadline = time.monotonic() + REMOVAL_S
    while folder.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _check_checkpoints(run: _Run, claims: list[_Claim], spans: dict[int, dict[int, tuple[int, int]]]) -> None:
    for claim in claims:
        findings = run.findings(claim.folder / paths.MANIFEST)
        if claim.problem is not None:
            if claim.is_going and _is_removed(claim.folder):
                continue
            findings.add(None, None, claim.problem)
        for rank, number in claim.named.items():
            if missing := gaps([n for n in spans.get(rank, {}) if n < number], number):
                spelt = ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in missing)
                what = f"names segments 0 to {number - 1} of rank {rank}; missing: {spelt}"
                findings.add("next_segments", None, what)
        for rank in claim.rows:
            for what in _row_problems(claim, rank, spans.get(rank), run):
                findings.add("next_segments", None, what)


def _row_problems(claim: _Claim, rank: int, there: dict[int, tuple[int, int]] | None, run: _Run) -> Iterator[str]:
    """Checks that the segments that a checkpoint names hold exactly the rows that it has seen of a rank, except for
    those that it knows to be missing.
    """
    row, number, missing = claim.rows[rank], claim.named.get(rank, 0), claim.missing.get(rank, 0)
    named, seen = f"names the segments of rank {rank} below {number}", f"the checkpoint has seen {row} rows"
    spans, is_right = there or {}, True
    if rank in claim.named or (claim.named and there is not None):
        for n, (_, end) in spans.items():
            if n < number and end > row:
                is_right = False
                yield f"names segment {n} of rank {rank}, ending before row {end}; {seen}"
        begin, _ = spans.get(number, (-1, -1))
        if -1 < begin < row:
            is_right = False
            yield f"{named}, but that one begins at row {begin} already; {seen}"
    end = spans.get(number - 1, (-1, -1))[1] if number else 0
    is_complete = (claim.named or run.is_enabled) and run.every == 1
    if is_right and is_complete and -1 < end <= row and end + missing != row:
        known = f" and knows {missing} of them to be missing" if missing else ""
        yield f"{named}, which end before row {end}; {seen}{known}"
