"""Whether a dump of trajectories is what it says: `validate` lists all that is wrong and stops at nothing.

Uses the segments and the checkpoints as files, and the writer's own account of episodes; `dppo.trajectories` shows what
it finds. segment_rules.py has what must hold within one segment; here is what holds between segments and checkpoints.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dppo.commandline import UsageError
from dppo.storage.checkpoint import checkpoint_folders, read_checkpoint
from dppo.storage.segment_rules import Findings, Inspected, Violation, inspect
from dppo.storage.segments import checksum_problem, rank_folders, segment_files, segment_path

__all__ = ["Violation", "validate"]


@dataclass(slots=True)
class _Run:
    """What all segments of a run share, from the first that says it."""

    run_id: Any = None
    shapes: dict[str, tuple[Any, ...]] = field(default_factory=dict)


def validate(run_dir: str | Path) -> list[Violation]:
    """All violations of docs/trajectories.md in the dump of a run; none is good news.

    Raises:
      UsageError: there is no dump at all.
    """
    run_dir = Path(run_dir)
    folders = rank_folders(run_dir)
    manifests = _manifests(run_dir)
    if not folders and not any(named for _, named, _ in manifests):
        raise UsageError(
            f"{run_dir} has no trajectories: no trajectories/rank_*; a run writes them with --trajectories.enabled"
        )
    violations: list[Violation] = []
    run = _Run()
    spans: dict[int, dict[int, tuple[int, int]]] = {}
    for rank, folder in folders.items():
        spans[rank] = _check_rank(run_dir, rank, folder, run, violations)
    _check_checkpoints(run_dir, manifests, spans, violations)
    return violations


def _check_rank(
    run_dir: Path, rank: int, folder: Path, run: _Run, violations: list[Violation]
) -> dict[int, tuple[int, int]]:
    """All segments of a folder. Returns {number: (first row, end row)}; (-1, -1) where that cannot be told."""
    files = segment_files(folder)
    spans: dict[int, tuple[int, int]] = {}
    before: Inspected | None = None
    for number in range(max(files, default=-1) + 1):
        path = files.get(number, segment_path(folder, number))
        findings = Findings(str(path.relative_to(run_dir)), violations)
        if number not in files:
            findings.add(None, None, f"is missing: segments are numbered without a gap up to {max(files)}")
            before = None
            continue
        try:
            if (problem := checksum_problem(path)) is not None:
                findings.add(None, None, problem)
        except OSError as error:
            findings.add(None, None, f"cannot be read: {error}")
        found = inspect(path, findings, None if before is None else before.ends)
        _check_place(findings, found, rank, number)
        _check_against_run(findings, found, run)
        if found.rows is not None and len(found.rows):
            spans[number] = int(found.rows[0]), int(found.rows[-1]) + 1
            _check_order(findings, found, before, number)
        else:
            spans[number] = -1, -1
        before = found if found.rows is not None and len(found.rows) else None
    return spans


def _check_place(findings: Findings, found: Inspected, rank: int, number: int) -> None:
    for name, expected in (("rank", rank), ("segment", number)):
        value = found.attrs.get(name)
        if value is not None and value != expected:
            findings.add(None, None, f"its attribute {name} is {value}, its path says {expected}")


def _check_against_run(findings: Findings, found: Inspected, run: _Run) -> None:
    run_id = found.attrs.get("run_id")
    if run_id is not None:
        run.run_id = run_id if run.run_id is None else run.run_id
        if run_id != run.run_id:
            findings.add(None, None, f"its run_id is {run_id}, that of the segments before it is {run.run_id}")
    for name, shape in found.shapes.items():
        expected = run.shapes.setdefault(name, shape)
        if shape != expected:
            findings.add(name, None, f"holds {_spelt(shape)} a step, other segments hold {_spelt(expected)}")


def _spelt(shape: tuple[Any, ...]) -> str:
    return f"{shape[0]} {shape[1]}"


def _check_order(findings: Findings, found: Inspected, before: Inspected | None, number: int) -> None:
    """Of rows, attempts and versions, from segment to segment of a rank."""
    assert found.rows is not None
    skipped, first = found.attrs.get("skipped_rows"), int(found.rows[0])
    if before is None and number > 0:
        return  # nothing is known of the one before
    end = 0 if before is None or before.rows is None else int(before.rows[-1]) + 1
    if skipped is not None and first != end + skipped:
        findings.add(
            "steps/row",
            0,
            f"begins at row {first}; the segment before ends before row {end} and skipped_rows is {skipped}",
        )
    if before is None:
        return
    old_attempt, attempt = before.attrs.get("attempt"), found.attrs.get("attempt")
    if old_attempt is not None and attempt is not None and attempt < old_attempt:
        findings.add(None, None, f"its attempt is {attempt}, that of the segment before is {old_attempt}")
    if None not in (before.num_envs, found.num_envs) and before.num_envs != found.num_envs:
        findings.add(None, None, f"has {found.num_envs} environments, the segment before has {before.num_envs}")
    old_env, env = before.attrs.get("first_env"), found.attrs.get("first_env")
    if None not in (old_env, env) and env != old_env:
        findings.add(None, None, f"its first_env is {env}, that of the segment before is {old_env}")
    old, new = before.versions, found.versions
    if old is not None and new is not None and len(old) and len(new) and new[0] < old[-1]:
        findings.add("steps/policy_version", 0, f"begins with version {new[0]}, the segment before ends with {old[-1]}")


# -- checkpoints --------------------


def _manifests(run_dir: Path) -> list[tuple[Path, dict[int, int], str | None]]:
    """(folder, segments that it names, why they cannot be told) of every checkpoint."""
    out: list[tuple[Path, dict[int, int], str | None]] = []
    for folder in checkpoint_folders(run_dir):
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            named = {int(rank): int(number) for rank, number in manifest.get("next_segments", {}).items()}
            out.append((folder, named, None))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            out.append((folder, {}, f"cannot be read: {error!r}"))
    return out


def _check_checkpoints(
    run_dir: Path,
    manifests: list[tuple[Path, dict[int, int], str | None]],
    spans: dict[int, dict[int, tuple[int, int]]],
    violations: list[Violation],
) -> None:
    for folder, named, problem in manifests:
        findings = Findings(str((folder / "manifest.json").relative_to(run_dir)), violations)
        rows: dict[int, int] = {}
        if problem is not None:
            findings.add(None, None, problem)
            continue
        try:
            rows = {rank: row for rank, (row, _) in read_checkpoint(folder).ranks.items()}
        except ValueError as error:
            findings.add(None, None, f"the checkpoint is damaged: {error}")
        for rank, number in named.items():
            there = spans.get(rank, {})
            missing = np.setdiff1d(np.arange(number), list(there)).tolist()
            if missing:
                findings.add(
                    "next_segments", None,
                    f"names segments 0 to {number - 1} of rank {rank}; missing: {', '.join(map(str, missing))}",
                )  # fmt: skip
            if rank in rows:
                _check_claim(findings, rank, number, rows[rank], there)
        for rank in set(spans) - set(named) if named else ():
            if rank in rows:
                _check_claim(findings, rank, 0, rows[rank], spans[rank])


def _check_claim(findings: Findings, rank: int, number: int, row: int, there: dict[int, tuple[int, int]]) -> None:
    """That segments below `number` hold just the rows below `row`."""
    beyond = [n for n, (_, end) in there.items() if n < number and end > row]
    for n in beyond:
        findings.add(
            "next_segments", None,
            f"names segment {n} of rank {rank}, ending before row {there[n][1]}; the checkpoint has seen {row} rows",
        )  # fmt: skip
    if number in there and -1 < there[number][0] < row:
        findings.add(
            "next_segments", None,
            f"names the segments of rank {rank} below {number}, but that one begins at row {there[number][0]} already; "
            f"the checkpoint has seen {row} rows",
        )  # fmt: skip
