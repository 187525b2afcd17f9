"""Checkpoints: atomic, complete, resumable.

    RUN/checkpoints/step_000050176/{state.pt, rank_00001.pt, …, manifest.json}     RUN/checkpoints/latest

Uses torch's file format (torch_file.py), so that torch.load(weights_only=True) opens them, and files.py; the journal
writes, run.py and evaluate.py read. A folder is built under another name, every file synced, the manifest (sizes and
checksums) written last, then renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dppo.batch import EnvState
from dppo.models.flat import first_not_finite
from dppo.storage.files import fsync_folder, replace_atomically, write_durably
from dppo.storage.torch_file import from_bytes, to_bytes

FORMAT = 1
_NAME = re.compile(r"step_(\d+)(\.old)?")


@dataclass(slots=True)
class Checkpoint:
    """What a run needs to go on. `state` and `journal` hold plain values and NumPy arrays."""

    env_steps: int
    iteration: int
    state: dict[str, Any]
    """The learner's: parameters, optimiser, moments, counters."""
    journal: dict[str, Any]
    """Rank 0's books: the window of episodes, counts, seconds."""
    ranks: dict[int, tuple[int, list[EnvState]]]
    """rank -> (rows of noise drawn, its environments)."""
    next_segments: dict[int, int] = field(default_factory=dict)
    """rank -> number of its next trajectory segment: those below hold what this checkpoint has seen."""
    missing_rows: dict[int, int] = field(default_factory=dict)
    """rank -> rows behind those segments that are in none; a rank that has none is not there."""


def write_checkpoint(run_dir: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes `checkpoint`, points `latest` at it and removes all but the `keep` newest. Returns its folder."""
    root = run_dir / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"step_{checkpoint.env_steps:09d}"
    part = root / (folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    files = {"state.pt": {"format": FORMAT, "state": checkpoint.state, "journal": checkpoint.journal}}
    for rank, (row, envs) in checkpoint.ranks.items():
        files[f"rank_{rank:05d}.pt"] = {"rank": rank, "row": row, "envs": [_env_to_dict(e) for e in envs]}
    listed = {}
    for name, content in files.items():
        data = to_bytes(content)
        write_durably(part / name, data)
        listed[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest = {
        "format": FORMAT,
        "env_steps": checkpoint.env_steps,
        "iteration": checkpoint.iteration,
        "files": listed,
        "next_segments": {str(rank): number for rank, number in sorted(checkpoint.next_segments.items())},
        "missing_rows": {str(rank): number for rank, number in sorted(checkpoint.missing_rows.items())},
    }
    write_durably(part / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())
    fsync_folder(part)
    before = root / (folder.name + ".old")
    if folder.exists():  # a damaged one that a resume had to skip, or the same boundary saved twice
        shutil.rmtree(before, ignore_errors=True)
        os.rename(folder, before)  # where it still counts, should this process be killed now
    os.rename(part, folder)
    fsync_folder(root)
    replace_atomically(root / "latest", (folder.name + "\n").encode())
    shutil.rmtree(before, ignore_errors=True)
    others = [p for p in checkpoint_folders(run_dir) if p != folder]
    # newer ones were damaged, or of a future that a resume has undone: they must not push out what is whole
    dead = [p for p in others if p.name.removesuffix(".old") > folder.name]
    for surplus in (*dead, *[p for p in others if p not in dead][keep - 1 :], *root.glob("*.removed")):
        _remove(surplus)
    return folder


def _remove(folder: Path) -> None:
    """Under another name first: whoever is killed meanwhile leaves nothing that looks like a damaged checkpoint."""
    doomed = folder if folder.suffix == ".removed" else folder.with_name(folder.name + ".removed")
    with contextlib.suppress(OSError):
        os.rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(run_dir: Path) -> None:
    """What a killed write left half done; called when a run opens, before anything writes."""
    for pattern in ("*.part", "*.removed"):
        for leftover in (run_dir / "checkpoints").glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


def checkpoint_folders(run_dir: Path) -> list[Path]:
    """Complete checkpoints, newest first."""
    root = run_dir / "checkpoints"
    if not root.is_dir():
        return []
    found = {p: _NAME.fullmatch(p.name) for p in root.iterdir() if p.is_dir()}
    ages = {p: (int(match[1]), match[2] is None) for p, match in found.items() if match}
    return sorted(ages, key=lambda p: ages[p], reverse=True)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads one. Raises ValueError that says which file is damaged, and how."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        listed = {name: (entry["bytes"], entry["sha256"]) for name, entry in dict(manifest["files"]).items()}
        numbers = manifest["env_steps"], manifest["iteration"]
        segments = {int(rank): int(number) for rank, number in manifest["next_segments"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"manifest.json cannot be read: {error!r}") from error
    if manifest.get("format") != FORMAT:
        raise ValueError(f"manifest.json has format {manifest.get('format')}, this dppo reads {FORMAT}")
    contents = {}
    for name, size_and_checksum in listed.items():
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise ValueError(f"{name} cannot be read: {error}") from error
        if (len(data), hashlib.sha256(data).hexdigest()) != size_and_checksum:
            raise ValueError(f"{name} does not match its checksum in manifest.json")
        try:
            contents[name] = from_bytes(data)
        except Exception as error:  # a damaged pickle raises all kinds; what would run code is refused
            raise ValueError(f"{name} is no file of plain values and tensors: {type(error).__name__}") from error
    if "state.pt" not in contents:
        raise ValueError("the manifest names no state.pt")
    main = contents.pop("state.pt")
    try:
        if numbers != (main["state"]["numbers"]["env_steps"], main["state"]["numbers"]["iteration"]):
            raise ValueError("manifest.json does not belong to state.pt")
        _check_finite(main["state"])
        ranks = {c["rank"]: (c["row"], [_env_from_dict(e) for e in c["envs"]]) for c in contents.values()}
        return Checkpoint(*numbers, main["state"], main["journal"], ranks, segments)
    except (KeyError, TypeError) as error:
        raise ValueError(f"its files do not hold what this dppo expects: {error!r}") from error


def _check_finite(state: dict[str, Any]) -> None:
    """Raises ValueError where a number of the learner's state is not finite: from it nothing can be learnt any more."""
    for name, value in state.items():
        if isinstance(value, float) or (isinstance(value, np.ndarray) and value.dtype.kind == "f"):
            for row in np.atleast_2d(value):
                if (
                    bad := first_not_finite(state["shapes"] if name in ("parameters", "optimizer") else {}, row)
                ) is not None:
                    raise ValueError(f"state.pt holds a state that is not finite: {name}, {bad}")


def newest_valid(run_dir: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and a line for each newer one that was skipped, with the reason."""
    skipped: list[str] = []
    for folder in checkpoint_folders(run_dir):
        try:
            return read_checkpoint(folder), skipped
        except ValueError as error:
            skipped.append(f"{folder.name} is damaged and was skipped: {error}")
    return None, skipped


def _env_to_dict(env: EnvState) -> dict[str, Any]:
    return {name: getattr(env, name) for name in EnvState.__slots__}


def _env_from_dict(values: dict[str, Any]) -> EnvState:
    return EnvState(**values)
